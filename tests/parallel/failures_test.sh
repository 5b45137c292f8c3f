#!/usr/bin/env bash
# failures_test.sh PROGRAM: how a job of three ranks ends in every way that one can: with which exit code, which
# messages, how soon, and with nobody left behind.
set -euo pipefail
program=$1
mpirun=$(dirname "$0")/../mpirun.sh

# expect CODE LONGEST-SECONDS 'LINES' ARGUMENTS...: the lines are all that the ranks themselves print, sorted.
expect() {
  local code=$1 longest=$2 lines=$3
  shift 3
  local output status=0 begin=$SECONDS
  output=$(OMPI_MCA_orte_execute_quiet=1 timeout 60 "$mpirun" 3 "$program" "$@" 2>&1) || status=$?
  local seconds=$((SECONDS - begin))
  if [[ $status != "$code" || $(sort <<<"$output") != "$lines" ]] || ((seconds > longest)); then
    printf '%s: exit code %s after %s s, expected %s within %s s\n%s\nexpected:\n%s\n' \
      "$*" "$status" "$seconds" "$code" "$longest" "$output" "$lines"
    exit 1
  fi
  if pgrep -f "^$program $*" >/dev/null; then
    echo "$*: a rank is still running"
    exit 1
  fi
  echo "$*: exit code $status after $seconds s"
}

host=$(uname -n)
export HWLOC_HIDE_ERRORS=2  # as in mpirun.sh, for one process
expect 0 10 "rank 0 of 3, 0 of at least 3 on $host
rank 1 of 3, 1 of at least 3 on $host
rank 2 of 3, 2 of at least 3 on $host" place
expect 1 10 'run.yaml:3:1: no such key' all
expect 76 10 'rank 0: shard-0.h5: truncated
rank 1: shard-1.h5: truncated
rank 2: shard-2.h5: truncated' each
expect 75 10 '' code
expect 77 10 'rank 2: shard-7.h5: truncated' one 2
expect 76 10 'rank 1: metrics.jsonl: no space left' one-after-the-others-are-done 1
expect 76 10 'rank 0: gave up' hangs 1
expect 137 10 '' killed 1
expect 77 10 'rank 1: layer 3: not finite' under-way 1
expect 77 10 'layer 3: not finite' under-way -1

# One process, and as a Slurm task that cannot find the others.
alone() {  # CODE LINE ARGUMENTS...
  local output status=0
  output=$("$program" "${@:3}" 2>&1) || status=$?
  if [[ $status != "$1" || $output != "$2" ]]; then
    printf '%s: exit code %s, expected %s: %s\n' "${*:3}" "$status" "$1" "$output"
    exit 1
  fi
}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
alone 0 "rank 0 of 1, 0 of at least 1 on $host" place
alone 1 'run.yaml:3:1: no such key' all
refusal="this process is one of 2 Slurm tasks, but MPI cannot find the others: use \`srun --mpi=pmix\` or mpirun"
SLURM_NTASKS=2 alone 1 "$refusal" place
SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=2 alone 1 "$refusal" place
SLURM_NTASKS=1 alone 0 "rank 0 of 1, 0 of at least 1 on $host" place
echo "failures: every job ended as it should"
