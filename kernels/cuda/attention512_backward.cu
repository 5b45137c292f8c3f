// Backward attention for head dimension 512 on one key head: docs/attention512.md. One persistent kernel
// works through blocks (a chunk of queries against a range of keys): a block's probabilities p and their
// gradients ds are written once as bf16 tiles, then dq = ds k, dk += ds^T q and dv += p^T d_out read them.
// All five products run in the same loop: a cluster of two CTAs takes tasks in order from a counter and
// shares the second operand of each product through multicast.
#include <algorithm>

#include "kernels/cuda/attention512.h"
#include "kernels/cuda/attention512_loader.cuh"
#include "kernels/cuda/attention512_tasks.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_map.h"

namespace lapidary {

namespace {

using namespace hopper;
using namespace attention512;

constexpr int kThreads = 3 * 128;        ///< a warpgroup that loads, two that compute
constexpr int kWarpPanel = 16 * 64 * 2;  ///< a warp's 16 rows of a panel of 64 columns
constexpr int kSharedBytes = sizeof(Shared) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

/// Stores a warp's 16 rows of 256 sums, times a factor for each of the thread's two, at rows [row, row + 16)
/// and columns from `column` on of x [rows, kDim], by way of 2 KiB of shared memory that are the warp's own.
__device__ inline void store_rows(std::uint32_t panel, const float (&sum)[128], const float (&factor)[2],
                                  Bf16* x, int row, int rows, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  row += lane / 8;
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    __syncwarp();
    store_panel(panel, sum, block, factor);
    __syncwarp();
    Bf16* const to = x + static_cast<std::int64_t>(row) * kDim + column + block * 64 + lane % 8 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row + i * 4 < rows)
        *reinterpret_cast<uint4*>(to + i * 4 * kDim) = load_shared(panel + swizzle128(i * 512 + lane * 16));
    }
  }
}

/// One of the two computing warpgroups: 64 rows of every product, 256 columns.
struct Consumer {
  const Problem& z;
  Shared& shared;
  const int group, thread, warp, lane;
  Cursor<kStages> stage;
  Cursor<2> task;
  /// What this warp has stored without telling.
  struct {
    int* counter = nullptr;
    int* flag = nullptr;
    int value = 0;
  } untold;
  float sums[128];

  __device__ Consumer(const Problem& problem, Shared& memory, int warpgroup)
      : z(problem),
        shared(memory),
        group(warpgroup),
        thread(static_cast<int>(threadIdx.x) % 128),
        warp(thread / 32),
        lane(thread % 32) {}

  /// Tells that what this warp stored last is there. Not at once, for the fence waits for the stores: they
  /// end beside the next product.
  __device__ void tell() {
    __syncwarp();
    if (untold.counter != nullptr && lane == 0) {
      fence_gpu();
      if (untold.flag != nullptr) store_relaxed(untold.flag, untold.value);
      add_relaxed(untold.counter, 1);
    }
    untold = {};
  }

  __device__ Task next_task() {
    const std::uint32_t full = shared_address(&shared.task_full[task.slot]);
    // Whoever waits may wait for what is untold.
    if (!__all_sync(0xffffffffu, test_wait(full, task.phase))) {
      tell();
      wait(full, task.phase);
    }
    const Task t = shared.task[task.slot];
    __syncwarp();
    if (lane == 0) arrive(shared_address(&shared.task_empty[task.slot]));
    task.next();
    return t;
  }

  /// Gives a stage back to both CTAs, which both write it: warp r tells CTA r.
  __device__ void release(int slot) {
    if (lane == 0 && warp < kCtas)
      arrive_at(shared_address(&shared.empty[slot]), static_cast<std::uint32_t>(warp));
  }

  /// sums = start of their row + first operand [64, 64 steps] second operand [64 steps, 256].
  template <Major kA, Major kB>
  __device__ void product(int steps, float start = 0.0f, float start_below = 0.0f) {
    int before = 0;
#pragma unroll
    for (int i = 0; i < 128; ++i) sums[i] = i / 2 % 2 == 0 ? start : start_below;
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      wait(shared_address(&shared.full[stage.slot]), stage.phase);
      const std::uint32_t at = shared_address(shared.ring[stage.slot]);
      const std::uint64_t a = descriptor(at + group * kPanel, 0), b = descriptor(at + kStageA, 64 * 128);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        Wgmma<256>::run<kA, kB>(sums, a + k * kDescriptorStep<kA>, b + k * kDescriptorStep<kB>, true);
      wgmma_commit();
      wgmma_wait<1>();
      if (s > 0) release(before);
      before = stage.slot;
      stage.next();
    }
    wgmma_wait<0>();
    pin(sums);
    if (steps > 0) release(before);
  }

  /// Where this warp's 16 rows of 64 columns are put together on their way out, swizzled as in a tile.
  __device__ std::uint32_t panel() const {
    return shared_address(shared.staging[group]) + warp * kWarpPanel;
  }

  __device__ void store_tile(const Task& t, bool gradients, int column, const std::uint32_t (&word)[16]) {
    __syncwarp();
    store_panel(panel(), word);
    __syncwarp();
    std::byte* const to =
        z.tile(t.slot, gradients, t.panel + column, t.box + group) + warp * kWarpPanel + lane * 16;
#pragma unroll
    for (int i = 0; i < kWarpPanel; i += 512)
      *reinterpret_cast<uint4*>(to + i) = load_shared(panel() + lane * 16 + i);
  }

  /// The row of the problem that this thread's sums i with i / 2 % 2 == r belong to.
  __device__ int row_of(const Task& t, int r) const {
    return t.row + group * 64 + warp * 16 + lane / 4 + 8 * r;
  }

  /// Keys of the tile that a row sees.
  __device__ int2 visible(const Task& t, int r) const {
    const int row = row_of(t, r);
    if (row >= z.rows()) return make_int2(0, 0);
    return make_int2(z.lo[row / z.heads] - t.key, z.hi[row / z.heads] - t.key);
  }

  /// Puts `value` in the place of keys that their row does not see.
  __device__ void hide(const Task& t, float value) {
    const int2 see[2] = {visible(t, 0), visible(t, 1)};
#pragma unroll
    for (int i = 0; i < 128; ++i) {
      const int key = i / 4 * 8 + lane % 4 * 2 + i % 2, r = i / 2 % 2;
      if (key < see[r].x || key >= see[r].y) sums[i] = value;
    }
  }

  /// p and ds of 64 rows and 256 keys.
  __device__ void scores(const Task& t) {
    float lse[2], delta[2];
    bool covered = true;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = row_of(t, r);
      const float2 statistics = row < z.rows() ? z.statistics[row] : make_float2(0, 0);
      lse[r] = statistics.x, delta[r] = statistics.y;
      const int2 see = visible(t, r);
      covered = covered && see.x <= 0 && see.y >= kKeyTile;
    }
    covered = __all_sync(0xffffffffu, covered);
    std::uint32_t p[64];
    product<Major::k, Major::k>(kDim / 64);
    tell();
    if (!covered) hide(t, -INFINITY);
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      std::uint32_t word[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int at = column * 16 + i;
        word[i] = p[at] = pack_bf16(exp2_fast(fmaf(sums[2 * at], kLog2e, -lse[at % 2])),
                                    exp2_fast(fmaf(sums[2 * at + 1], kLog2e, -lse[at % 2])));
      }
      store_tile(t, false, column, word);
    }
    product<Major::k, Major::k>(kDim / 64, -delta[0], -delta[1]);
    if (!covered) hide(t, 0.0f);  // whatever a hidden key holds, infinities too, stays out
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      std::uint32_t word[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int at = column * 16 + i;
        word[i] = pack_bf16(__uint_as_float(p[at] << 16) * sums[2 * at],
                            __uint_as_float(p[at] & 0xffff0000u) * sums[2 * at + 1]);
      }
      store_tile(t, true, column, word);
    }
    untold = {z.counters.scores_done + t.block, nullptr, 0};
  }

  /// Adds 64 rows of dq, dk or dv to what earlier blocks have summed, in the blocks' order, and keeps the sum
  /// or, after the last, rounds it. Every warp has flags of its own: it meets only itself.
  __device__ void accumulate(const Task& t, Bf16* result, int row, int rows) {
    untold = {z.counters.products_done + t.block, nullptr, 0};
    if (!t.valid) return;
    const int unit = t.unit + group;
    int* const flag = (t.kind == Kind::d_q ? z.counters.query_flags : z.counters.key_flags) + unit * 4 + warp;
    float4* const image = (t.kind == Kind::d_q ? z.query_sums : z.key_sums) +
                          static_cast<std::int64_t>(unit) * (64 * 256 / 4) + thread;
    if (t.wait > 0) {
      if (lane == 0) wait_at_least(flag, t.wait);
      __syncwarp();
    }
    if (!t.first) {
#pragma unroll
      for (int i = 0; i < 32; i += 16) {
        float4 x[16];
#pragma unroll
        for (int j = 0; j < 16; ++j) x[j] = __ldcg(image + (i + j) * 128);
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          sums[4 * (i + j)] += x[j].x, sums[4 * (i + j) + 1] += x[j].y;
          sums[4 * (i + j) + 2] += x[j].z, sums[4 * (i + j) + 3] += x[j].w;
        }
      }
    }
    if (t.last) {
      store_rows(panel(), sums, {1.0f, 1.0f}, result, row + group * 64 + warp * 16, rows, t.half * 256);
    } else {
#pragma unroll
      for (int i = 0; i < 32; ++i)
        __stcg(image + i * 128, make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
    }
    untold.flag = flag, untold.value = t.set;
  }

  __device__ void run() {
    for (;;) {
      const Task t = next_task();
      if (t.kind == Kind::end) break;
      if (t.kind == Kind::scores) {
        scores(t);
      } else {
        if (t.kind == Kind::d_q) {
          product<Major::k, Major::mn>(t.steps);
        } else {
          product<Major::mn, Major::mn>(t.steps);
        }
        tell();
        if (t.kind == Kind::d_q) {
          accumulate(t, z.d_q, t.row, z.rows());
        } else {
          accumulate(t, t.kind == Kind::d_k ? z.d_k : z.d_v, t.key, z.tokens);
        }
      }
    }
    tell();
  }
};

__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads, 1)
    attention512_gradients(const __grid_constant__ Maps maps, const __grid_constant__ Problem z) {
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared_address(&shared.full[i]), 1);
      barrier_init(shared_address(&shared.empty[i]), 2 * kCtas);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&shared.task_full[i]), 1);
      barrier_init(shared_address(&shared.task_empty[i]), 8);
    }
    shared.tickets.init();
    fence_barrier_init();
  }
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x < 128) {
    registers_dec<40>();
    if (threadIdx.x < 32) Loader(maps, z, shared).run();
  } else {
    registers_inc<232>();
    Consumer(z, shared, static_cast<int>(threadIdx.x) / 128 - 1).run();
  }
  // A CTA that ends early would take its barriers and its ring from under the other.
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}

struct Preparation {
  const Bf16 *out, *d_out;
  const float* lse;
  int counters;  ///< from the ticket on
};
constexpr int kPrepareThreads = 256, kPrepareWarps = kPrepareThreads / 32;

/// Per row: the log-sum-exp in log2 and the dot product of output and its gradient. A warp per row.
__device__ void row_statistics(const Preparation& a, const Problem& z, int row, int lane) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int64_t at = static_cast<std::int64_t>(row) * kDim + (i * 32 + lane) * 8;
    const auto x = Pack<Bf16, 8>::load(a.out + at), y = Pack<Bf16, 8>::load(a.d_out + at);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += x.get(j) * y.get(j);
  }
  sum = warp_sum(sum);
  const float lse = a.lse[static_cast<std::int64_t>(row % z.heads) * z.tokens + row / z.heads];
  // A row without keys has a log-sum-exp of -inf; with +inf all its p are 0.
  if (lane == 0) z.statistics[row] = make_float2(lse == -INFINITY ? INFINITY : lse * kLog2e, sum);
}

/// Cuts every chunk's keys into ranges, in order. One block of threads.
__device__ void plan_blocks(const Problem& z) {
  __shared__ int scan[kPrepareThreads];
  const int chunks = static_cast<int>(ceil_div(z.tokens, z.chunk_tokens));
  int total = 0;
  for (int base = 0; base < chunks; base += kPrepareThreads) {
    const int chunk = base + static_cast<int>(threadIdx.x);
    const int begin = chunk * z.chunk_tokens, end = min(begin + z.chunk_tokens, z.tokens);
    int first_key = 0, keys = 0, ranges = 0;
    if (chunk < chunks) {
      first_key = z.lo[begin] / kTile * kTile;
      keys = max(z.hi[end - 1] - first_key, 0);
      ranges = max(1, static_cast<int>(ceil_div(keys, z.range_keys)));
    }
    scan[threadIdx.x] = ranges;
    __syncthreads();
    for (int step = 1; step < kPrepareThreads; step *= 2) {
      const int left = static_cast<int>(threadIdx.x) >= step ? scan[threadIdx.x - step] : 0;
      __syncthreads();
      scan[threadIdx.x] += left;
      __syncthreads();
    }
    const int at = total + scan[threadIdx.x] - ranges;
    for (int i = 0; i < ranges; ++i)
      z.blocks[at + i] = Block{begin * z.heads,
                               (end - begin) * z.heads,
                               first_key + i * z.range_keys,
                               min(keys - i * z.range_keys, z.range_keys),
                               chunk,
                               i,
                               ranges,
                               0};
    total += scan[kPrepareThreads - 1];
    __syncthreads();
  }
  if (threadIdx.x == 0) *z.counters.blocks = total;
}

/// The first block of threads plans. Of the others every warp takes a row, and every thread clears 16 bytes
/// of dk and of dv: nobody else writes those of keys that nobody sees.
__global__ void __launch_bounds__(kPrepareThreads)
    attention512_prepare(const __grid_constant__ Preparation a, const __grid_constant__ Problem z) {
  if (blockIdx.x == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < a.counters; i += kPrepareThreads)
      z.counters.ticket[i] = 0;
    __syncthreads();
    plan_blocks(z);
    return;
  }
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x - 1) * kPrepareThreads + threadIdx.x;
  if (thread < z.tokens * (kDim / 8)) {
    const uint4 nothing = make_uint4(0, 0, 0, 0);
    reinterpret_cast<uint4*>(z.d_k)[thread] = nothing;
    reinterpret_cast<uint4*>(z.d_v)[thread] = nothing;
  }
  const auto row = static_cast<int>(thread / 32);
  if (row < z.rows()) row_statistics(a, z, row, static_cast<int>(threadIdx.x) % 32);
}

CUtensorMap rows_map(const Tensor& x, std::int64_t box_rows) {
  return make_tensor_map(x.reshape({x.numel() / kDim, kDim}), box_rows, 64);
}

/// Columns fastest, then rows, then blocks of 64 columns: boxes of [2 blocks][64 rows][64].
CUtensorMap blocks_map(const Tensor& x) {
  return make_tensor_map({.data = x.data(),
                          .dtype = x.dtype(),
                          .dims = 3,
                          .size = {64, x.numel() / kDim, kDim / 64},
                          .stride = {1, kDim, 64},
                          .box = {64, 64, 4 / kCtas}});
}

/// Streaming multiprocessors of the current device.
int processors() {
  int device = 0, count = 0;
  cuda_ok(cudaGetDevice(&device), "cudaGetDevice");
  cuda_ok(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "counting SMs");
  return count;
}

}  // namespace

void attention512_backward(Stream& stream, const AttentionBackward& op) {
  const AttentionSizes sizes{op.q.size(0), op.q.size(1), op.k.size(1), op.q.size(2)};
  const Problem z = problem_of(op, attention512_scratch(sizes));
  const cudaStream_t s = cuda_stream(stream);
  const Preparation preparation{ptr<Bf16>(op.out), ptr<Bf16>(op.d_out), ptr<float>(op.lse),
                                static_cast<int>(attention512_scratch(sizes).counters / sizeof(int))};
  // A warp a row, and two warps a token where it has one row: enough threads to clear dk and dv.
  const auto grid = static_cast<unsigned>(1 + ceil_div(std::max(z.rows(), z.tokens * 2), kPrepareWarps));
  attention512_prepare<<<grid, kPrepareThreads, 0, s>>>(preparation, z);
  launched("AttentionBackward");
  const Maps maps{rows_map(op.q, kTile),
                  rows_map(op.d_out, kTile),
                  rows_map(op.k, kKeyTile / kCtas),
                  rows_map(op.v, kKeyTile / kCtas),
                  blocks_map(op.q),
                  blocks_map(op.d_out),
                  blocks_map(op.k)};
  static const cudaError_t allowed =
      cudaFuncSetAttribute(attention512_gradients, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  cuda_ok(allowed, "shared memory of attention512_gradients");
  const int ctas = processors() / kCtas * kCtas;
  attention512_gradients<<<static_cast<unsigned>(ctas), kThreads, kSharedBytes, s>>>(maps, z);
  launched("AttentionBackward");
}

}  // namespace lapidary
