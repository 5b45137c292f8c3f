// Backward attention for head dimension 512 on one key head: docs/attention512.md. One persistent kernel
// works through blocks (a chunk of queries against a range of keys): a block's probabilities p and their
// gradients ds are written once as bf16 tiles, then dq = ds k, dk += ds^T q and dv += p^T d_out read them.
// All five products run in the same loop: a cluster of two CTAs takes tasks in order from a counter and
// shares the second operand of each product through multicast.
#include <algorithm>

#include "kernels/cuda/attention512.h"
#include "kernels/cuda/attention512_loader.cuh"
#include "kernels/cuda/attention512_prepare.cuh"
#include "kernels/cuda/attention512_tasks.cuh"
#include "kernels/cuda/dependent_launch.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/processors.h"
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
  const int rank, group, thread, warp, lane;
  Cursor<kStages> stage;
  Cursor<kTaskSlots> task;
  float sums[128];

  __device__ Consumer(const Problem& problem, Shared& memory, int warpgroup)
      : z(problem),
        shared(memory),
        rank(static_cast<int>(cluster_rank())),
        group(warpgroup),
        thread(static_cast<int>(threadIdx.x) % 128),
        warp(thread / 32),
        lane(thread % 32) {}

  __device__ Task next_task() {
    wait(shared_address(&shared.task_full[task.slot]), task.phase);
    const Task t = shared.task[task.slot];
    __syncwarp();
    if (lane == 0) arrive(shared_address(&shared.task_empty[task.slot]));
    return t;
  }
  /// What this warp has to store of its task is stored.
  __device__ void end_task() {
    __syncwarp();
    if (lane == 0) arrive(shared_address(&shared.task_done[task.slot]));
    task.next();
  }

  /// Gives a stage back to both CTAs, which both write it: warp r tells CTA r.
  __device__ void release(int slot) {
    if (lane == 0 && warp < kCtas)
      arrive_at(shared_address(&shared.empty[slot]), static_cast<std::uint32_t>(warp));
  }

  /// Takes the next stage without reading it. Nobody gives it back before all warps have seen it.
  __device__ void pass() {
    wait(shared_address(&shared.full[stage.slot]), stage.phase);
    named_sync(1 + group, 128);
    release(stage.slot);
    stage.next();
  }

  __device__ void start_sums(float start, float start_below) {
#pragma unroll
    for (int i = 0; i < 128; ++i) sums[i] = i / 2 % 2 == 0 ? start : start_below;
  }

  /// sums += first operand [64, 64 steps] second operand [64 steps, kColumns].
  template <Major kA, Major kB, int kColumns>
  __device__ void product(int steps) {
    auto& sum = reinterpret_cast<float(&)[kColumns / 2]>(sums);
    int before = 0;
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      wait(shared_address(&shared.full[stage.slot]), stage.phase);
      const std::uint32_t at = shared_address(shared.ring[stage.slot]);
      const std::uint64_t a = descriptor(at + group * kPanel, 0), b = descriptor(at + kStageA, 64 * 128);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        Wgmma<kColumns>::template run<kA, kB>(sum, a + k * kDescriptorStep<kA>, b + k * kDescriptorStep<kB>,
                                              true);
      wgmma_commit();
      wgmma_wait<1>();
      if (s > 0) release(before);
      before = stage.slot;
      stage.next();
    }
    wgmma_wait<0>();
    pin(sum);
    if (steps > 0) release(before);
  }

  /// Scores of as many panels of keys as there are, from `start` of their row on.
  __device__ void score_product(int panels, float start, float start_below) {
    start_sums(start, start_below);
    if (panels == 4) {
      product<Major::k, Major::k, 256>(kDim / 64);
    } else if (panels == 3) {
      product<Major::k, Major::k, 192>(kDim / 64);
    } else if (panels == 2) {
      product<Major::k, Major::k, 128>(kDim / 64);
    } else {
      product<Major::k, Major::k, 64>(kDim / 64);
    }
  }

  template <Major kA>
  __device__ void gradient_product(const Task& t, const Part& part) {
    start_sums(0, 0);
    for (int s = 0; s < part.from; ++s) pass();
    product<kA, Major::mn, 256>(part.to - part.from);
    for (int s = part.to; s < t.steps(); ++s) pass();
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
        z.tile(t.slot, gradients, t.from[0] + column, t.box(rank) + group) + warp * kWarpPanel + lane * 16;
#pragma unroll
    for (int i = 0; i < kWarpPanel; i += 512)
      *reinterpret_cast<uint4*>(to + i) = load_shared(panel() + lane * 16 + i);
  }

  /// The row of the problem that this thread's sums i with i / 2 % 2 == r belong to.
  __device__ int row_of(const Task& t, int r) const {
    return t.row(rank) + group * 64 + warp * 16 + lane / 4 + 8 * r;
  }

  /// Keys of the tile that a row sees.
  __device__ int2 visible(const Task& t, int r) const {
    const int row = row_of(t, r);
    if (row >= z.rows()) return make_int2(0, 0);
    const int key = t.key + t.from[0] * 64;
    return make_int2(z.lo[z.token(row)] - key, z.hi[z.token(row)] - key);
  }

  /// Puts `value` in the place of keys that their row does not see.
  __device__ void hide(const int2 (&see)[2], float value) {
#pragma unroll
    for (int i = 0; i < 128; ++i) {
      const int key = i / 4 * 8 + lane % 4 * 2 + i % 2, r = i / 2 % 2;
      if (key < see[r].x || key >= see[r].y) sums[i] = value;
    }
  }

  /// p and ds of 64 rows and up to 256 keys.
  __device__ void scores(const Task& t) {
    // Read beside the product, and not looked at before it ends.
    float2 statistics[2];
    int2 see[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = row_of(t, r);
      statistics[r] = row < z.rows() ? __ldcg(z.statistics + row) : make_float2(0, 0);
      see[r] = visible(t, r);
    }
    const int panels = t.to[0] - t.from[0];
    std::uint32_t p[64];
    score_product(panels, 0, 0);
    const float lse[2] = {statistics[0].x, statistics[1].x}, delta[2] = {statistics[0].y, statistics[1].y};
    const bool covered =
        __all_sync(0xffffffffu, max(see[0].x, see[1].x) <= 0 && min(see[0].y, see[1].y) >= panels * 64);
    if (!covered) hide(see, -INFINITY);
#pragma unroll
    for (int column = 0; column < kPanels; ++column) {
      if (column >= panels) break;
      std::uint32_t word[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int at = column * 16 + i;
        word[i] = p[at] = pack_bf16(exp2_fast(fmaf(sums[2 * at], kLog2e, -lse[at % 2])),
                                    exp2_fast(fmaf(sums[2 * at + 1], kLog2e, -lse[at % 2])));
      }
      store_tile(t, false, column, word);
    }
    score_product(panels, -delta[0], -delta[1]);
    if (!covered) hide(see, 0.0f);  // whatever a hidden key holds, infinities too, stays out
#pragma unroll
    for (int column = 0; column < kPanels; ++column) {
      if (column >= panels) break;
      std::uint32_t word[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int at = column * 16 + i;
        word[i] = pack_bf16(__uint_as_float(p[at] << 16) * sums[2 * at],
                            __uint_as_float(p[at] & 0xffff0000u) * sums[2 * at + 1]);
      }
      store_tile(t, true, column, word);
    }
  }

  /// Adds 64 rows of dq, dk or dv to what earlier blocks have summed, in the blocks' order, and keeps the sum
  /// or, after the last, rounds it.
  __device__ void accumulate(const Task& t, const Part& part) {
    if (!part.valid) return;
    const bool queries = t.kind == Kind::d_q;
    float4* const image = (queries ? z.query_sums : z.key_sums) +
                          static_cast<std::int64_t>(part.unit) * (64 * 256 / 4) + thread;
    if (part.wait > 0) {
      if (lane == 0) wait_at_least(z.counters.flag(t.kind, part.unit), part.wait);
      __syncwarp();
    }
    if (!part.first) {
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
    if (part.last) {
      Bf16* const result = queries ? z.d_q : t.kind == Kind::d_k ? z.d_k : z.d_v;
      store_rows(panel(), sums, {1.0f, 1.0f}, result, part.row + warp * 16, queries ? z.rows() : z.tokens,
                 t.half * 256);
    } else {
#pragma unroll
      for (int i = 0; i < 32; ++i)
        __stcg(image + i * 128, make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
    }
  }

  __device__ void run() {
    for (;;) {
      const Task t = next_task();
      if (t.kind == Kind::end) break;
      if (t.kind == Kind::scores) {
        scores(t);
        end_task();
        continue;
      }
      const Part part(z, t, rank, group);
      if (t.kind == Kind::d_q) {
        gradient_product<Major::k>(t, part);
      } else {
        gradient_product<Major::mn>(t, part);
      }
      accumulate(t, part);
      end_task();
    }
  }
};

__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads, 1)
    attention512_gradients(const __grid_constant__ Maps maps, const __grid_constant__ Problem z) {
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) shared.init();
  cluster_arrive();
  cluster_wait();
  wait_for_previous();
  if (threadIdx.x < 128) {
    registers_dec<40>();
    if (threadIdx.x == 0) {
      Loader(maps, z, shared).run();
    } else if (threadIdx.x / 32 == 1) {
      Scheduler(z, shared).run();
    } else if (threadIdx.x / 32 == 2) {
      RowStatistics(maps.out_rows, maps.d_out_rows, z, shared.statistics).run();
    } else if (threadIdx.x == 96) {
      Teller{z, shared, static_cast<int>(cluster_rank())}.run();
    }
  } else {
    registers_inc<232>();
    Consumer(z, shared, static_cast<int>(threadIdx.x) / 128 - 1).run();
  }
  // A CTA that ends early would take its barriers and its ring from under the other.
  __syncwarp();
  cluster_arrive();
  cluster_wait();
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

}  // namespace

void attention512_backward(Stream& stream, const AttentionBackward& op) {
  const AttentionSizes sizes{op.q.size(0), op.q.size(1), op.k.size(1), op.q.size(2)};
  const Attention512Scratch scratch = attention512_scratch(sizes);
  const Problem z = problem_of(op, scratch);
  const cudaStream_t s = cuda_stream(stream);
  attention512_plan<<<1, kPrepareThreads, 0, s>>>(z, static_cast<int>(scratch.counters / sizeof(int)));
  launched("AttentionBackward");
  const int planners = std::min(static_cast<int>(scratch.most_blocks), processors());
  const auto rows = static_cast<unsigned>(ceil_div(std::max(z.prepared_rows(), z.tokens), kPrepareWarps));
  launch_dependent("AttentionBackward", attention512_prepare, static_cast<unsigned>(planners) + rows,
                   kPrepareThreads, 0, s, z, planners);
  const Maps maps{rows_map(op.q, kTile),
                  rows_map(op.d_out, kTile),
                  rows_map(op.k, kKeyTile / kCtas),
                  rows_map(op.v, kKeyTile / kCtas),
                  blocks_map(op.q),
                  blocks_map(op.d_out),
                  blocks_map(op.k),
                  rows_map(op.out, kStatisticsRows),
                  rows_map(op.d_out, kStatisticsRows)};
  static const cudaError_t allowed =
      cudaFuncSetAttribute(attention512_gradients, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  cuda_ok(allowed, "shared memory of attention512_gradients");
  launch_dependent("AttentionBackward", attention512_gradients,
                   static_cast<unsigned>(processors() / kCtas * kCtas), kThreads, kSharedBytes, s, maps, z);
}

}  // namespace lapidary
