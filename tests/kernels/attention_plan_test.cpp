// The host's arithmetic of the attention kernels: pairs in tiles against counting them, and the shape of the
// backward's blocks for heads of 512.
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "kernels/attention_tiles.h"
#include "kernels/cuda/attention512_plan.h"

namespace lapidary {
namespace {

Intervals documents(std::int64_t tokens, std::int64_t length, std::int32_t window, bool full) {
  std::vector<std::int32_t> document(static_cast<std::size_t>(tokens));
  for (std::size_t t = 0; t < document.size(); ++t)
    document[t] = static_cast<std::int32_t>(static_cast<std::int64_t>(t) / length);
  Intervals whole, sliding;
  attention_intervals(document, std::vector<std::uint8_t>(document.size(), 0), window,
                      ImageAttention::sliding, whole, sliding);
  return full ? whole : sliding;
}

double visible_pairs(const Intervals& x) {
  double pairs = 0;
  for (std::size_t q = 0; q < x.lo.size(); ++q) pairs += x.hi[q] - x.lo[q];
  return pairs;
}

/// Pairs of the tiles of a grid of rows x keys that any query of the tile sees a key of.
double counted(const Intervals& x, std::int64_t rows, std::int64_t keys) {
  const auto tokens = static_cast<std::int64_t>(x.lo.size());
  double tiles = 0;
  for (std::int64_t r = 0; r < tokens; r += rows) {
    for (std::int64_t k = 0; k < tokens; k += keys) {
      bool seen = false;
      for (std::int64_t q = r; q < std::min(r + rows, tokens); ++q) {
        const auto at = static_cast<std::size_t>(q);
        seen = seen || (x.lo[at] < x.hi[at] && x.lo[at] < k + keys && x.hi[at] > k);
      }
      tiles += seen ? 1 : 0;
    }
  }
  return tiles * static_cast<double>(rows * keys);
}

AttentionTiles sliding_tiles(const Intervals& x) {
  return attention_tiles(x, 16, 8, 256, DType::bf16);
}
AttentionTiles full_tiles(const Intervals& x, DType type = DType::bf16) {
  return attention_tiles(x, 16, 1, 512, type);
}

TEST(AttentionTiles, AreThoseOfAGridWhereDocumentsBeginOnIt) {
  for (const std::int64_t length : {128, 256, 1024}) {
    const Intervals sliding = documents(1024, length, 192, false);
    const AttentionTiles tiles = sliding_tiles(sliding);
    EXPECT_EQ(tiles.forward, counted(sliding, 64, 64)) << length;
    EXPECT_EQ(tiles.backward, counted(sliding, 64, 64)) << length;
    const Intervals full = documents(1024, length, 192, true);
    EXPECT_EQ(full_tiles(full).forward, counted(full, 8, 128)) << length;
  }
}

TEST(AttentionTiles, CoverAllPairsOfAnyDocuments) {
  for (const std::int64_t length : {1, 7, 100, 333, 1000}) {
    for (const bool full : {false, true}) {
      const Intervals x = documents(1000, length, 300, full);
      const AttentionTiles tiles = full ? full_tiles(x) : sliding_tiles(x);
      EXPECT_GE(tiles.forward, visible_pairs(x)) << length;
      EXPECT_GE(tiles.backward, visible_pairs(x)) << length;
    }
  }
  EXPECT_EQ(full_tiles(documents(1024, 64, 300, true), DType::f32).forward, 0);
}

TEST(Attention512Block, IsTheLongestWhoseKeysAreOneRange) {
  for (const std::int64_t tokens : {9, 1000, 8192, 40000}) {
    const AttentionSizes sizes{tokens, 16, 1, 512};
    const Attention512Scratch plan = attention512_scratch(sizes);
    for (const std::int64_t length : {1, 300, 512, 1200, 5000, 50000}) {
      const Intervals x = documents(tokens, length, 300, true);
      const Attention512Block block = attention512_block(sizes, plan, x.lo.data(), x.hi.data());
      EXPECT_LE(block.tokens * block.keys, plan.chunk_tokens * plan.range_keys);
      EXPECT_EQ(block.keys % 256, 0);
      if (block.tokens == plan.chunk_tokens) continue;
      EXPECT_LE(block.tokens, kAttention512Widest * plan.chunk_tokens);
      for (std::int64_t from = 0; from < tokens; from += block.tokens) {
        const std::int64_t end = x.hi[static_cast<std::size_t>(std::min(from + block.tokens, tokens) - 1)];
        EXPECT_LE(end - x.lo[static_cast<std::size_t>(from)] / 128 * 128, block.keys)
            << tokens << " " << length;
      }
    }
    const Intervals short_documents = documents(tokens, 300, 300, true),
                    one = documents(tokens, tokens, 300, true);
    if (tokens == 8192) {
      EXPECT_EQ(attention512_block(sizes, plan, short_documents.lo.data(), short_documents.hi.data()).tokens,
                512);
      EXPECT_EQ(attention512_block(sizes, plan, one.lo.data(), one.hi.data()).tokens, plan.chunk_tokens);
    }
    EXPECT_EQ(attention512_block(sizes, plan, nullptr, nullptr).tokens, plan.chunk_tokens);
  }
}

}  // namespace
}  // namespace lapidary
