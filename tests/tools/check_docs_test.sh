#!/usr/bin/env bash
# Runs tools/check_docs.sh in a small repository with one fault at a time, and against a program with a known --help.
set -euo pipefail
source=$(realpath "$(dirname "$0")/../../tools/check_docs.sh")
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{tools,docs,configs,build}
cp "$source" "$tree/tools/"
git -C "$tree" init -q
echo text >"$tree/docs/there.md"
touch "$tree/configs/run.yaml"
cat >"$tree/build/lapidary" <<'PROGRAM'
#!/bin/sh
[ "$1 $2" = "train --help" ] && echo "  -c [ --config ] FILE   the run
  --set KEY=VALUE" && exit 0
echo "lapidary: unknown command $1"; exit 1
PROGRAM
chmod +x "$tree/build/lapidary"

expect() {  # TEXT of README.md, MESSAGE expected ('' for none), [PROGRAM]
  printf '%s\n' "$1" >"$tree/README.md"
  local output status=0
  output=$("$tree/tools/check_docs.sh" ${3:+"$3"} 2>&1) || status=$?
  if [[ -z $2 && $status != 0 ]] || [[ -n $2 && $status == 0 ]] || ! grep -qF -e "$2" <<<"$output"; then
    printf 'for:\n%s\nexpected: %s\ngot: %s\n' "$1" "${2:-success}" "$output"
    exit 1
  fi
}
block() { printf '%s\n' '```sh' "$1" '```'; }
program=$tree/build/lapidary

expect "See [there](docs/there.md#part) and \`configs/run.yaml\`, \`configs/*.yaml\`." ''
expect 'See [gone](docs/gone.md).' 'link to docs/gone.md'
expect "Edit \`configs/gone.yaml\`." 'names configs/gone.yaml'
expect "$(block 'launch/gone.sh')" 'runs launch/gone.sh'
expect "$(block 'frobnicate --now')" 'runs frobnicate'
expect "$(block 'mpirun -n 2 build/lapidary train -c configs/run.yaml --set a=1')" '' "$program"
expect "$(block 'build/lapidary train --conf x')" 'does not know --conf' "$program"
expect "$(block 'A=1 build/lapidary fly')" 'lapidary fly --help fails' "$program"
echo "check_docs: all faults found"
