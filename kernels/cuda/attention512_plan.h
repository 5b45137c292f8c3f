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
constexpr int kAttention512Slots = 3;
/// A chunk of queries may be so many times as long where its keys are as many times fewer.
constexpr int kAttention512Widest = 4;

/// True where the kernels for head dimension 512 on one key head apply; other sizes go through products.
constexpr bool attention512_applies(const AttentionSizes& s, DType type) {
  return type == DType::bf16 && s.dim == kAttention512Dim && s.kv_heads == 1 && s.tokens > 0 && s.heads > 0 &&
         kAttention512Tile % s.heads == 0 && s.tokens * s.heads < std::int64_t{1} << 30;
}

/// The scratch of the backward for head dimension 512: chunks of queries against ranges of keys, whose p and
/// ds are kept in bf16 for kAttention512Slots blocks at a time.
struct Attention512Scratch {
  std::int64_t chunk_tokens, range_keys, most_blocks, query_units, key_units;
  std::size_t statistics, key_sums, query_sums, tiles, blocks, counters;  ///< bytes
  std::size_t total() const { return statistics + key_sums + query_sums + tiles + blocks + counters; }
};

inline Attention512Scratch attention512_scratch(const AttentionSizes& s) {
  constexpr std::int64_t kRows = 4096, kMostKeys = 4096, kKeyTile = 2 * kAttention512Tile;
  constexpr std::size_t kUnit = std::size_t{64} * 256 * sizeof(float);
  const auto align = [](std::int64_t bytes) { return static_cast<std::size_t>((bytes + 255) / 256 * 256); };
  const auto round_up = [](std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; };
  Attention512Scratch out{};
  out.chunk_tokens = kRows / s.heads;
  out.query_units = kRows / 64 * 2;
  out.key_units = round_up(s.tokens, kAttention512Tile) / 64 * 4;
  out.statistics = align(s.tokens * s.heads * 8);
  out.query_sums = static_cast<std::size_t>(out.query_units) * kUnit;
  out.key_sums = static_cast<std::size_t>(out.key_units) * kUnit;
  // Tables: bounded from above by ranges of the least size.
  const std::int64_t chunks = round_up(s.tokens, out.chunk_tokens) / out.chunk_tokens;
  const std::size_t tables = std::size_t{4} << 20;
  const std::size_t taken = out.statistics + out.query_sums + out.key_sums + tables;
  const std::size_t column = std::size_t{kAttention512Slots} * 2 * kRows * 2;  // of tiles, per key
  const std::size_t left = taken < kAttentionScratch ? kAttentionScratch - taken : 0;
  const std::int64_t fits = static_cast<std::int64_t>(left / column) / kKeyTile * kKeyTile;
  out.range_keys =
      std::min({kMostKeys, std::max(fits, kKeyTile), round_up(s.tokens + kAttention512Tile, kKeyTile)});
  out.tiles = column * static_cast<std::size_t>(out.range_keys);
  out.most_blocks = chunks * ((s.tokens + kAttention512Tile + out.range_keys - 1) / out.range_keys);
  out.blocks = align(out.most_blocks * 32);
  out.counters =
      align((2 + 2 * out.most_blocks + (out.query_units * kAttention512Widest + out.key_units) * 4) * 4);
  return out;
}

/// What a block of the backward is: a chunk of queries against a range of keys.
struct Attention512Block {
  std::int64_t tokens, keys;
};

/// The longest chunks that the host's bounds (null: unknown) allow in the scratch's tiles: those whose keys,
/// of any chunk, are one range. Short documents then make few blocks with many tasks each, which wait less
/// for each other; a chunk's d_q needs no sums.
inline Attention512Block attention512_block(const AttentionSizes& s, const Attention512Scratch& plan,
                                            const std::int32_t* lo, const std::int32_t* hi) {
  for (std::int64_t times = kAttention512Widest; lo && hi && times > 1; times /= 2) {
    const Attention512Block block{
        plan.chunk_tokens * times,
        plan.range_keys / times / (2 * kAttention512Tile) * (2 * kAttention512Tile)};
    bool fits = true;
    for (std::int64_t from = 0; fits && from < s.tokens; from += block.tokens)
      fits = hi[std::min(from + block.tokens, s.tokens) - 1] -
                 lo[from] / kAttention512Tile * kAttention512Tile <=
             block.keys;
    if (fits) return block;
  }
  return {plan.chunk_tokens, plan.range_keys};
}

}  // namespace lapidary
