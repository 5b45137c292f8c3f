#!/usr/bin/env bash
# commit_test.sh SOURCE: the commit that a build records follows the tree, and a tree that did not change builds nothing.
set -euo pipefail
script=$1/kernels/commit.cmake
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "commit_test: $1; the header: $(cat "$work/commit.h")" >&2
  exit 1
}
write() { cmake -D SOURCE="$work/tree" -D HEADER="$work/commit.h" -P "$script"; }
git() { command git -C "$work/tree" -c user.name=t -c user.email=t@t "$@"; }
says() { grep -qF "kCommit = \"$1\";" "$work/commit.h" || fail "expected $1"; }

mkdir "$work/tree"
GIT_CEILING_DIRECTORIES=$work write
says ""
git init -q
echo 1 >"$work/tree/file"
git add file
git commit -qm one
write
says "$(git rev-parse --short HEAD)"
touch -d 2020-01-01 "$work/commit.h"
write
[[ $(date -r "$work/commit.h" +%Y) == 2020 ]] || fail "written again without a change"
echo 2 >"$work/tree/file"
write
says "$(git rev-parse --short HEAD)-dirty"
git commit -qam two
write
says "$(git rev-parse --short HEAD)"
echo passed
