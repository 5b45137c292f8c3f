// How the loss head uses its scratch: host-only arithmetic, shared by the launchers and by scratch_bytes.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace lapidary {

/// Float32 logits of one block of the vocabulary: small enough to stay in the L2 cache between the product
/// that writes them and the pass that reads them.
constexpr std::int64_t kLogitBlockBytes = 16 << 20;

/// Columns of a block: a multiple of 256 (tiles of the products) unless the shard is smaller.
inline std::int64_t loss_block_columns(std::int64_t tokens, std::int64_t rows) {
  const std::int64_t fits = kLogitBlockBytes / 4 / std::max<std::int64_t>(tokens, 1) / 256 * 256;
  return std::min(rows, std::max<std::int64_t>(fits, 256));
}

inline std::size_t loss_block_bytes(std::int64_t tokens, std::int64_t rows) {
  return static_cast<std::size_t>(tokens * loss_block_columns(tokens, rows)) * sizeof(float);
}

/// Rows of the table whose float32 gradient is made at a time where it is kept in bf16 (float32 activations).
inline std::int64_t loss_piece_rows(std::int64_t rows, std::int64_t width) {
  return std::min(rows, std::max<std::int64_t>(kLogitBlockBytes / 4 / std::max<std::int64_t>(width, 1), 1));
}

/// Scratch of the bf16 LossGradient, in this order.
struct LossGradientScratch {
  std::size_t d_hidden;  ///< f32 [C, D]
  std::size_t scaled;    ///< T [C, D]: hidden states times their rows' scales
  std::size_t rows;      ///< f32 [C] twice (scale, gradient at the target), i32 [C] (order of the targets)
  std::size_t block;     ///< logits of a block, with label smoothing only
  std::size_t total() const { return d_hidden + scaled + rows + block; }
};

inline LossGradientScratch loss_gradient_scratch(std::int64_t tokens, std::int64_t width, std::int64_t rows,
                                                 bool smoothing) {
  const auto align = [](std::int64_t bytes) { return static_cast<std::size_t>((bytes + 255) / 256 * 256); };
  return {align(tokens * width * 4), align(tokens * width * 2), 3 * align(tokens * 4),
          smoothing ? loss_block_bytes(tokens, rows) : 0};
}

}  // namespace lapidary
