#!/usr/bin/env bash
# quickstart.sh: from a clone to a trained small model, on the CPU, in under ten minutes on two cores. Installs the
# packages that are missing, builds, turns configs/sample into shards, trains on two ranks, is interrupted as a
# scheduler would do it, goes on with three ranks, evaluates, and checks that both losses fell. Starts over when it is
# run again: runs/quickstart is its own folder.
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/quickstart
config=configs/quickstart.yaml
cores=$(nproc)
started=$SECONDS

section() { printf '\n=== %s  [%d:%02d]\n' "$1" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)); }
fail() {
  printf '\nquickstart: %s\n' "$1" >&2
  exit 1
}
# Shows a command as a user would type it, then runs it.
show() {
  printf '$ %s\n' "$*"
  "$@"
}
# Like show, for commands whose output is of interest only when they fail.
quietly() {
  local log=$1
  shift
  printf '$ %s\n' "$*"
  if ! "$@" >>"$log" 2>&1; then
    tail -n 40 "$log" >&2
    fail "this failed: $*  (all of its output: $log)"
  fi
}

# Ranks share the cores; Open MPI by itself refuses more ranks than cores, and root, which containers run as.
ranks() {
  export OMP_NUM_THREADS=$((cores > $1 ? cores / $1 : 1))
}
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_vader_single_copy_mechanism=none  # needs a right that containers lack
export OMPI_MCA_orte_execute_quiet=1  # no page of text when ranks end with exit code 75
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

section "Packages"
launch/install_dependencies.sh

section "Build"
mkdir -p build
configure=(cmake --preset release)
# A compiler newer than ours may know new warnings; they are no reason to stop here.
[[ -f build/CMakeCache.txt ]] || configure+=(-DLAPIDARY_WERROR=OFF)
: >build/quickstart.log
quietly build/quickstart.log "${configure[@]}"
quietly build/quickstart.log cmake --build build --target lapidary -j "$cores"

section "Data: text, pictures and sounds to shards"
rm -rf "$run"
show build/lapidary data build --input configs/sample/sample.jsonl --output "$run/data" --tokenizer bytes \
  --image-tokens 4 --validation 0.08
show build/lapidary data verify "$run/data/train"

section "Training on 2 ranks, until it is interrupted"
ranks 2
status=0
show mpirun -n 2 build/lapidary train -c "$config" --set run.stop_after=45s || status=$?
# 75: stopped before the end, after a save. 0: this machine was done before that.
((status == 75 || status == 0)) || fail "training ended with exit code $status (docs/errors.md)"

section "The same run goes on with 3 ranks"
ranks 3
show mpirun -n 3 build/lapidary train -c "$config"

section "Evaluation"
ranks 2
show mpirun -n 2 build/lapidary eval -c "$config"

section "Result"
metrics=$run/metrics.jsonl
for file in "$metrics" "$run/loss.svg"; do
  [[ -s $file ]] || fail "$file is missing"
done
# value KEY first|last: of the lines of metrics.jsonl that have the key.
value() {
  local all
  all=$(sed -nE "s/.*\"$1\": ?([-+0-9.eE]+).*/\1/p" "$metrics")
  # Not head: a reader that leaves early would end the writer, and with it this script.
  case $2 in first) echo "${all%%$'\n'*}" ;; last) echo "${all##*$'\n'}" ;; esac
}
fell() {  # KEY NAME: prints both ends; fails unless the loss fell by a third
  local first last
  first=$(value "$1" first)
  last=$(value "$1" last)
  [[ -n $first && -n $last ]] || fail "$metrics has no $1"
  printf '%-14s %6.3f -> %6.3f nats a token\n' "$2" "$first" "$last"
  awk -v first="$first" -v last="$last" 'BEGIN { exit !(last < first * 2 / 3) }' ||
    fail "the $2 did not fall clearly"
}
fell loss "training loss"
fell validation_loss "held-out loss"
checkpoint=$(find "$run" -type d -name 'step-*' | sort -V | tail -n 1)
[[ -n $checkpoint ]] || fail "no checkpoint under $run"
cat <<EOF

The run's folder   $run
  every step       $metrics
  loss curve       $run/loss.svg
  checkpoint       $checkpoint
Next: your own data, in README.md.
EOF
section "Done"
