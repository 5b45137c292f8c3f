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

/// The same for kernels whose blocks have a whole multiprocessor's shared memory for their rows in flight.
constexpr std::int64_t kRingBlocks = 132;
constexpr std::int64_t ring_blocks(std::int64_t rows) {
  return std::min(rows, kRingBlocks);
}

/// Rows that one block of a column sum reads.
constexpr std::int64_t kBiasRows = 128;
constexpr std::int64_t bias_partial_rows(std::int64_t rows) {
  return (rows + kBiasRows - 1) / kBiasRows;
}

constexpr std::int64_t kNormBlocks = 528;  ///< of SquaredNorm; each leaves one f64

/// A block of RankSum, which leaves one f64 too: some packs per thread, of one element or more.
constexpr std::int64_t kRankSumThreads = 256;
constexpr std::int64_t kRankSumPacks = 2;
constexpr std::int64_t rank_sum_blocks(std::int64_t n) {
  return n / (kRankSumThreads * kRankSumPacks) + 1;
}

}  // namespace lapidary
