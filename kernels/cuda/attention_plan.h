// How attention is cut into products of bounded scratch: host-only arithmetic, shared by the launcher and by
// the sizes that a plan reports.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace lapidary {

/// Sizes of one attention call. With one key head all query heads of a token are rows of one tall matrix
/// (`stack` rows per token); otherwise every query head of a group is a product of its own (`repeats`).
struct AttentionSizes {
  std::int64_t tokens, heads, kv_heads, dim;

  std::int64_t group() const { return heads / std::max<std::int64_t>(kv_heads, 1); }
  std::int64_t stack() const { return kv_heads == 1 ? heads : 1; }
  std::int64_t repeats() const { return group() / stack(); }
};

/// Columns of a row of scores in memory: packs of 16 bytes stay whole, in float32 and in bf16.
constexpr std::int64_t score_stride(std::int64_t keys) {
  return (keys + 7) / 8 * 8;
}

constexpr std::size_t kAttentionScratch = std::size_t{256} << 20;

constexpr std::size_t score_bytes(std::int64_t rows, std::int64_t keys) {
  return static_cast<std::size_t>(rows * score_stride(keys)) * sizeof(float);
}

/// Scores of all heads for as many tokens as the bound allows, but for one token at least.
inline std::size_t forward_score_bytes(const AttentionSizes& s) {
  const std::size_t token = score_bytes(s.heads, s.tokens);
  return std::max(token, std::min(token * static_cast<std::size_t>(s.tokens), kAttentionScratch));
}

/// The backward's scratch: row sums of out d_out [H, N]; float32 dk and dv of `kv_batch` key heads at a time
/// [N, kv_batch, d]; scores and their gradients of the same heads.
struct AttentionBackwardScratch {
  std::int64_t kv_batch;
  std::size_t delta, accumulators, scores;  ///< bytes; `scores` holds two equal halves
  std::size_t total() const { return delta + 2 * accumulators + scores; }
};

inline AttentionBackwardScratch backward_scratch(const AttentionSizes& s) {
  const auto align = [](std::size_t bytes) { return (bytes + 255) / 256 * 256; };
  AttentionBackwardScratch out{};
  out.delta = align(static_cast<std::size_t>(s.heads * s.tokens) * sizeof(float));
  const std::size_t head = static_cast<std::size_t>(s.tokens * s.dim) * sizeof(float);
  out.kv_batch = s.kv_heads;
  // Half of the bound for dk and dv, if several key heads leave the choice.
  while (out.kv_batch > 1 && (2 * head * static_cast<std::size_t>(out.kv_batch) > kAttentionScratch / 2 ||
                              s.kv_heads % out.kv_batch != 0))
    --out.kv_batch;
  out.accumulators = align(head * static_cast<std::size_t>(out.kv_batch));
  const std::int64_t heads = out.kv_batch * s.group();
  const std::size_t token = 2 * score_bytes(heads, s.tokens);
  const std::size_t taken = out.delta + 2 * out.accumulators;
  const std::size_t left = taken < kAttentionScratch ? kAttentionScratch - taken : 0;
  out.scores = std::max(token, std::min(token * static_cast<std::size_t>(s.tokens), left)) / 512 * 512;
  out.scores = std::max(out.scores, align(token) * 2);
  return out;
}

/// Tokens [begin, end) against keys [key_begin, key_end).
struct AttentionChunk {
  std::int64_t begin, end, key_begin, key_end;
  std::int64_t tokens() const { return end - begin; }
  std::int64_t keys() const { return key_end - key_begin; }
};

/// The next chunk from token `begin`: the one with the least work per token that fits into `bytes` of scores
/// of `heads` heads. Long chunks waste products on keys that only some of their queries see; short ones cost
/// launches, which weigh as much as kLaunch query-key pairs.
inline AttentionChunk next_chunk(std::int64_t begin, std::int64_t tokens, std::int64_t heads,
                                 const std::int32_t* lo, const std::int32_t* hi, std::size_t bytes) {
  constexpr std::int64_t kLaunch = 100000;
  constexpr std::int64_t kRound = 64;  // ranges of keys are rounded: fewer different products
  AttentionChunk best{};
  double best_cost = 0;
  for (const std::int64_t length : {512, 384, 256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2, 1}) {
    AttentionChunk c{};
    c.begin = begin;
    c.end = std::min(tokens, begin + length);
    c.key_begin = lo ? lo[begin] / kRound * kRound : 0;
    c.key_end = hi ? std::min(tokens, (hi[c.end - 1] + kRound - 1) / kRound * kRound) : tokens;
    c.key_end = std::max(c.key_end, c.key_begin + 1);
    if (score_bytes(heads * c.tokens(), c.keys()) > bytes) continue;
    const double cost =
        static_cast<double>(c.keys()) + static_cast<double>(kLaunch) / static_cast<double>(c.tokens());
    if (best.end == 0 || cost < best_cost) best = c, best_cost = cost;
  }
  return best;
}

}  // namespace lapidary
