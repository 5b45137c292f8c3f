// Backward attention for heads of 256 components, without atomics on floating point. One kernel walks the
// queries of every tile of keys and sums dk and dv in registers. Where they fit into the scratch it keeps the
// gradients of the scores (bf16, heads in rounds), and dq is one product over them: five products in all.
// Otherwise dq comes from a kernel that computes them again: seven.
#include <algorithm>

#include "kernels/cuda/attention256_backward.cuh"

namespace lapidary {

namespace attention256 {

BackwardBuffers::BackwardBuffers(void* scratch, const Attention256Scratch& plan)
    : stride(static_cast<int>(plan.stride)) {
  auto* byte = static_cast<std::byte*>(scratch);
  const auto take = [&](std::size_t bytes) {
    std::byte* out = byte;
    byte += bytes;
    return out;
  };
  gradients = reinterpret_cast<Bf16*>(take(plan.gradients));
  lse2 = reinterpret_cast<float*>(take(plan.statistic));
  delta = reinterpret_cast<float*>(take(plan.statistic));
  query_begin = reinterpret_cast<std::int32_t*>(take(plan.interval));
  query_end = reinterpret_cast<std::int32_t*>(take(plan.interval));
  first = reinterpret_cast<std::int32_t*>(take(plan.blocks));
  stored = reinterpret_cast<int*>(take(plan.blocks));
  ready = reinterpret_cast<int*>(take(plan.blocks));
  counters = reinterpret_cast<int*>(take(plan.counters));
}

namespace {

/// The tiles of score gradients of one query head; 0 where the host does not know.
std::int64_t count_tiles(const Attention256Backward& call) {
  if (!call.host_lo || !call.host_hi) return 0;
  std::int64_t count = 0;
  for (std::int64_t from = 0; from < call.sizes.tokens; from += kTile) {
    const int lo = call.host_lo[from], hi = call.host_hi[std::min(from + kTile, call.sizes.tokens) - 1];
    count += end_tile(lo, hi) - first_tile(lo);
  }
  return count;
}

/// The first round: as many key heads as fit and as even as possible; all, and nothing kept, where none fits.
Round first_round(const Attention256Backward& call, const Attention256Scratch& plan) {
  const int all = static_cast<int>(call.sizes.kv_heads);
  const std::int64_t group = call.sizes.group(), tiles = count_tiles(call);
  if (tiles == 0 || group % 2 != 0) return {0, all, 0};
  const std::int64_t fit = static_cast<std::int64_t>(plan.gradients) / (group * tiles * kScoreTileBytes);
  if (fit == 0) return {0, all, 0};
  const int rounds = static_cast<int>((all + fit - 1) / fit);
  return {0, (all + rounds - 1) / rounds, static_cast<int>(tiles)};
}

}  // namespace

}  // namespace attention256

void attention256_backward(const Attention256Backward& call, cudaStream_t stream) {
  using namespace attention256;
  if (call.sizes.tokens == 0) return;
  const Attention256Scratch plan = attention256_backward_scratch(call.sizes);
  const BackwardBuffers buffers(call.scratch, plan);
  const Round first = first_round(call, plan);
  prepare(call, buffers, first, stream);
  const int all = static_cast<int>(call.sizes.kv_heads);
  auto* counters = reinterpret_cast<RoundCounters*>(buffers.counters + 1);
  for (Round round = first; round.kv_begin < all; round.kv_begin += round.kv_heads, ++counters) {
    round.kv_heads = std::min(round.kv_heads, all - round.kv_begin);
    sum_over_queries(call, buffers, round, counters, stream);
    if (round.head_tiles == 0) {
      sum_over_keys_again(call, buffers, counters, stream);
    } else {
      sum_over_keys(call, buffers, round, counters, stream);
    }
  }
}

}  // namespace lapidary
