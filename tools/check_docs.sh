#!/usr/bin/env bash
# check_docs.sh [PROGRAM]: every link, path and command that the documents name exists. Paths are words in code that
# begin with a folder of this repository; commands are the lines of ```sh blocks. With PROGRAM (build/lapidary) each
# subcommand is asked for its --help, which has to know every option that the line uses.
set -euo pipefail
program=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."

mapfile -t documents < <(git ls-files --cached --others --exclude-standard 'README.md' 'CONTRIBUTING.md' 'docs/*.md' \
  'configs/*.md')
errors=0
complain() {
  echo "$1: $2" >&2
  errors=$((errors + 1))
}

# A path exists when it is a file, a folder, or a pattern that matches something.
path_exists() { compgen -G "$1" >/dev/null; }

check_links() {
  local target
  while read -r target; do
    [[ $target =~ ^(https?:|#|mailto:) ]] && continue
    path_exists "$(dirname "$1")/${target%%#*}" || complain "$1" "link to $target: no such file"
  done < <(grep -oE '\]\([^)]+\)' "$1" | sed -E 's/^\]\((.*)\)$/\1/')
}

check_paths() {
  local path
  while read -r path; do
    path_exists "$path" || complain "$1" "names $path: no such file"
  done < <(awk '/^```/ { block = !block; next } block { print; next }
                { n = split($0, part, "`"); for (i = 2; i <= n; i += 2) print part[i] }' "$1" |
    tr -s ' "'"'"'(),;=:' '\n' |
    grep -E '^(\./)?(kernels|parallel|data|model|trainer|launch|configs|tests|docs|tools|bench|\.ci)/[][A-Za-z0-9_.*/-]+$' |
    sed -E 's/\.$//' | sort -u)
}

# build/lapidary WORD [WORD] --option ...: the words are subcommands as long as they are plain lower-case words.
check_program_line() {
  local document=$1 words=() subcommand=() word help
  read -ra words <<<"$2"
  for word in "${words[@]}"; do
    [[ $word =~ ^[a-z]+$ ]] || break
    subcommand+=("$word")
  done
  if ! help=$("$program" "${subcommand[@]}" --help 2>&1); then
    complain "$document" "lapidary ${subcommand[*]} --help fails: ${help:0:200}"
    return
  fi
  for word in "${words[@]:${#subcommand[@]}}"; do
    word=${word%%=*}
    if [[ $word =~ ^--?[a-z] ]] && ! grep -qE -e "(^|[^a-z-])$word([^a-z-]|$)" <<<"$help"; then
      complain "$document" "lapidary ${subcommand[*]} does not know $word"
    fi
  done
}

check_commands() {
  local line command known
  known=' git cd mpirun srun sbatch scancel cmake ctest less tail head h5ls h5dump python3 sudo grep export sed printf ls cat '
  while read -r line; do
    [[ $line =~ ^(sudo )?([A-Z_0-9]+=[^ ]*\ )*([^ ]+) ]]
    command=${BASH_REMATCH[3]}
    if [[ $command == build/lapidary ]]; then :
    elif [[ $command == */* ]]; then [[ -x $command ]] || complain "$1" "runs $command: not an executable file"
    elif [[ $known != *" $command "* ]]; then complain "$1" "runs $command: unknown command (tools/check_docs.sh lists the known)"
    fi
    if [[ -n $program && $line =~ build/lapidary\ (.*)$ ]]; then
      check_program_line "$1" "${BASH_REMATCH[1]%%[|>#]*}"
    fi
  done < <(awk '/^```/ { block = !block && /^```sh/; next } block' "$1" |
    sed -e ':more' -e '/\\$/{N;s/\\\n */ /;b more' -e '}' -e 's/^ *\$ *//' -e '/^ *#/d' -e '/^ *$/d')
}

for document in "${documents[@]}"; do
  check_links "$document"
  check_paths "$document"
  check_commands "$document"
done
if ((errors)); then
  echo "check_docs: $errors errors" >&2
  exit 1
fi
echo "check_docs: ${#documents[@]} documents"
