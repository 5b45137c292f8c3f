// Before the backward's sums: what the key kernel needs at once, and delta, the sum of out d_out of every
// row, which takes reading both whatever the mask. A few processors make it, in order, while the key kernel
// runs on the others.
#include <algorithm>

#include "kernels/cuda/attention256_backward.cuh"

namespace lapidary::attention256 {

namespace {

struct PrepareArguments {
  CUtensorMap out, d_out;  ///< of rows: heads of tokens
  const float* lse;
  const std::int32_t *lo, *hi;
  int *counters, *stored;
  float *lse2, *delta;
  std::int32_t *query_begin, *query_end, *first;
  int tokens, heads, stride;
  int counter_count;
  DeltaFlags flags;
  int row_blocks;  ///< of threads, that make delta
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

/// What the key kernel needs at once. The last block of threads places tiles; of all a thread per query: the
/// keys of which it is the first that sees them, and the first that does not any more; and a thread per head
/// and token: lse log2(e), infinity where a query has no keys and past the last token, so that every
/// probability there is 0.
__device__ void plan(const PrepareArguments& a) {
  if (blockIdx.x + 1 == gridDim.x) {
    for (int i = static_cast<int>(threadIdx.x); i < a.counter_count; i += kPrepareThreads) a.counters[i] = 0;
    for (int i = static_cast<int>(threadIdx.x); i * kTile < a.tokens; i += kPrepareThreads)
      a.stored[i] = a.flags.ready[i] = 0;
    place_tiles(a);
  }
  const int step = static_cast<int>(gridDim.x) * kPrepareThreads;
  const int thread = static_cast<int>(blockIdx.x) * kPrepareThreads + static_cast<int>(threadIdx.x);
  for (int query = thread; query / 32 <= a.tokens / 32; query += step) find_queries(a, query);
#pragma unroll 4
  for (int index = thread; index < a.heads * a.stride; index += step) {
    const int head = index / a.stride, token = index % a.stride;
    const float lse =
        token < a.tokens ? a.lse[static_cast<std::int64_t>(head) * a.tokens + token] : -INFINITY;
    a.lse2[index] = lse == -INFINITY ? INFINITY : lse * kLog2E;
    if (token >= a.tokens) a.delta[index] = 0.0f;
  }
}

// --------------------------------------------------------------------------------------------- delta

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

/// Sums over pairs of lanes that differ in `bit`: of the first half of the numbers in one, of the second in
/// the other.
template <int kCount>
__device__ inline void halve(float (&sum)[8], unsigned bit) {
  const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float keep = upper ? sum[i + kCount] : sum[i], give = upper ? sum[i] : sum[i + kCount];
    sum[i] = keep + __shfl_xor_sync(0xffffffffu, give, static_cast<int>(bit));
  }
}

/// Rows of out and of d_out on their way through a warp, eight of each at a time.
struct RowSlots {
  static constexpr int kSlots = 3, kRows = 8;
  static constexpr std::uint32_t kBytes = kRows * kDim * sizeof(Bf16);
  uint4 row[kSlots][2][kRows][32];
};
struct RowBarriers {
  Barrier full[RowSlots::kSlots], empty[RowSlots::kSlots];

  __device__ void init() {
    for (Barrier& b : full) hopper::barrier_init(at(&b), 1);
    for (Barrier& b : empty) hopper::barrier_init(at(&b), 32);
    hopper::fence_barrier_init();
  }
};
struct PrepareShared {
  RowSlots slots[kPrepareWarps];
  RowBarriers barriers[kPrepareWarps];
};

/// A warp that makes delta of one unit of rows after the other. Rows past the last token come as zeros.
class RowSums {
 public:
  __device__ RowSums(const PrepareArguments& a, RowSlots& slots, RowBarriers& barriers)
      : a_(a), slots_(slots), barriers_(barriers) {
    if (lane_ == 0) barriers_.init();
    __syncwarp();
  }

  /// The units from `unit` on, `step` apart.
  __device__ void run(int unit, int step) {
    loading_ = unit, step_ = step;
    for (int i = 0; i < RowSlots::kSlots; ++i) load();
    for (; unit < units_; unit += step) {
      for (int part = 0; part < kParts; ++part) sum_rows(unit * DeltaFlags::kRows + part * RowSlots::kRows);
      __syncwarp();
      if (lane_ != 0) continue;
      hopper::fence_gpu();
      hopper::add_relaxed(a_.flags.ready + unit / a_.flags.block_units(), 1);
      hopper::add_relaxed(a_.flags.all, 1);
    }
  }

 private:
  static constexpr int kParts = DeltaFlags::kRows / RowSlots::kRows;

  /// Sends for the next rows.
  __device__ void load() {
    if (loading_ >= units_) return;
    if (lane_ == 0) {
      const Barrier& full = barriers_.full[filled_.stage];
      hopper::wait(at(&barriers_.empty[filled_.stage]), filled_.parity ^ 1);
      hopper::arrive_expect(at(&full), 2 * RowSlots::kBytes);
      const hopper::Box box(0, loading_ * DeltaFlags::kRows + part_ * RowSlots::kRows);
      hopper::tma_load(at(slots_.row[filled_.stage][0]), a_.out, box, at(&full));
      hopper::tma_load(at(slots_.row[filled_.stage][1]), a_.d_out, box, at(&full));
    }
    filled_.next();
    if (++part_ == kParts) part_ = 0, loading_ += step_;
  }

  /// Four lanes have the sum of a row in the end.
  __device__ void sum_rows(int row) {
    hopper::wait(at(&barriers_.full[read_.stage]), read_.parity);
    float sum[RowSlots::kRows];
#pragma unroll
    for (int i = 0; i < RowSlots::kRows; ++i)
      sum[i] = multiply(slots_.row[read_.stage][0][i][lane_], slots_.row[read_.stage][1][i][lane_]);
    hopper::arrive(at(&barriers_.empty[read_.stage]));
    read_.next();
    load();
    halve<4>(sum, 16);
    halve<2>(sum, 8);
    halve<1>(sum, 4);
    for (int step = 2; step > 0; step /= 2) sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], step);
    row += lane_ / 4;
    if (lane_ % 4 == 0)
      a_.delta[static_cast<std::int64_t>(row % a_.heads) * a_.stride + row / a_.heads] = sum[0];
  }

  const PrepareArguments& a_;
  RowSlots& slots_;
  RowBarriers& barriers_;
  const int lane_ = static_cast<int>(threadIdx.x) % 32, units_ = a_.flags.units();
  int loading_ = 0, step_ = 0, part_ = 0;
  Ring<RowSlots::kSlots> filled_, read_;
};

/// Plans; then the blocks of the key kernel may take the processors of those that end, and the first blocks
/// make delta, whose flags tell how far they are.
__global__ void __launch_bounds__(kPrepareThreads, 1)
    prepare_kernel(const __grid_constant__ PrepareArguments a) {
  hopper::wait_for_previous();
  plan(a);
  hopper::fence_gpu();
  __syncthreads();
  hopper::launch_dependents();
  const auto block = static_cast<int>(blockIdx.x);
  if (block >= a.row_blocks) return;
  auto& s = shared_memory<PrepareShared>();
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);
  RowSums(a, s.slots[warp], s.barriers[warp]).run(block * kPrepareWarps + warp, a.row_blocks * kPrepareWarps);
}

CUtensorMap rows_map(const void* x, const AttentionSizes& sizes) {
  return make_tensor_map({.data = const_cast<void*>(x),
                          .dtype = DType::bf16,
                          .dims = 2,
                          .size = {kDim, sizes.tokens * sizes.heads},
                          .stride = {1, kDim},
                          .box = {kDim, RowSlots::kRows},
                          .swizzle = false});
}

/// How many processors make delta: so many that it takes half of the time of the first round's keys, all
/// where nothing is kept. Cycles of a processor as measured: of a row, of a step of the key kernel and of its
/// items.
int row_blocks(const Attention256Backward& call, const Round& first) {
  const AttentionSizes& z = call.sizes;
  const double rows = 29.0 * static_cast<double>(z.tokens * z.heads);
  const double steps = static_cast<double>(first.head_tiles * first.kv_heads * z.group());
  const double items = static_cast<double>((z.tokens + kTile - 1) / kTile * first.kv_heads);
  const double keys = first.head_tiles == 0 ? rows : 2510.0 * steps + 6400.0 * items;
  return std::max(1, static_cast<int>(2.0 * processors() * rows / (rows + keys)));
}

}  // namespace

void prepare(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& first,
             cudaStream_t stream) {
  PrepareArguments a{};
  a.out = rows_map(call.out, call.sizes), a.d_out = rows_map(call.d_out, call.sizes);
  a.lse = call.lse, a.lo = call.lo, a.hi = call.hi;
  a.counters = buffers.counters, a.stored = buffers.stored, a.lse2 = buffers.lse2, a.delta = buffers.delta;
  a.query_begin = buffers.query_begin, a.query_end = buffers.query_end;
  a.first = buffers.first;
  a.tokens = static_cast<int>(call.sizes.tokens), a.heads = static_cast<int>(call.sizes.heads);
  a.stride = buffers.stride;
  a.counter_count = static_cast<int>(3 * call.sizes.kv_heads + 1);
  a.flags = buffers.delta_flags(call.sizes);
  a.row_blocks = row_blocks(call, first);
  cuda_ok(cudaFuncSetAttribute(prepare_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(sizeof(PrepareShared))),
          "AttentionBackward");
  launch_following("AttentionBackward", prepare_kernel, a, processors(), kPrepareThreads,
                   sizeof(PrepareShared), stream);
}

}  // namespace lapidary::attention256
