#!/usr/bin/env bash
# install_test.sh BUILD: what `cmake --install` puts under a prefix runs from there, with the libraries it was built with.
set -euo pipefail
build=$1
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$build" --prefix "$prefix" >/dev/null
cd /
diff <("$build/lapidary" --version) <("$prefix/bin/lapidary" --version)
[[ $(find "$prefix" -type f) == "$prefix/bin/lapidary" ]]
echo "installed and run from $prefix"
