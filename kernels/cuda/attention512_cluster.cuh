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

/// Stores a warp's 16 rows of 64 of its sums, from 64 `block` on, times a factor for each of the thread's two
/// rows, at rows [row, row + 16) and columns from `column` on of x [rows, kDim], by way of 2 KiB of shared
/// memory that are the warp's own.
__device__ inline void store_block(std::uint32_t panel, const float (&sum)[128], int block,
                                   const float (&factor)[2], Bf16* x, int row, int rows, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  row += lane / 8;
  __syncwarp();
  hopper::store_panel(panel, sum, block, factor);
  __syncwarp();
  Bf16* const to = x + static_cast<std::int64_t>(row) * kDim + column + lane % 8 * 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i * 4 < rows)
      *reinterpret_cast<uint4*>(to + i * 4 * kDim) =
          hopper::load_shared(panel + hopper::swizzle128(i * 512 + lane * 16));
  }
}

/// The same of 256 columns.
__device__ inline void store_rows(std::uint32_t panel, const float (&sum)[128], const float (&factor)[2],
                                  Bf16* x, int row, int rows, int column) {
#pragma unroll
  for (int block = 0; block < 4; ++block)
    store_block(panel, sum, block, factor, x, row, rows, column + block * 64);
}

}  // namespace lapidary::attention512
