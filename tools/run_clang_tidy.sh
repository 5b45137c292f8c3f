#!/usr/bin/env bash
# run_clang_tidy.sh [--all | FILE...]: clang-tidy 14 with .clang-tidy over the C++ sources; without arguments those
# changed since the branch left main, uncommitted ones included. Compiles against build-cpu, which it configures.
set -euo pipefail
cd "$(dirname "$0")/.."

tidy=$(command -v clang-tidy-14 || true)
if [[ -z $tidy ]]; then
  echo "run_clang_tidy: clang-tidy-14 is missing; launch/install_dependencies.sh --dev installs it" >&2
  exit 1
fi
if (($# == 0)); then
  base=$(git merge-base HEAD main 2>/dev/null || git rev-parse HEAD)
  mapfile -t sources < <({ git diff --name-only --diff-filter=d "$base" -- '*.cpp'
                           git ls-files --others --exclude-standard '*.cpp'; } | sort -u)
elif [[ $1 == --all ]]; then
  mapfile -t sources < <(git ls-files '*.cpp')
else
  sources=("$@")
fi
if ((${#sources[@]} == 0)); then
  echo "run_clang_tidy: nothing changed"
  exit
fi
cmake --preset cpu-only >/dev/null
# The compiler's own switches for OpenMP and warnings are GCC's; clang-tidy need not know all of them.
printf '%s\0' "${sources[@]}" | xargs -0 -n 1 -P "$(nproc)" \
  "$tidy" --quiet -p build-cpu --extra-arg=-Wno-unknown-warning-option
echo "run_clang_tidy: ${#sources[@]} files"
