// How the loss head uses its scratch: host-only arithmetic, shared by the launchers and by scratch_bytes.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace lapidary {

/// Tiles of the products that the loss head runs itself (kernels/cuda/product.cuh): tokens of two tiles,
/// columns.
constexpr std::int64_t kProductRows = 256, kProductColumns = 192;

inline std::int64_t product_tiles(std::int64_t size, std::int64_t tile) {
  return (size + tile - 1) / tile;
}

/// True where the loss head can run its products itself: bf16, and rows that TMA can address, whole multiples
/// of 16 bytes. `scores` may be absent.
inline bool loss_products_fit(const Tensor& hidden, const Tensor& scores) {
  const bool score_rows = !scores || scores.rows() <= 1 || scores.row_stride() % 8 == 0;
  return hidden.dtype() == DType::bf16 && hidden.cols() % 8 == 0 && score_rows;
}

/// As loss_products_fit, and the logits are bounded: then one product makes scores and statistics.
inline bool loss_scores_fit(const Tensor& hidden, const Tensor& scores, double cap) {
  return loss_products_fit(hidden, scores) && cap > 0;
}

/// Partial results of that product, in this order; bytes.
struct ScoreScratch {
  std::int64_t stride;  ///< tokens, rounded up to whole tiles
  std::size_t partial;  ///< f32 [tiles of columns, 3, stride]: sums
  std::size_t best;     ///< u64 [stride]: the largest logit and its column
  std::size_t target;   ///< f32 [stride]: the target's logit
  ScoreScratch(std::int64_t tokens, std::int64_t rows)
      : stride(product_tiles(tokens, kProductRows) * kProductRows),
        partial(static_cast<std::size_t>(product_tiles(rows, kProductColumns) * 3 * stride) * sizeof(float)),
        best(static_cast<std::size_t>(stride) * sizeof(std::uint64_t)),
        target(static_cast<std::size_t>(stride) * sizeof(float)) {}
  std::size_t total() const { return partial + best + target; }
};

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

/// Terms of a row's gradient that are kept exact in float32: the target's, and those of all other columns
/// with at least 1 / kLargeTerms of the probability, of which there are at most so many.
constexpr int kLargeTerms = 8, kExactTerms = 1 + kLargeTerms;

/// Scratch of the bf16 LossGradient, in this order.
struct LossGradientScratch {
  std::size_t d_hidden;  ///< f32 [C, D]
  std::size_t scaled;    ///< T [C, D]: hidden states times their rows' scales
  std::size_t scale;     ///< f32 [C]
  std::size_t terms;     ///< three times: f32 (weights) or i32 (ids, order) [C, kExactTerms]
  std::size_t parts;     ///< i32: how many parts of d_hidden's tiles are added
  std::size_t block;     ///< logits of a block, with label smoothing only
  std::size_t total() const { return d_hidden + scaled + scale + 3 * terms + parts + block; }
};

inline LossGradientScratch loss_gradient_scratch(std::int64_t tokens, std::int64_t width, std::int64_t rows,
                                                 bool smoothing) {
  const auto align = [](std::int64_t bytes) { return static_cast<std::size_t>((bytes + 255) / 256 * 256); };
  return {align(tokens * width * 4),
          align(tokens * width * 2),
          align(tokens * 4),
          align(tokens * kExactTerms * 4),
          align(2 * product_tiles(tokens, kProductRows) * product_tiles(width, kProductColumns) * 4),
          smoothing ? loss_block_bytes(tokens, rows) : 0};
}

}  // namespace lapidary
