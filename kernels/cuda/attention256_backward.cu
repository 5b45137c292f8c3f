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
  order = reinterpret_cast<std::int32_t*>(take(plan.blocks));
  seen = reinterpret_cast<std::int32_t*>(take(plan.blocks));
  counters = reinterpret_cast<int*>(take(plan.counters));
}

namespace {

struct PrepareArguments {
  const Bf16 *out, *d_out;
  const float* lse;
  const std::int32_t *lo, *hi;
  int* counters;
  float *lse2, *delta;
  std::int32_t *query_begin, *query_end, *first, *order, *seen;
  int tokens, heads, stride;
  int counter_count;
};

/// First index of the never decreasing array x [n] whose value is above `bound`.
__device__ inline int first_above(const std::int32_t* x, int n, int bound) {
  int begin = 0, end = n;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (x[middle] > bound) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

constexpr int kPrepareThreads = 256, kPrepareWarps = kPrepareThreads / 32;

/// Where the tiles of score gradients of every block of queries begin: the sums of the counts before, less
/// the first tile. One block of threads.
__device__ void place_tiles(const PrepareArguments& a) {
  __shared__ int sums[kPrepareWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int before = 0;
  for (int from = 0; from < a.tokens; from += kPrepareThreads * kTile) {
    const int token = from + static_cast<int>(threadIdx.x) * kTile;
    int begin = 0, count = 0;
    if (token < a.tokens) {
      const int lo = a.lo[token], hi = a.hi[min(token + kTile, a.tokens) - 1];
      begin = first_tile(lo), count = end_tile(lo, hi) - begin;
    }
    int sum = count;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += left;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    int all = 0;
    for (int i = 0; i < kPrepareWarps; ++i) {
      if (i == warp) sum += all;
      all += sums[i];
    }
    if (token < a.tokens) a.first[token / kTile] = before + sum - count - begin;
    before += all;
    __syncthreads();
  }
}

/// The order of the blocks of keys: as they come, but the few that the fewest queries see last, the longest
/// of these first, so that blocks of threads end together. (All by length would read queries from everywhere
/// at a time.) One block of threads.
__device__ void order_blocks(const PrepareArguments& a) {
  constexpr int kLast = 16;
  constexpr std::int32_t kTaken = 0x7fffffff;
  __shared__ unsigned long long least[kPrepareWarps];
  __shared__ int last[kLast];
  const int blocks = (a.tokens + kTile - 1) / kTile, taken = min(kLast, blocks);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int b = static_cast<int>(threadIdx.x); b < blocks; b += kPrepareThreads) {
    const int begin = first_above(a.hi, a.tokens, b * kTile),
              end = first_above(a.lo, a.tokens, min((b + 1) * kTile, a.tokens) - 1);
    a.seen[b] = max(end - begin, 0);
  }
  for (int i = 0; i < taken; ++i) {
    // The shortest, and of these the last: a number of length and place. Threads look at their own blocks.
    unsigned long long mine = ~0ull;
    for (int b = static_cast<int>(threadIdx.x); b < blocks; b += kPrepareThreads)
      mine = min(mine, static_cast<unsigned long long>(a.seen[b]) << 32 | static_cast<unsigned>(blocks - b));
#pragma unroll
    for (int step = 16; step > 0; step /= 2) mine = min(mine, __shfl_xor_sync(0xffffffffu, mine, step));
    if (lane == 0) least[warp] = mine;
    __syncthreads();
    for (int w = 0; w < kPrepareWarps; ++w) mine = min(mine, least[w]);
    const int chosen = blocks - static_cast<int>(mine & 0xffffffffu);
    if (chosen % kPrepareThreads == static_cast<int>(threadIdx.x)) {
      a.seen[chosen] = kTaken;
      a.order[blocks - 1 - i] = chosen, last[i] = chosen;
    }
    __syncthreads();
  }
  for (int b = static_cast<int>(threadIdx.x); b < blocks; b += kPrepareThreads) {
    if (a.seen[b] == kTaken) continue;
    int before = 0;
    for (int i = 0; i < taken; ++i) before += last[i] < b ? 1 : 0;
    a.order[b - before] = b;
  }
}

/// The first block of threads plans. Of the others a warp per token and head: delta = sum of out d_out and
/// lse log2(e), infinity where a query has no keys and past the last token, so that every probability there
/// is 0; and a thread per key: the queries that see it.
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const PrepareArguments a) {
  if (blockIdx.x == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < a.counter_count; i += kPrepareThreads) a.counters[i] = 0;
    place_tiles(a);
    order_blocks(a);
    return;
  }
  const int index = static_cast<int>((blockIdx.x - 1) * blockDim.x + threadIdx.x);
  if (index < a.tokens) {
    a.query_begin[index] = first_above(a.hi, a.tokens, index);
    a.query_end[index] = first_above(a.lo, a.tokens, index);
  }
  const int pair = index / 32, lane = index % 32;
  const int token = pair / a.heads, head = pair % a.heads;
  if (token >= a.stride) return;
  float sum = 0.0f, lse2 = INFINITY;
  if (token < a.tokens) {
    constexpr int kWords = 4;  // of 2 elements, per lane
    const std::int64_t from = (static_cast<std::int64_t>(token) * a.heads + head) * kDim + lane * 2 * kWords;
    const uint4 x = *reinterpret_cast<const uint4*>(a.out + from);
    const uint4 y = *reinterpret_cast<const uint4*>(a.d_out + from);
    const std::uint32_t xs[kWords] = {x.x, x.y, x.z, x.w}, ys[kWords] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      sum = fmaf(low_half(xs[i]), low_half(ys[i]), sum);
      sum = fmaf(high_half(xs[i]), high_half(ys[i]), sum);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const float lse = a.lse[static_cast<std::int64_t>(head) * a.tokens + token];
    if (lse != -INFINITY) lse2 = lse * kLog2E;
  }
  if (lane == 0) {
    a.delta[static_cast<std::int64_t>(head) * a.stride + token] = sum;
    a.lse2[static_cast<std::int64_t>(head) * a.stride + token] = lse2;
  }
}

void prepare(const Attention256Backward& call, const BackwardBuffers& buffers, cudaStream_t stream) {
  PrepareArguments a{};
  a.out = static_cast<const Bf16*>(call.out), a.d_out = static_cast<const Bf16*>(call.d_out);
  a.lse = call.lse, a.lo = call.lo, a.hi = call.hi;
  a.counters = buffers.counters, a.lse2 = buffers.lse2, a.delta = buffers.delta;
  a.query_begin = buffers.query_begin, a.query_end = buffers.query_end;
  a.first = buffers.first, a.order = buffers.order, a.seen = buffers.seen;
  a.tokens = static_cast<int>(call.sizes.tokens), a.heads = static_cast<int>(call.sizes.heads);
  a.stride = buffers.stride;
  a.counter_count = static_cast<int>(2 * call.sizes.kv_heads);
  const std::int64_t threads = static_cast<std::int64_t>(a.stride) * a.heads * 32;
  prepare_kernel<<<static_cast<unsigned>(1 + threads / kPrepareThreads), kPrepareThreads, 0, stream>>>(a);
  launched("AttentionBackward");
}

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
  prepare(call, buffers, stream);
  const int all = static_cast<int>(call.sizes.kv_heads);
  int* counters = buffers.counters;
  for (Round round = first_round(call, plan); round.kv_begin < all; round.kv_begin += round.kv_heads) {
    round.kv_heads = std::min(round.kv_heads, all - round.kv_begin);
    sum_over_queries(call, buffers, round, counters++, stream);
    if (round.head_tiles == 0) {
      sum_over_keys_again(call, buffers, counters++, stream);
    } else {
      sum_over_keys(call, buffers, round, counters++, stream);
    }
  }
}

}  // namespace lapidary
