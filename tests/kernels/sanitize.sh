#!/usr/bin/env bash
# sanitize.sh BUILD memcheck|racecheck|initcheck|synccheck [JOBS]: everything of a build's tests that computes on the GPU,
# under a tool of compute-sanitizer: the table of operations and the scenes of attention in parts, the loss head,
# collectives of two ranks that share the GPU, and training steps of one rank and of two. Up to JOBS (8) of them run at
# once: CUDA has room for about twelve processes. Prints a line for each and a total; exits with 1 if anything was
# reported, failed, took longer than LIMIT seconds (900) or ran no test.
#
# COMPUTE_SANITIZER names the tool, SANITIZE_LOGS a folder for what it prints, SANITIZE_ONLY a pattern of the jobs to run,
# PARTS how many parts (JOBS). On 16 cores and an H200 memcheck of the table takes one minute, racecheck five. racecheck
# wants a version of 2026.4 or later: see CONTRIBUTING.md.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "${1:?a build folder}" && pwd)
tool=${2:?memcheck, racecheck, initcheck or synccheck}
at_once=${3:-8}
limit=${LIMIT:-900}
parts=${PARTS:-$at_once}
sanitizer=${COMPUTE_SANITIZER:-compute-sanitizer}
logs=${SANITIZE_LOGS:-$(mktemp -d)}
mkdir -p "$logs"

export LAPIDARY_TEST_DEVICE=cuda GTEST_COLOR=no OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
watched=("$sanitizer" --tool "$tool" --error-exitcode 99)
scenes='-*_2500:*_32768'
if [[ $tool == racecheck ]]; then
  version=$("$sanitizer" --version | sed -nE 's/^Version ([0-9]+)\.([0-9]+).*/\1\2/p')
  if ((version < 20264)); then
    echo "sanitize.sh: racecheck needs compute-sanitizer 2026.4 or later, see CONTRIBUTING.md" >&2
    exit 1
  fi
  # Races in the libraries' kernels are not ours, and following their shared memory takes most of the time. Where a warp
  # brings tokens and others read them, this racecheck reports every order (CONTRIBUTING.md).
  watched+=(--kernel-name kns=lapidary --kernel-name-exclude kns=qkv_norm_rope_backward --racecheck-num-workers 2)
  scenes='*_1:*_63'  # longer ones take minutes
fi

sed 's/"head_dim": 16/"head_dim": 256/; s/"global_head_dim": 32/"global_head_dim": 512/' \
  "$root/tests/launch/tiny-model.json" >"$logs/model.json"
cat >"$logs/step.yaml" <<EOF
run: {directory: $logs/out, device: cuda, precision: bf16}
model: {config: $logs/model.json}
data: {train: $logs/none, sequence_length: 256}
train: {steps: 2, rows_per_step: 2}
EOF
step=("$build/lapidary" bench step -c "$logs/step.yaml" --warmup 0 --steps 2 --no-profile)

# run NAME COMMAND...: one job; its line goes to standard output, its count of tests and reports to NAME.count.
run() {
  local name=$1 log=$logs/$1.txt begin=$SECONDS code=0 tests reports
  shift
  timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null || code=$?
  tests=$(grep -cE '^\[ +OK \]|^median of|^ *[0-9.]+ s: ' "$log") || true
  # Every watched process ends with a summary; without one the tool itself has failed.
  reports=$(sed -nE 's/.*(ERROR|RACECHECK) SUMMARY: ([0-9]+) .*/\2/p' "$log" | awk '{ n += $1 } END { print NR ? n : "no summary:" }')
  printf '%s %s: %s tests, %s reports, exit code %d, %d s\n' "$tool" "$name" "$tests" "$reports" "$code" \
    $((SECONDS - begin))
  [[ $code == 0 && $reports == 0 ]] || grep -E '^=+ (Error|Invalid|Internal|Warning|Race|Uninit)|FAILED  \]' "$log" | sort |
    uniq -c | sort -rn | head -n 5 | cut -c 1-400 || true
  echo "$tests $reports $code" >"$logs/$name.count"
}

# start NAME COMMAND...: as soon as fewer than `at_once` are running.
start() {
  [[ -z ${SANITIZE_ONLY:-} || $1 =~ $SANITIZE_ONLY ]] || return 0
  while (($(jobs -rp | wc -l) >= at_once)); do wait -n || true; done
  run "$@" &
}

rm -f "$logs"/*.count
start step-2 "$root/tests/mpirun.sh" 2 "${watched[@]}" "${step[@]}"
start step-1 "${watched[@]}" "${step[@]}"
[[ $tool == racecheck ]] || start collectives "$root/tests/mpirun.sh" 2 "${watched[@]}" "$build/tests/parallel/parallel_gpu_program"
start loss-head "$root/tests/mpirun.sh" 2 "${watched[@]}" "$build/tests/model/test_model_loss_head" \
  --gtest_filter=*OnAGpu
export GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX
for ((GTEST_SHARD_INDEX = 0; GTEST_SHARD_INDEX < parts; ++GTEST_SHARD_INDEX)); do
  start "ops-$GTEST_SHARD_INDEX" "${watched[@]}" "$build/tests/kernels/test_kernels_ops" \
    --gtest_filter=-*EqualsFiniteDifferences*
done
for ((GTEST_SHARD_INDEX = 0; GTEST_SHARD_INDEX < parts; ++GTEST_SHARD_INDEX)); do
  start "attention-$GTEST_SHARD_INDEX" "${watched[@]}" "$build/tests/kernels/test_kernels_attention_cuda" \
    "--gtest_filter=$scenes"
done
wait

cat "$logs"/*.count | awk -v tool="$tool" '
  { tests += $1; reports += $2; bad += $1 == 0 || $2 != "0" || $3 != 0 }
  END {
    printf "%s: %d jobs, %d tests, %d reports, %d jobs that reported, failed or tested nothing\n", tool, NR, tests,
      reports, bad
    exit !(NR > 0 && bad == 0)
  }'
