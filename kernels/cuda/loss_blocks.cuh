// What the loss head's passes over the vocabulary share: the soft cap, and the walk over blocks of float32
// logits that they take where kernels/cuda/loss_products.h does not serve.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/loss_plan.h"
#include "kernels/ops.h"

namespace lapidary {

constexpr int kLossThreads = 256;

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2E = 1.4426950408889634f;

/// A capped logit and its derivative with respect to z.
struct Capped {
  float l, slope;
};

/// The soft cap. The bf16 head's passes over the vocabulary run it for every logit and are bound by
/// arithmetic, so they take two approximate functions (about 1e-7 of the cap) and no division.
template <class T>
struct Cap {
  float cap, inverse;
  __device__ explicit Cap(float c) : cap(c), inverse(c > 0.0f ? 1.0f / c : 0.0f) {}
  __device__ Capped operator()(float z) const {
    if (cap <= 0.0f) return {z, 1.0f};
    if constexpr (std::is_same_v<T, float>) {
      const float t = tanhf(z / cap);
      return {cap * t, 1.0f - t * t};
    } else {
      const float x = z * inverse, a = exp2_fast(-2.0f * kLog2E * fabsf(x)), r = __fdividef(1.0f, 1.0f + a);
      return {cap * copysignf((1.0f - a) * r, x), 4.0f * a * r * r};
    }
  }
};

struct BlockShape {
  std::int64_t columns;  ///< of this block
  std::int64_t begin;    ///< first column of the block in the shard
  std::int64_t stride;   ///< of the scores
  std::int64_t first_row;
  float cap;
};

inline MatrixView rows_of(const Tensor& x) {
  return {x.data(), x.dtype(), x.rows() > 1 ? x.row_stride() : x.cols(), 0};
}

/// Calls f(block) after the block's float32 logits are in `logits`.
template <class Op, class F>
void for_blocks(Stream& stream, const Op& op, float* logits, F&& f) {
  const std::int64_t tokens = op.hidden.rows(), width = op.hidden.cols(), rows = op.table.rows();
  const std::int64_t step = loss_block_columns(tokens, rows);
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t columns = std::min(step, rows - begin);
    gemm(stream, {rows_of(op.hidden),
                  rows_of(op.table.row_range(begin, begin + columns)),
                  {logits, DType::f32, columns, 0},
                  tokens,
                  columns,
                  width,
                  false,
                  true});
    f(BlockShape{columns, begin, op.scores.row_stride(), op.first_row, static_cast<float>(op.cap)});
    launched("the loss head");
  }
}

}  // namespace lapidary
