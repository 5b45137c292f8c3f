#!/usr/bin/env bash
# checkpoint_size.sh BUILD FOLDER LAYERS STATE_LAYERS RANKS: checkpoints of the 12B's real tensors in FOLDER, which is
# emptied of what it made. At a depth of LAYERS (a multiple of 6; 48 is all): a Hugging Face folder, import, verify and
# export. At STATE_LAYERS: a whole training state, saved, resumed and verified. Each with rate and memory, dd on the
# same disk before each, and without the help of what the system keeps of files in memory. Takes 2 x 2 bytes a
# parameter of disk, then 14. Run by hand: it writes tens of gigabytes.
set -euo pipefail
build=$1 folder=$2 layers=$3 state_layers=$4 ranks=$5
source=$(realpath "$(dirname "$0")/../..")
size=$build/tests/trainer/checkpoint_size
run() { "$source/tests/mpirun.sh" "$ranks" "$@"; }
mkdir -p "$folder"
trap 'rm -rf "$folder"/{config.json,source,imported,exported,saved,block,dd,dd2,before,after}' EXIT  # what this makes, no more

config() {
  sed "s/\"num_hidden_layers\": 48/\"num_hidden_layers\": $1/; /\"layer_types\"/,/\]/d" \
    "$source/configs/models/gemma4-12b.json" >"$folder/config.json"
}
# Files are read from the disk again, not from memory.
forget() { find "$@" -type f -exec dd if={} iflag=nocache count=0 status=none \; ; }
# rates: what dd reaches on 2 GiB: writing, reading, and copying, which is both at once.
rates() {
  local said
  said() { sed -n 's/.*copied, //p' <<<"$1"; }
  cat "$folder/block" >/dev/null  # in memory: only the writing is measured
  said=$(dd if="$folder/block" of="$folder/dd" bs=8M conv=fsync 2>&1)
  printf 'dd writes %s' "$(said "$said")"
  forget "$folder/dd"
  said=$(dd if="$folder/dd" of=/dev/null bs=8M 2>&1)
  printf '; reads %s' "$(said "$said")"
  forget "$folder/dd"
  said=$(dd if="$folder/dd" of="$folder/dd2" bs=8M conv=fsync 2>&1)
  printf '; copies %s\n' "$(said "$said")"
  rm "$folder"/dd "$folder"/dd2
}
# timed NAME BYTES COMMAND...: seconds and rate; the command prints its memory.
timed() {
  local name=$1 bytes=$2 start end
  shift 2
  start=$(date +%s.%N)
  "$@"
  end=$(date +%s.%N)
  awk -v n="$name" -v b="$bytes" -v s="$start" -v e="$end" \
    'BEGIN { printf "%s: %.2f GB, %.1f s, %.0f MB/s\n", n, b / 1e9, e - s, b / 1e6 / (e - s) }'
}
head -c $((2 << 30)) /dev/urandom >"$folder/block"  # a disk may treat zeros in a way of its own
sync "$folder/block"
memory=(/usr/bin/time -f '  %M KiB')

config "$layers"
run "$size" make "$folder/config.json" "$folder/source"
"$size" list "$folder/source" >"$folder/before"
bytes=$(du -cb "$folder"/source/*.safetensors | tail -1 | cut -f1)
forget "$folder/source"
rates
timed import "$bytes" run "${memory[@]}" "$build/lapidary" checkpoint import "$folder/source" -o "$folder/imported"
# The rest of the source stays: names of files and the tensors in them, but not their values.
for file in "$folder"/source/*.safetensors; do
  header=$((8 + $(od -An -tu8 -N8 "$file")))
  full=$(stat -c %s "$file")
  truncate -s "$header" "$file"
  truncate -s "$full" "$file"
done
forget "$folder/imported"
rates
timed verify "$bytes" "${memory[@]}" "$build/lapidary" checkpoint verify "$folder/imported"
forget "$folder/imported"
rates
timed export "$bytes" run "${memory[@]}" "$build/lapidary" checkpoint export "$folder/imported" -o "$folder/exported"
rm -rf "$folder/imported"
"$size" list "$folder/exported" >"$folder/after"
diff "$folder/before" "$folder/after"
echo "the export is the source, byte for byte"
rm -rf "$folder"/{source,exported}

config "$state_layers"
rates
run "$size" save "$folder/config.json" "$folder/saved"
forget "$folder/saved"
rates
run "$size" resume "$folder/config.json" "$folder/saved"
forget "$folder/saved"
rates
bytes=$(du -cb "$folder"/saved/step-*/*.h5 | tail -1 | cut -f1)
timed verify "$bytes" "${memory[@]}" "$build/lapidary" checkpoint verify "$folder/saved"
