#!/usr/bin/env bash
# check_scripts.sh: shellcheck over every tracked shell script, found by its first line, and the executable bit.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t scripts < <(git grep -lIE -e '^#!.*\b(bash|sh)\b' | while read -r file; do
  head -n 1 "$file" | grep -qE '^#!.*\b(bash|sh)\b' && echo "$file"
done)
shellcheck --external-sources "${scripts[@]}"
failed=0
for script in "${scripts[@]}"; do
  if [[ $script != *.sbatch && ! -x $script ]]; then
    echo "$script: starts with #! but is not executable" >&2
    failed=1
  fi
done
((failed)) || echo "check_scripts: ${#scripts[@]} scripts"
exit "$failed"
