#!/usr/bin/env bash
# program_test.sh PROGRAM: the program as a user meets it: output, messages, exit codes, whatever the locale.
set -uo pipefail
program=$1
root=$(realpath "$(dirname "$0")/../..")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
failures=0

# expect CODE TEXT COMMAND...: the exit code, and TEXT somewhere in what is printed.
expect() {
  local code=$1 text=$2 output status
  shift 2
  output=$("$@" 2>&1)
  status=$?
  if ((status != code)) || ! grep -qF -- "$text" <<<"$output"; then
    printf 'FAILED: %s\n  expected code %d and: %s\n  got code %d and: %s\n' "$*" "$code" "$text" "$status" "$output"
    failures=$((failures + 1))
  fi
}

cat >run.yaml <<'EOF'
run:
  directory: out
model:
  config: config.json
data:
  train: shards
train:
  steps: 1.5K
optimizer:
  lr: 1.5e-4
EOF
sed 's/  lr: /  learning_rte: /' run.yaml >typo.yaml

expect 0 'config check' "$program" --help
expect 0 'HDF5' "$program" --version
expect 1 'lapidary: no command' "$program"
expect 1 'lapidary: unknown command confg; did you mean config?' "$program" confg
expect 0 '--set KEY=VALUE' "$program" config check --help
expect 0 'run.yaml: correct' "$program" config check -c run.yaml
expect 0 'lr: 0.00015' "$program" config show -c run.yaml
expect 0 'lr: 0.02' "$program" config show -c run.yaml --set optimizer.lr=0.02
expect 0 'steps: 1500' "$program" config show --changed -c run.yaml
expect 0 'lr: 0.00015' "$program" config check --dump-config -c run.yaml
expect 1 'lapidary: typo.yaml:10:3: optimizer.learning_rte: unknown key; did you mean optimizer.lr?' \
  "$program" config check -c typo.yaml
expect 1 'lapidary: cannot open none.yaml: No such file or directory' "$program" config check -c none.yaml
expect 1 'lapidary config check: unknown option --sett; did you mean --set?' "$program" config check --sett a=1

for config in "$root"/configs/*.yaml; do
  expect 0 "$config: correct" env MODEL=/models "$program" config check -c "$config"
done

# GSM8K's files become shards, and a loader is measured on them and on data of its own.
cat >gsm8k.jsonl <<'EOF'
{"question": "A dozen eggs and 3 more?", "answer": "12 + 3 = <<12+3=15>>15\n#### 15"}
{"question": "Half of 9?", "answer": "9 / 2 = <<9/2=4.5>>4.5\n#### 4.5"}
EOF
expect 1 'gsm8k.jsonl:1: expected exactly one of' "$program" data build --input gsm8k.jsonl --output g --tokenizer bytes
rm -rf g.building
expect 0 'train: 2 documents' "$program" data build --form gsm8k --input gsm8k.jsonl --output g --tokenizer bytes
expect 0 '«12 + 3 = 15' "$program" data show g/train --row 0 --sequence-length 512
expect 1 'g: holds no manifest.json: not a data set, or one whose build did not finish; g/train is one' "$program" data inspect g
expect 1 'lapidary: cannot create folder /proc/x.building: No such file or directory' \
  "$program" data build --form gsm8k --input gsm8k.jsonl --output /proc/x --tokenizer bytes
expect 0 'million/s' "$program" bench data g/train --sequence-length 512 --seconds 0.05
expect 0 'image and' "$program" bench data --size 10MB --seconds 0.05 --keep made
expect 0 'manifest.json' ls made/sounds

expect 0 'full layer' "$program" bench attention --tokens 24 --rounds 1 --device cpu
expect 1 '--tokens: 0 is out of range' "$program" bench attention --tokens 0
small=(bench loss --tokens 24 --scratch 1 --vocabulary 1003 --width 24 --rounds 1 --device cpu)
expect 0 'Errors against float32' "$program" "${small[@]}" --errors --error-tokens 16
expect 0 'one GPU alone' "$root/tests/mpirun.sh" 2 "$program" "${small[@]}"

# Benchmarks of a configuration: every figure is a number above 0, and one beside its floor.
cat >tiny.yaml <<EOF
run: {directory: out, device: cpu, precision: float32}
model: {config: $root/tests/launch/tiny-model.json}
data: {train: shards, sequence_length: 256}
train: {steps: 1, rows_per_step: 2}
EOF
# figures COLUMNS PATTERN COMMAND...: at least one line with PATTERN, and the last COLUMNS words of each are above 0.
figures() {
  local columns=$1 pattern=$2 output
  shift 2
  output=$("$@" 2>&1)
  if ! awk -v columns="$columns" -v pattern="$pattern" '
    $0 ~ pattern { ++lines; for (i = NF - columns + 1; i <= NF; ++i) { sub("%$", "", $i); if (!($i + 0 > 0)) bad = 1 } }
    END { exit !(lines > 0 && !bad) }' <<<"$output"; then
    printf 'FAILED: %s\n  no figures behind: %s\n%s\n' "$*" "$pattern" "$output"
    failures=$((failures + 1))
  fi
}
# One thread: two that wait for each other on a busy machine take a time slice for every operation.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
figures 4 '^MatMul (forward|input gradient|weight gradient)' "$program" bench gemm -c tiny.yaml --rounds 1
figures 3 '^all of a step' "$program" bench gemm -c tiny.yaml --rounds 1
figures 5 '^(AdamW|GeGlu|all of them) ' "$program" bench ops -c tiny.yaml --rounds 1
expect 0 'a copy of' "$program" bench ops -c tiny.yaml --rounds 1 --set run.precision=bf16
expect 0 'nothing is communicated' "$program" bench comm -c tiny.yaml
figures 3 '^(all-gather|reduce-scatter) .*layer' "$root/tests/mpirun.sh" 2 "$program" bench comm -c tiny.yaml --rounds 1 --rates rates
figures 3 '^all-reduce .*layer' "$root/tests/mpirun.sh" 2 "$program" bench comm -c tiny.yaml --rounds 1 --set parallel.shard=1
figures 1 '^AdamW ' "$program" bench step -c tiny.yaml --steps 1 --warmup 0 --rates rates
expect 0 'exposed communication: 0.000 ms a step = 0.00 %' "$program" bench step -c tiny.yaml --steps 1 --warmup 0
two_ranks=("$root/tests/mpirun.sh" 2 "$program" bench step -c tiny.yaml --warmup 0)
figures 1 '^exposed communication: .* gather .* reduce .* vocabulary ' "${two_ranks[@]}" --steps 2 --no-profile
expect 0 'waits for slower ranks: ' "${two_ranks[@]}" --steps 1 --no-profile
figures 2 '^waits for communication: (gather|reduce|vocabulary) ' "${two_ranks[@]}" --steps 1
for bench in gemm ops comm; do
  expect 1 '--rounds: 0 is out of range' "$program" bench "$bench" -c tiny.yaml --rounds 0
  expect 1 'cannot open none.yaml' "$program" bench "$bench" -c none.yaml
done

# A plan with a forecast from what was just measured on this CPU, and from the cards' own rates.
figures 2 '^forecast: ms a step' "$program" plan -c tiny.yaml --ranks 1,2 --rates rates --card CPU
expect 0 'forecast: 1 steps' "$program" plan -c tiny.yaml --ranks 1,2 --rates rates --card CPU
expect 0 'a checkpoint on disk, all ranks' "$program" plan -c tiny.yaml
expect 0 'rows of 256 that fit' "$program" plan -c tiny.yaml --ranks 1 --memory 1GiB
figures 3 '^forecast: ms a step' "$program" plan -c tiny.yaml --ranks 1,2,8 --card H200 --set run.precision=bf16
expect 0 'more than a node' "$program" plan -c tiny.yaml --ranks 1,16 --card H200 --set run.precision=bf16
expect 1 'no measured rates; there are some of' "$program" plan -c tiny.yaml --card A100
expect 1 'none: No such file' "$program" plan -c tiny.yaml --rates none

# Turkish: dotless i, decimal comma. A locale that does not exist is no trouble either.
for locale in tr_TR.UTF-8 nowhere C; do
  expect 0 'lr: 0.00015' env LC_ALL="$locale" LANG="$locale" "$program" config show -c run.yaml
  expect 1 'did you mean optimizer.lr?' env LC_ALL="$locale" "$program" config check -c typo.yaml
done

# What a configuration names is opened as a run would open it, and everything that is not there is said at once.
cat >named.yaml <<EOF
run: {directory: out, precision: float32}
model: {config: $root/configs/models/quickstart.json}
data: {train: g/train, sequence_length: 512}
train: {steps: 1}
EOF
expect 0 'data.train: 2 documents, ' "$program" config check --files -c named.yaml
expect 0 'named.yaml: correct' "$program" config check --files -c named.yaml
named=("$program" config check --files -c named.yaml --set model.weights=nothing --set data.train=g)
expect 1 'lapidary: 2 errors in what the configuration names:' "${named[@]}"
expect 1 '  model.weights: cannot open nothing: No such file or directory' "${named[@]}"
expect 1 '  data.train: g: holds no manifest.json' "${named[@]}"
expect 1 'model.config: cannot open ' "$program" config check --files -c named.yaml --set model.config=none.json
expect 1 "vocabulary 288, the model's configuration has vocabulary" "$program" config check --files -c named.yaml \
  --set model.config="$root/configs/models/gemma4-12b.json"

# What is shown reads back to itself.
"$program" config show -c run.yaml >shown.yaml
"$program" config show -c shown.yaml | cmp - shown.yaml || failures=$((failures + 1))
"$program" config show --changed -c run.yaml >changed.yaml
"$program" config show -c changed.yaml | cmp - shown.yaml || failures=$((failures + 1))

((failures == 0)) && echo "all as expected"
exit $((failures > 0))
