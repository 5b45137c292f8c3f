#!/usr/bin/env bash
# check_format.sh [--fix]: compares every tracked C++ and CUDA source with what clang-format 14 makes of it
# (.clang-format); --fix rewrites the files instead. Other versions format differently, so 14 is asked for by name.
set -euo pipefail
cd "$(dirname "$0")/.."

formatter=$(command -v clang-format-14 || true)
if [[ -z $formatter ]]; then
  echo "check_format: clang-format-14 is missing; launch/install_dependencies.sh --dev installs it" >&2
  exit 1
fi
mapfile -t sources < <(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
if [[ ${1:-} == --fix ]]; then
  "$formatter" -i "${sources[@]}"
  exit
fi
if ! "$formatter" --dry-run -Werror "${sources[@]}"; then
  echo "check_format: tools/check_format.sh --fix repairs this" >&2
  exit 1
fi
echo "check_format: ${#sources[@]} files"
