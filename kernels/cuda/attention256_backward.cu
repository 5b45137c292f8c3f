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
  counters = reinterpret_cast<int*>(take(plan.counters));
}

namespace {

struct PrepareArguments {
  const Bf16 *out, *d_out;
  const float* lse;
  const std::int32_t *lo, *hi;
  int* counters;
  float *lse2, *delta;
  std::int32_t *query_begin, *query_end, *first;
  int tokens, heads, stride;
  int counter_count;
};

/// Writes its value to x [begin, end) of every lane: ranges are mostly of one element, and some of a
/// thousand.
__device__ inline void fill_ranges(std::int32_t* x, int begin, int end, int value) {
  if (begin < end) x[begin] = value;
  unsigned left = __ballot_sync(0xffffffffu, end - begin > 1);
  for (; left != 0; left &= left - 1) {
    const int lane = __ffs(static_cast<int>(left)) - 1;
    const int last = __shfl_sync(0xffffffffu, end, lane), filled = __shfl_sync(0xffffffffu, value, lane);
    for (int i = __shfl_sync(0xffffffffu, begin, lane) + 1 + static_cast<int>(threadIdx.x) % 32; i < last;
         i += 32)
      x[i] = filled;
  }
}

/// The queries that see a key: the first whose hi is above it, the first whose lo is. As neither decreases, a
/// query is that of the keys between its bound and the one before. One query a thread, and one past the last.
__device__ inline void find_queries(const PrepareArguments& a, int query) {
  const bool any = query <= a.tokens;
  const auto bound = [&](const std::int32_t* x, int at) {
    return at < 0 || !any ? 0 : at < a.tokens ? x[at] : a.tokens;
  };
  const int hi_before = bound(a.hi, query - 1), hi = bound(a.hi, query);
  const int lo_before = bound(a.lo, query - 1), lo = bound(a.lo, query);
  fill_ranges(a.query_begin, hi_before, hi, query);
  fill_ranges(a.query_end, lo_before, lo, query);
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

/// The sum of x y over eight components.
__device__ inline float multiply(const uint4& x, const uint4& y) {
  const std::uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum = fmaf(low_half(xs[i]), low_half(ys[i]), sum);
    sum = fmaf(high_half(xs[i]), high_half(ys[i]), sum);
  }
  return sum;
}

/// The first block of threads plans. Of the others a thread per query: the keys of which it is the first that
/// sees them, and the first that does not any more; a thread per head and token: lse log2(e), infinity where
/// a query has no keys and past the last token, so that every probability there is 0; and a warp per token
/// and head: delta = sum of out d_out, 0 past the last token.
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const PrepareArguments a) {
  follow_previous();
  if (blockIdx.x == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < a.counter_count; i += kPrepareThreads) a.counters[i] = 0;
    place_tiles(a);
    return;
  }
  const int index = static_cast<int>((blockIdx.x - 1) * blockDim.x + threadIdx.x);
  if (index / 32 <= a.tokens / 32) find_queries(a, index);
  if (const int head = index / a.stride, token = index % a.stride; head < a.heads) {
    const float lse =
        token < a.tokens ? a.lse[static_cast<std::int64_t>(head) * a.tokens + token] : -INFINITY;
    a.lse2[index] = lse == -INFINITY ? INFINITY : lse * kLog2E;
    if (token >= a.tokens) a.delta[index] = 0.0f;
  }
  const int pair = index / 32, lane = index % 32;
  const int token = pair / a.heads, head = pair % a.heads;
  if (token >= a.tokens) return;
  const std::int64_t from = (static_cast<std::int64_t>(token) * a.heads + head) * kDim + lane * 8;
  float sum = multiply(*reinterpret_cast<const uint4*>(a.out + from),
                       *reinterpret_cast<const uint4*>(a.d_out + from));
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) a.delta[static_cast<std::int64_t>(head) * a.stride + token] = sum;
}

void prepare(const Attention256Backward& call, const BackwardBuffers& buffers, cudaStream_t stream) {
  PrepareArguments a{};
  a.out = static_cast<const Bf16*>(call.out), a.d_out = static_cast<const Bf16*>(call.d_out);
  a.lse = call.lse, a.lo = call.lo, a.hi = call.hi;
  a.counters = buffers.counters, a.lse2 = buffers.lse2, a.delta = buffers.delta;
  a.query_begin = buffers.query_begin, a.query_end = buffers.query_end;
  a.first = buffers.first;
  a.tokens = static_cast<int>(call.sizes.tokens), a.heads = static_cast<int>(call.sizes.heads);
  a.stride = buffers.stride;
  a.counter_count = static_cast<int>(2 * call.sizes.kv_heads);
  const std::int64_t threads = static_cast<std::int64_t>(a.stride) * a.heads * 32;
  launch_dependent("AttentionBackward", prepare_kernel, static_cast<unsigned>(1 + threads / kPrepareThreads),
                   kPrepareThreads, 0, stream, a);
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
