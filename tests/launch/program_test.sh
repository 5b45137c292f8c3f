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
expect 1 'lapidary: lapidary config check: unknown option --sett; did you mean --set?' "$program" config check --sett a=1

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
expect 0 '«12 + 3 = 15' "$program" data show g/train --row 0 --sequence-length 512 --tokenizer bytes
expect 0 'million/s' "$program" bench data g/train --sequence-length 512 --seconds 0.05
expect 0 'image and' "$program" bench data --size 10MB --seconds 0.05 --keep made
expect 0 'manifest.json' ls made/sounds

expect 0 'full layer' "$program" bench attention --tokens 24 --rounds 1 --device cpu
expect 1 '--tokens: 0 is out of range' "$program" bench attention --tokens 0
small=(bench loss --tokens 24 --scratch 1 --vocabulary 1003 --width 24 --rounds 1 --device cpu)
expect 0 'Errors against float32' "$program" "${small[@]}" --errors --error-tokens 16
expect 0 'one GPU alone' "$root/tests/mpirun.sh" 2 "$program" "${small[@]}"

# Turkish: dotless i, decimal comma. A locale that does not exist is no trouble either.
for locale in tr_TR.UTF-8 nowhere C; do
  expect 0 'lr: 0.00015' env LC_ALL="$locale" LANG="$locale" "$program" config show -c run.yaml
  expect 1 'did you mean optimizer.lr?' env LC_ALL="$locale" "$program" config check -c typo.yaml
done

# What is shown reads back to itself.
"$program" config show -c run.yaml >shown.yaml
"$program" config show -c shown.yaml | cmp - shown.yaml || failures=$((failures + 1))
"$program" config show --changed -c run.yaml >changed.yaml
"$program" config show -c changed.yaml | cmp - shown.yaml || failures=$((failures + 1))

((failures == 0)) && echo "all as expected"
exit $((failures > 0))
