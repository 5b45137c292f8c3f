#!/usr/bin/env bash
# Runs tools/check_includes.sh on trees with one fault each and looks for its message.
set -euo pipefail
check=$(realpath "$(dirname "$0")/../../tools/check_includes.sh")
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

# A tree that keeps the rules; a test changes one file and expects a complaint with the given text.
fresh() {
  rm -rf "${tree:?}"/*
  mkdir -p "$tree"/{kernels/cpu,kernels/cuda,parallel,data,model,trainer,launch}
  echo '#pragma once' | tee "$tree"/{kernels/tensor.h,kernels/cpu/gemm.h,parallel/mesh.h,data/loader.h} \
    "$tree"/{model/block.h,trainer/loop.h} >"$tree/kernels/batch.h"
  echo '#include "kernels/tensor.h"' >"$tree/kernels/ops.h"
  echo '#include "kernels/cpu/gemm.h"' >"$tree/kernels/cpu/gemm.cpp"
  echo '#include <cuda_runtime.h>' >"$tree/kernels/cuda/gemm.cu"
  printf '#include "model/block.h"\n#include <vector>\n' >"$tree/trainer/loop.cpp"
}
refused() {  # FILE INCLUDE TEXT
  fresh
  echo "#include $2" >>"$tree/$1"
  if output=$("$check" "$tree"); then
    echo "accepted $2 in $1: $output"
    exit 1
  fi
  grep -qF "$3" <<<"$output" || { echo "$2 in $1: expected '$3', got: $output"; exit 1; }
}

fresh
"$check" "$tree"
refused parallel/mesh.h '"model/block.h"' 'parallel/mesh.h:2: parallel includes upward'
refused kernels/tensor.h '"trainer/loop.h"' 'kernels includes upward'
refused model/block.h '"data/loader.h"' 'model and data exclude each other'
refused data/loader.h '"model/block.h"' 'data and model exclude each other'
refused model/block.h '"kernels/cpu/gemm.h"' 'private to kernels'
refused model/block.h '<cuda_bf16.h>' 'model includes CUDA'
refused kernels/tensor.h '<cuda_runtime.h>' 'reached from kernels/ops.h'
refused model/block.h '"block.h"' 'no file of this repository'
echo "check_includes: all faults found"
