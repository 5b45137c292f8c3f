// Scratch of the attention kernels for heads of 512 components: host-only arithmetic, shared by the launchers
// and by the sizes that a plan reports.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention_plan.h"
#include "kernels/dtype.h"

namespace lapidary {

constexpr int kAttention512Dim = 512, kAttention512Tile = 128;
/// Blocks whose p and ds the scratch holds at least, whatever the mask.
constexpr int kAttention512Slots = 3;

constexpr std::size_t kAttention512ForwardScratch = 256;  ///< the counter of rows' tiles

/// True where the kernels for head dimension 512 on one key head apply; other sizes go through products.
constexpr bool attention512_applies(const AttentionSizes& s, DType type) {
  return type == DType::bf16 && s.dim == kAttention512Dim && s.kv_heads == 1 && s.tokens > 0 && s.heads > 0 &&
         kAttention512Tile % s.heads == 0 && s.tokens * s.heads < std::int64_t{1} << 30;
}

/// Rows of a chunk: query heads of tokens.
constexpr std::int64_t kAttention512ChunkRows = 4096;
/// Bytes of a block and of a task of the backward where their tables are kept.
constexpr std::size_t kAttention512Block = 48, kAttention512Task = 16;

/// The scratch of the backward for head dimension 512: chunks of queries against ranges of keys, whose p and
/// ds are kept in bf16 for kAttention512Slots blocks at a time.
struct Attention512Scratch {
  std::int64_t chunk_tokens, range_keys, most_blocks, query_units, key_units;
  std::size_t statistics, key_sums, query_sums, tiles, blocks, tasks, counters;  ///< bytes
  std::size_t total() const { return statistics + key_sums + query_sums + tiles + blocks + tasks + counters; }
};

/// The same with ranges of `range_keys` keys.
inline Attention512Scratch attention512_scratch(const AttentionSizes& s, std::int64_t range_keys) {
  constexpr std::int64_t kRows = kAttention512ChunkRows, kKeyTile = 2 * kAttention512Tile;
  constexpr std::size_t kUnit = std::size_t{64} * 256 * sizeof(float);
  const auto align = [](std::int64_t bytes) { return (static_cast<std::size_t>(bytes) + 255) / 256 * 256; };
  const auto ratio_up = [](std::int64_t x, std::int64_t y) { return (x + y - 1) / y; };
  Attention512Scratch out{};
  out.chunk_tokens = kRows / s.heads;
  out.range_keys = range_keys;
  out.most_blocks = ratio_up(s.tokens, out.chunk_tokens) * ratio_up(s.tokens + kAttention512Tile, range_keys);
  out.query_units = kRows / 64 * 2;
  out.key_units = ratio_up(s.tokens, kAttention512Tile) * (kAttention512Tile / 64 * 4);
  out.statistics = align(s.tokens * s.heads * 8);
  out.query_sums = static_cast<std::size_t>(out.query_units) * kUnit;
  out.key_sums = static_cast<std::size_t>(out.key_units) * kUnit;
  out.tiles = static_cast<std::size_t>(kAttention512Slots * 2 * kRows * 2 * range_keys);
  out.blocks = align((out.most_blocks + 1) * static_cast<std::int64_t>(kAttention512Block));
  // Of a block: scores of 256 rows and 256 keys; for 256 rows dq, and for 256 keys dk and dv, in two halves.
  const std::int64_t pairs = kRows / kKeyTile, key_tiles = range_keys / kKeyTile;
  out.tasks = align(out.most_blocks * (pairs * key_tiles + 2 * pairs + 4 * key_tiles) *
                    static_cast<std::int64_t>(kAttention512Task));
  out.counters = align((4 + 3 * out.most_blocks + out.query_units + out.key_units) * 4);
  return out;
}

/// With the longest ranges, up to 4096 keys, that the bound of the scratch allows.
inline Attention512Scratch attention512_scratch(const AttentionSizes& s) {
  constexpr std::int64_t kMostKeys = 4096, kKeyTile = 2 * kAttention512Tile;
  std::int64_t keys =
      std::min(kMostKeys, (s.tokens + kAttention512Tile + kKeyTile - 1) / kKeyTile * kKeyTile);
  while (keys > kKeyTile && attention512_scratch(s, keys).total() > kAttentionScratch) keys -= kKeyTile;
  return attention512_scratch(s, keys);
}

/// How the backward goes through its blocks, each a chunk of queries against a range of keys.
struct Attention512Schedule {
  std::int64_t range_keys;
  int slots;       ///< blocks whose p and ds are kept at a time
  int ahead;       ///< blocks by which scores run ahead of the products that read them
  bool one_range;  ///< no chunk sees more than one range
};

/// With the host's bounds (null: unknown), ranges are as short as the keys of the chunk that sees the most,
/// and the tiles' memory holds so many more blocks. Short documents make blocks of few and uneven tasks:
/// scores then run several blocks ahead, so that nobody waits for the last task of a block.
inline Attention512Schedule attention512_schedule(const AttentionSizes& s, const Attention512Scratch& plan,
                                                  const std::int32_t* lo, const std::int32_t* hi) {
  constexpr std::int64_t kKeyTile = 2 * kAttention512Tile;
  constexpr std::int64_t kTasksAhead = 160;  ///< scores tasks: more than two for every cluster of an H100
  const Attention512Schedule any{plan.range_keys, kAttention512Slots, 1, false};
  if (lo == nullptr || hi == nullptr) return any;
  std::int64_t keys = 1;
  for (std::int64_t from = 0; from < s.tokens; from += plan.chunk_tokens)
    keys = std::max<std::int64_t>(keys, hi[std::min(from + plan.chunk_tokens, s.tokens) - 1] -
                                            lo[from] / kAttention512Tile * kAttention512Tile);
  if (keys > plan.range_keys) return any;
  const std::int64_t tiles = (keys + kKeyTile - 1) / kKeyTile;
  const std::int64_t tasks = (plan.chunk_tokens * s.heads + kKeyTile - 1) / kKeyTile * tiles;
  const std::int64_t fit = kAttention512Slots * plan.range_keys / (tiles * kKeyTile);
  const std::int64_t ahead = std::min((kTasksAhead + tasks - 1) / tasks, fit - 2);
  return {tiles * kKeyTile, static_cast<int>(fit), static_cast<int>(ahead), true};
}

}  // namespace lapidary
