#!/usr/bin/env bash
# checkpoint_size.sh BUILD FOLDER LAYERS RANKS: checkpoints of the 12B's real tensors at this depth (a multiple of 6, or 48)
# in FOLDER, which is emptied of what it made: Hugging Face folder, import, verify, export, comparison, then a whole
# training state saved and resumed, each with rate and memory, and dd on the same disk before and after. Takes
# 3 x 2 bytes a parameter of disk, then 14. Run by hand: it writes tens of gigabytes.
set -euo pipefail
build=$1 folder=$2 layers=$3 ranks=$4
source=$(realpath "$(dirname "$0")/../..")
run() { "$source/tests/mpirun.sh" "$ranks" "$@"; }
mkdir -p "$folder"
trap 'rm -rf "$folder"/{config.json,source,imported,exported,saved,dd}' EXIT  # what this script makes, no more
sed "s/\"num_hidden_layers\": 48/\"num_hidden_layers\": $layers/; /\"layer_types\"/,/\]/d" \
  "$source/configs/models/gemma4-12b.json" >"$folder/config.json"

disk() {
  printf 'dd writes: %s\n' "$(dd if=/dev/zero of="$folder/dd" bs=8M count="$1" conv=fsync 2>&1 | tail -1)"
  printf 'dd reads:  %s\n' "$(dd if="$folder/dd" of=/dev/null bs=8M iflag=direct 2>&1 | tail -1)"
  rm "$folder/dd"
}
# timed NAME BYTES COMMAND...: seconds, rate, and the largest process.
timed() {
  local name=$1 bytes=$2 start end
  shift 2
  start=$(date +%s.%N)
  "$@"
  end=$(date +%s.%N)
  awk -v n="$name" -v b="$bytes" -v s="$start" -v e="$end" \
    'BEGIN { printf "%s: %.2f GB, %.1f s, %.0f MB/s\n", n, b / 1e9, e - s, b / 1e6 / (e - s) }'
}

disk 256
run "$build/tests/trainer/checkpoint_size" make "$folder/config.json" "$folder/source"
disk 256  # again between the phases: other users of the disk come and go
bytes=$(du -cb "$folder"/source/*.safetensors | tail -1 | cut -f1)
timed import "$bytes" run /usr/bin/time -f '  %M KiB' "$build/lapidary" checkpoint import "$folder/source" -o "$folder/imported"
timed verify "$bytes" /usr/bin/time -f '  %M KiB' "$build/lapidary" checkpoint verify "$folder/imported"
timed export "$bytes" run /usr/bin/time -f '  %M KiB' "$build/lapidary" checkpoint export "$folder/imported" -o "$folder/exported"
disk 256
for file in "$folder"/source/*; do cmp "$file" "$folder/exported/$(basename "$file")"; done
echo "the export is the source, byte for byte"
rm -rf "$folder"/{source,imported,exported}
run "$build/tests/trainer/checkpoint_size" save "$folder/config.json" "$folder/saved"
disk 256
run "$build/tests/trainer/checkpoint_size" resume "$folder/config.json" "$folder/saved"
/usr/bin/time -f '  %M KiB' "$build/lapidary" checkpoint verify "$folder/saved" | tail -1
disk 256
