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
    EXPECT_EQ(full_tiles(full).forward, (counted(full, 8, 64) + counted(full, 8, 32)) / 2) << length;
    EXPECT_EQ(full_tiles(full).backward, (3 * counted(full, 16, 64) + 2 * counted(full, 4, 64)) / 5)
        << length;
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

/// Where every query sees every key there are as many blocks and tasks as there can be.
TEST(Attention512Scratch, HoldsAllTasksAndStaysWithinItsBound) {
  for (const std::int64_t tokens : {1, 255, 5000, 8192, 32768, 50000}) {
    for (const std::int64_t heads : {1, 16, 128}) {
      const Attention512Scratch plan = attention512_scratch({tokens, heads, 1, 512});
      std::int64_t blocks = 0, tasks = 0;
      for (std::int64_t from = 0; from < tokens; from += plan.chunk_tokens) {
        const std::int64_t rows = std::min(plan.chunk_tokens, tokens - from) * heads,
                           pairs = (rows + 255) / 256;
        for (std::int64_t key = 0; key < tokens; key += plan.range_keys) {
          const std::int64_t tiles = (std::min(plan.range_keys, tokens - key) + 255) / 256;
          ++blocks, tasks += pairs * tiles + 2 * pairs + 4 * tiles;
        }
      }
      EXPECT_LE(blocks, plan.most_blocks) << tokens << " " << heads;
      EXPECT_LE(static_cast<std::size_t>(blocks + 1) * kAttention512Block, plan.blocks);
      EXPECT_LE(static_cast<std::size_t>(tasks) * kAttention512Task, plan.tasks) << tokens << " " << heads;
      if (heads == 16) {
        EXPECT_LE(plan.total(), kAttentionScratch) << tokens;
      }
    }
  }
}

Attention512Schedule schedule_of(const AttentionSizes& sizes, const Intervals& x) {
  return attention512_schedule(sizes, attention512_scratch(sizes), x.lo.data(), x.hi.data());
}

TEST(Attention512Schedule, KeepsAsManyBlocksAsFitWhereChunksSeeOneRange) {
  for (const std::int64_t tokens : {9, 1000, 8192, 40000}) {
    const AttentionSizes sizes{tokens, 16, 1, 512};
    const Attention512Scratch plan = attention512_scratch(sizes);
    for (const std::int64_t length : {1, 300, 512, 1200, 5000, 50000}) {
      const Intervals x = documents(tokens, length, 300, true);
      const Attention512Schedule schedule = schedule_of(sizes, x);
      EXPECT_LE(schedule.slots * schedule.range_keys, kAttention512Slots * plan.range_keys);
      EXPECT_GE(schedule.slots, kAttention512Slots);
      EXPECT_EQ(schedule.range_keys % 256, 0);
      // Scores wait for products that come before them in the sequence of tasks.
      EXPECT_GE(schedule.ahead, 1);
      EXPECT_LT(schedule.ahead, schedule.slots);
      if (!schedule.one_range) {
        EXPECT_EQ(schedule.range_keys, plan.range_keys);
        continue;
      }
      for (std::int64_t from = 0; from < tokens; from += plan.chunk_tokens) {
        const std::int64_t end =
            x.hi[static_cast<std::size_t>(std::min(from + plan.chunk_tokens, tokens) - 1)];
        EXPECT_LE(end - x.lo[static_cast<std::size_t>(from)] / 128 * 128, schedule.range_keys)
            << tokens << " " << length;
      }
    }
  }
}

TEST(Attention512Schedule, RunsFartherAheadTheShorterDocumentsAre) {
  const AttentionSizes sizes{8192, 16, 1, 512};
  const auto ahead = [&](std::int64_t length) {
    return schedule_of(sizes, documents(sizes.tokens, length, 300, true)).ahead;
  };
  EXPECT_EQ(ahead(8192), 1);
  EXPECT_GT(ahead(1024), ahead(2048));
  EXPECT_GT(ahead(512), ahead(1024));
  const Attention512Schedule unknown =
      attention512_schedule(sizes, attention512_scratch(sizes), nullptr, nullptr);
  EXPECT_FALSE(unknown.one_range);
  EXPECT_EQ(unknown.slots, kAttention512Slots);
}

}  // namespace
}  // namespace lapidary
