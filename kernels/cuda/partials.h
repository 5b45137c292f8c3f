// Sizes of the scratch that the GPU's operations use: pure functions of shapes, so that a plan made on a
// machine without a GPU is exact.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace lapidary {

/// Blocks that walk over the rows and keep a weight gradient in registers: two per multiprocessor of a Hopper
/// chip. Each leaves one row of partial sums; a second kernel adds those in order.
constexpr std::int64_t kPartialRows = 264;

constexpr std::int64_t partial_rows(std::int64_t rows) {
  return std::min(rows, kPartialRows);
}

constexpr std::size_t partial_bytes(std::int64_t rows, std::int64_t columns) {
  return static_cast<std::size_t>(partial_rows(rows) * columns) * sizeof(float);
}

/// The same for the q, k, v preparation: three per multiprocessor.
constexpr std::int64_t kQkvBlocks = 396;
constexpr std::int64_t qkv_blocks(std::int64_t tokens) {
  return std::min(tokens, kQkvBlocks);
}

/// Rows that one block of a column sum reads.
constexpr std::int64_t kBiasRows = 128;
constexpr std::int64_t bias_partial_rows(std::int64_t rows) {
  return (rows + kBiasRows - 1) / kBiasRows;
}

constexpr std::int64_t kNormBlocks = 528;  ///< of SquaredNorm; each leaves one f64

}  // namespace lapidary
