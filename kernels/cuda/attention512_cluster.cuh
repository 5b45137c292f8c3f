// What the kernels for head dimension 512 share.
#pragma once
#include <bit>

#include "kernels/cuda/attention512_plan.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary::attention512 {

constexpr int kDim = kAttention512Dim;
constexpr int kCtas = 2;  ///< of a cluster
constexpr float kLog2e = 1.4426950408889634f;

/// Rows are query heads of tokens, heads fastest. As many heads as divide 128: a power of two.
struct Rows {
  int tokens, heads_log2;

  __host__ __device__ int heads() const { return 1 << heads_log2; }
  __host__ __device__ int rows() const { return tokens << heads_log2; }
  __host__ __device__ int token(int row) const { return row >> heads_log2; }
  /// Of a row that may lie behind the last.
  __device__ int token_of(int row) const { return token(min(row, rows() - 1)); }
  /// Where a row's log-sum-exp lies in [heads, tokens].
  __device__ std::int64_t lse_at(int row) const {
    return static_cast<std::int64_t>(row & (heads() - 1)) * tokens + token(row);
  }
};
inline Rows rows_of(std::int64_t tokens, std::int64_t heads) {
  return {static_cast<int>(tokens), std::countr_zero(static_cast<unsigned>(heads))};
}

/// A position in a ring of `kSize`.
template <int kSize>
struct Cursor {
  int slot = 0;
  std::uint32_t phase = 0;
  __device__ void next() {
    if (++slot == kSize) slot = 0, phase ^= 1;
  }
};

}  // namespace lapidary::attention512
