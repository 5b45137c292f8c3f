#!/usr/bin/env bash
# check_includes.sh [ROOT]: fails when an include points upward. The rooms, from the top:
#   launch > trainer > {model, data} > parallel > kernels
# model and data do not know each other; only kernels (and its tests and benchmarks) sees kernels/cpu and
# kernels/cuda; what kernels/ops.h pulls in, and everything in model, is free of CUDA. Includes in quotes are written
# from the root and name a file that exists.
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"

mapfile -t sources < <(find kernels parallel data model trainer launch tests bench \
  -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null | sort)
if ((${#sources[@]} == 0)); then
  echo "check_includes: no sources under $PWD" >&2
  exit 1
fi

# One line per include: FILE LINE KIND NAME, KIND being local ("...") or system (<...>).
includes=$(grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]' "${sources[@]}" |
  sed -nE 's/^([^:]+):([0-9]+):[[:space:]]*#[[:space:]]*include[[:space:]]*"([^"]+)".*/\1 \2 local \3/p
           s/^([^:]+):([0-9]+):[[:space:]]*#[[:space:]]*include[[:space:]]*<([^>]+)>.*/\1 \2 system \3/p' || true)

# What git does not have but the build makes: kernels/build_info.h from kernels/build_info.h.in.
exists=$(printf '%s\n' "${sources[@]}"; find kernels parallel data model trainer launch -name '*.in' 2>/dev/null |
  sed 's/\.in$//')

awk -v exists="$exists" '
  function room(path) { return path ~ /\// ? substr(path, 1, index(path, "/") - 1) : "" }
  function bad(what) { printf "%s:%s: %s\n", file, line, what; ++errors }
  function is_cuda(name) { return name ~ /\.cuh$|^(cuda|cublas|nccl|nvtx|nvml|curand|cub\/|thrust\/|cooperative_groups)/ ||
                                  name ~ /^kernels\/cuda\// }
  BEGIN {
    split("kernels parallel data model trainer launch", names); split("0 1 2 2 3 4", levels)
    for (i in names) level[names[i]] = levels[i]
    n = split(exists, list, "\n"); for (i = 1; i <= n; ++i) known[list[i]] = 1
  }
  {
    file = $1; line = $2; kind = $3; name = $4
    from = room(file); to = room(name)
    if (from == "model" && is_cuda(name)) bad("model includes CUDA: " name)
    if (kind == "local") {
      if (!(name in known)) bad("\"" name "\" is no file of this repository, written from the root")
      edges[file] = edges[file] " " name
      if ((from in level) && (to in level)) {
        if (level[to] > level[from]) bad(from " includes upward, " name " belongs to " to)
        else if (level[to] == level[from] && from != to) bad(from " and " to " exclude each other: " name)
      }
      backend = name ~ /^kernels\/(cpu|cuda)\//
      if (backend && file !~ /^(kernels|tests\/kernels|bench)\//) bad(name " is private to kernels; use kernels/ops.h")
    } else if (is_cuda(name)) cuda[file] = name
  }
  END {
    # Everything that kernels/ops.h reaches, breadth first.
    queue[last = 1] = "kernels/ops.h"; seen["kernels/ops.h"] = 1
    for (first = 1; first <= last; ++first) {
      header = queue[first]
      if (header ~ /\.cuh$|^kernels\/cuda\// || header in cuda) {
        printf "%s: reached from kernels/ops.h, but is or includes CUDA (%s)\n", header, header in cuda ? cuda[header] : header
        ++errors
      }
      n = split(edges[header], next_ones, " ")
      for (i = 1; i <= n; ++i) if (!(next_ones[i] in seen)) { seen[next_ones[i]] = 1; queue[++last] = next_ones[i] }
    }
    if (errors) { printf "check_includes: %d include%s against the rules\n", errors, (errors > 1 ? "s" : ""); exit 1 }
    printf "check_includes: %d includes, all downward\n", NR
  }' <<<"$includes"
