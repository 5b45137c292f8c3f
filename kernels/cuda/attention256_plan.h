// Scratch of the attention kernels for heads of 256 components: host-only arithmetic, shared by the launchers
// and by the sizes that a plan reports.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention_plan.h"
#include "kernels/dtype.h"

namespace lapidary {

/// True where these kernels compute a call; other sizes and types go through products.
constexpr bool attention256_applies(const AttentionSizes& s, DType type) {
  return type == DType::bf16 && s.dim == 256 && s.tokens * s.heads < std::int64_t{1} << 25;
}

/// The forward's scratch: the counter that hands out tiles.
constexpr std::size_t kAttention256Scratch = 256;

/// The backward's scratch, in this order: gradients of the scores (bf16, for as many key heads as fit); per
/// head and token the log-sum-exp in base 2 and the row sum of out d_out, rows padded so that a tile may read
/// past the last token; per key the first query that sees it and the first that does not any more; per block
/// of queries where its gradients lie; two counters that hand out tiles for every key head.
struct Attention256Scratch {
  std::int64_t stride;                                           ///< tokens per row of the row statistics
  std::size_t gradients, statistic, interval, blocks, counters;  ///< bytes, of one array each
  std::size_t total() const { return gradients + 2 * statistic + 2 * interval + blocks + counters; }
};

/// At most this much for the gradients. With a window of 1024 the 16 heads of 8,192 tokens take 255 MiB: all
/// in one round, whose end leaves processors idle only once. Two heads of 32,768 tokens take 136 MiB.
constexpr std::size_t attention256_gradients(std::int64_t tokens) {
  return static_cast<std::size_t>(tokens <= 8192 ? 256 : 224) << 20;
}

constexpr Attention256Scratch attention256_backward_scratch(const AttentionSizes& s) {
  Attention256Scratch out{};
  out.stride = (s.tokens + 63) / 64 * 64 + 64;
  out.statistic = static_cast<std::size_t>(out.stride * s.heads) * sizeof(float);
  out.interval = static_cast<std::size_t>(out.stride) * sizeof(std::int32_t);
  out.counters = static_cast<std::size_t>((2 * s.kv_heads + 63) / 64 * 64) * sizeof(int);
  const std::int64_t blocks = (s.tokens + 63) / 64;
  out.blocks = static_cast<std::size_t>((blocks + 63) / 64 * 64) * sizeof(std::int32_t);
  // All tiles of 64 x 64 scores, if they are few.
  out.gradients = std::min(attention256_gradients(s.tokens),
                           static_cast<std::size_t>(s.heads * blocks * blocks) * 64 * 64 * 2);
  return out;
}

}  // namespace lapidary
