// Scratch of the attention kernels for heads of 256 components: host-only arithmetic, shared by the launchers
// and by the sizes that a plan reports.
#pragma once
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

/// The backward's scratch, in this order: two counters that hand out tiles (256 bytes); per head and token
/// the log-sum-exp in base 2 and the row sum of out d_out, rows padded so that a tile may read past the last
/// token; per key the first query that sees it and the first that does not any more.
struct Attention256Scratch {
  std::int64_t stride;              ///< tokens per row of the two row statistics
  std::size_t statistic, interval;  ///< bytes of one array each
  std::size_t total() const { return kAttention256Scratch + 2 * statistic + 2 * interval; }
};

constexpr Attention256Scratch attention256_backward_scratch(const AttentionSizes& s) {
  Attention256Scratch out{};
  out.stride = (s.tokens + 63) / 64 * 64 + 64;
  out.statistic = static_cast<std::size_t>(out.stride * s.heads) * sizeof(float);
  out.interval = static_cast<std::size_t>(out.stride) * sizeof(std::int32_t);
  return out;
}

}  // namespace lapidary
