// Forward attention for head dimension 512 on one key head: docs/attention512.md. A CTA holds 64 rows (a row
// is a query head of a token, heads fastest), a cluster of two CTAs shares every key and value through
// multicast. Two warpgroups each keep 256 columns of the output in registers and compute the scores of every
// other 64 keys; their probabilities meet in shared memory. Keys, then values of the tile before, stream
// through one ring of 16 KiB stages, so that the softmax of a tile runs between the steps of the value
// product of the one before.
#include <algorithm>
#include <cstddef>

#include "kernels/cuda/attention512.h"
#include "kernels/cuda/attention512_forward.cuh"
#include "kernels/cuda/dependent_launch.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/processors.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/work_counter.h"

namespace lapidary {

namespace {

using namespace hopper;
using namespace attention512;
using namespace attention512::forward;

/// Probabilities are relative to a maximum that is raised only when it is this much too low (in log2): bf16
/// and float32 hold 2^8 as well as 1, and the output is rescaled less often.
constexpr float kSlack = 8.0f;

/// What one thread of a computing warpgroup holds. Its two rows are `row` and row + 8 of the CTA.
struct Consumer {
  const CUtensorMap& out;
  const Problem& z;
  Shared& shared;
  const int group, thread, row;
  Cursor<2> at;
  std::uint32_t q_phase = 0;
  int lo[2], hi[2];  ///< keys that the rows see
  float o[128];
  float s[32];
  int turn = 0;                      ///< which of the two probabilities the tile has whose softmax was last
  float most[2];                     ///< of the warpgroup's scores of the tile
  float top[2], sum[2], rescale[2];  ///< what probabilities are relative to, theirs, what o still lacks
  /// An item whose output is complete but not stored; first_row negative: none.
  struct Complete {
    int first_row = -1, slot = 0;
    float top[2] = {};
  } complete;

  __device__ Consumer(const CUtensorMap& results, const Problem& problem, Shared& memory, int warpgroup)
      : out(results),
        z(problem),
        shared(memory),
        group(warpgroup),
        thread(static_cast<int>(threadIdx.x) % 128),
        row(thread / 32 * 16 + thread % 32 / 4) {}

  __device__ Item next_item() {
    wait(shared_address(&shared.item_full[at.slot]), at.phase);
    const Item item = shared.item[at.slot];
    __syncwarp();
    if (thread % 32 == 0) arrive(shared_address(&shared.item_empty[at.slot]));
    at.next();
    return item;
  }

  __device__ void look_up_rows(const Item& item) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = item.first_row + row + 8 * r;
      lo[r] = hi[r] = 0;
      if (at < z.rows()) lo[r] = z.lo[z.token(at)], hi[r] = z.hi[z.token(at)];
    }
  }

  /// Where shared memory begins, anew for every product: addresses and descriptors that the compiler keeps
  /// over a loop take registers from the sums.
  __device__ std::uint32_t base() const {
    std::uint32_t x;
    asm volatile("mov.u32 %0, %1;" : "=r"(x) : "r"(shared_address(&shared)));
    return x;
  }

  __device__ std::uint32_t probabilities(int which) const {
    return base() + offsetof(Shared, p) + which * (2 * kBox);
  }
  /// Where this warp's 16 rows of this warpgroup's box begin.
  __device__ std::uint32_t warp_panel() const {
    return group * kBox + thread / 32 * (kBox / 4);
  }

  __device__ std::uint32_t wait_stage(std::uint32_t base, int i, std::uint32_t parity) {
    wait(base + offsetof(Shared, full) + i * 8, parity);
    return base + offsetof(Shared, ring) + i * kStage;
  }

  /// Gives stages [from, to) back to both CTAs: warp r tells CTA r.
  __device__ void release(std::uint32_t base, int from, int to) {
#pragma unroll
    for (int i = from; i < to; ++i)
      if (thread % 32 == 0 && thread / 32 < kCtas)
        arrive_at(base + offsetof(Shared, empty) + i * 8, thread / 32);
  }

  /// Queues 64 columns of the scores of this warpgroup's 64 keys.
  __device__ void score_step(std::uint32_t base, int i, std::uint32_t parity) {
    const std::uint32_t stage = wait_stage(base, i, parity);
    const std::uint64_t a = descriptor(base + offsetof(Shared, q) + i * kBox, 0),
                        b = descriptor(stage + group * kBox, 0);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      Wgmma<64>::run<Major::k, Major::k>(s, a + k * kDescriptorStep<Major::k>,
                                         b + k * kDescriptorStep<Major::k>, i > 0 || k > 0);
    wgmma_commit();
  }

  /// Hides the keys that a row does not see of the warpgroup's 64 from `key` on.
  __device__ void mask(int key) {
    key += thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int at = key + i / 4 * 8 + i % 2, r = i / 2 % 2;
      if (at < lo[r] || at >= hi[r]) s[i] = -INFINITY;
    }
  }

  __device__ void hide(const Item& item, int tile) {
    const int key = item.begin + tile * kKeys;
    if (item.all_lo > key || key + kKeys > item.all_hi) mask(key + group * 64);
  }

  // The softmax in parts. First the maximum of the warpgroup's scores, which meets that of the other
  // warpgroup at the next barrier.
  __device__ void put_most() {
    most[0] = most[1] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 32; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], 2));
      if (thread % 4 == 0) shared.most[group][row + 8 * r] = most[r];
    }
  }
  /// What the probabilities of the tile, `first` of its item, are relative to.
  __device__ void common_most(bool first) {
    named_sync(1, 256);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float mine = fmaxf(most[r], shared.most[1 - group][row + 8 * r]) * kLog2e;
      rescale[r] = 1.0f;
      if (first) {
        top[r] = mine, sum[r] = 0.0f;
      } else if (mine > top[r] + kSlack) {
        rescale[r] = exp2_approx(top[r] - mine);
        top[r] = mine;
        sum[r] *= rescale[r];
      }
    }
  }
  /// Half of the scores become probabilities in the place that the values do not read.
  __device__ void exponentials(int half) {
    const std::uint32_t panel = probabilities(turn ^ 1) + warp_panel();
    const float base[2] = {top[0] == -INFINITY ? 0.0f : top[0], top[1] == -INFINITY ? 0.0f : top[1]};
#pragma unroll
    for (int i = half * 2; i < half * 2 + 2; ++i) {
      std::uint32_t word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = i * 8 + j * 2, r = j % 2;
        const float x = exp2_approx(fmaf(s[at], kLog2e, -base[r])),
                    y = exp2_approx(fmaf(s[at + 1], kLog2e, -base[r]));
        sum[r] += x + y;
        word[j] = pack_bf16(x, y);
      }
      store_panel_part(panel, i, word);
    }
  }
  /// Both warpgroups' probabilities are there: the next values read them.
  __device__ void hand_over() {
    fence_async_shared();
    named_sync(3, 256);
    turn ^= 1;
  }

  /// Brings the output to the maximum of the probabilities that come next. Nothing may be under way: the
  /// compiler serialises all products if it sees sums changed beside them.
  __device__ void rescale_output() {
    if (!__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] *= rescale[i / 2 % 2];
  }

  /// A tile's scores; beside them the results of the item before leave if they are complete.
  template <bool kStore>
  __device__ void score_steps(std::uint32_t parity, bool new_queries) {
    const std::uint32_t memory = base();
    float scale[2] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (new_queries) wait(memory + offsetof(Shared, q_full) + i * 8, q_phase);
      score_step(memory, i, parity);
      wgmma_wait<1>();
      if (i > 0) release(memory, i - 1, i);
      if (kStore && i == 0) finish_rows(scale);
      if (kStore && i % 2 == 1) store_results(i / 2, scale);
    }
    wgmma_wait<0>();
    release(memory, kSteps - 1, kSteps);
  }

  /// The same of a warpgroup whose keys nobody sees.
  __device__ void idle_steps(std::uint32_t parity) {
    const std::uint32_t memory = base();
    if (complete.first_row >= 0) store_complete();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      wait_stage(memory, i, parity);
      named_sync(4, 128);  // a warp that comes late would wait for the stage's next turn
      release(memory, i, i + 1);
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i] = -INFINITY;
  }

  __device__ void scores(std::uint32_t parity, bool new_queries, bool idle) {
    if (idle) {
      idle_steps(parity);
    } else if (complete.first_row >= 0) {
      score_steps<true>(parity, new_queries);
    } else {
      score_steps<false>(parity, new_queries);
    }
    complete.first_row = -1;
    if (new_queries) q_phase ^= 1;
    pin(s);
    pin(o);
  }

  /// Both warpgroups' sums of the two rows meet at the next barriers.
  __device__ void put_sums() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
      if (thread % 4 == 0) shared.sum[at.slot][group][row + 8 * r] = sum[r];
    }
  }

  /// What the sums of the complete item's rows are to be multiplied with. Then both warpgroups have read the
  /// probabilities before the last, whose place the results leave through.
  __device__ void finish_rows(float (&scale)[2]) {
    named_sync(2, 256);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int mine = row + 8 * r, at = complete.first_row + mine;
      const float total = shared.sum[complete.slot][0][mine] + shared.sum[complete.slot][1][mine];
      scale[r] = total > 0.0f ? 1.0f / total : 0.0f;
      if (group == 0 && thread % 4 == 0 && at < z.rows())
        z.lse[z.lse_at(at)] = (complete.top[r] + log2f(total)) * 0.6931471805599453f;
    }
  }
  /// 64 columns of them, by way of the place of the next probabilities, of which the warp has 2 KiB: TMA
  /// takes them from there beside products.
  __device__ void store_results(int block, const float (&scale)[2]) {
    const std::uint32_t panel = probabilities(turn ^ 1) + warp_panel();
    results_leave();
    store_panel(panel, o, block, scale);
    fence_async_shared();
    __syncwarp();
    if (thread % 32 == 0) {
      tma_store(out, Box(group * 256 + block * 64, complete.first_row + thread / 32 * 16), panel);
      bulk_commit();
    }
  }
  /// Waits until results have left that place.
  __device__ void results_leave() {
    if (thread % 32 == 0) bulk_wait_read<0>();
    __syncwarp();
  }
  __device__ void store_complete() {
    float scale[2];
    finish_rows(scale);
#pragma unroll
    for (int block = 0; block < 4; ++block) store_results(block, scale);
  }

  /// Values of a tile: how many steps have keys, and whether the output begins anew.
  struct Values {
    int steps;
    bool fresh;
  };
  /// Queues two steps, of 16 keys each, or two empty groups where there are no keys any more. (Products in
  /// one group or a step more or less in a branch of its own: ptxas serialises all of them.)
  __device__ void value_steps(int i, const Values& tile, std::uint32_t parity) {
    const std::uint32_t memory = base(), p = probabilities(turn);
    const std::uint32_t stage = wait_stage(memory, i, parity);
    wait_stage(memory, i + 1, parity);
    const std::uint64_t a = descriptor(p + i / 4 * kBox, 0) +
                            static_cast<std::uint64_t>(i % 4) * kDescriptorStep<Major::k>,
                        b = descriptor(stage + group * kBox, 128 * 16);
    if (i == 0 || i < tile.steps) {
      wgmma_fence();
      Wgmma<256>::run<Major::k, Major::mn>(o, a, b, !tile.fresh || i > 0);
      wgmma_commit();
      wgmma_fence();
      Wgmma<256>::run<Major::k, Major::mn>(o, a + kDescriptorStep<Major::k>, b + kStage / 16, true);
      wgmma_commit();
    } else {
      wgmma_commit();
      wgmma_commit();
    }
  }
  /// Gives back the two stages before.
  __device__ void release_values(int i) {
    wgmma_wait<2>();
    release(base(), i - 2, i);
  }

  /// A tile's values. Between their steps the softmax of the next tile's scores, in parts that take no longer
  /// than what is queued.
  __device__ void values(const Values& tile, const Item& next, int next_tile) {
    value_steps(0, tile, 0);
    hide(next, next_tile);
    put_most();
    value_steps(2, tile, 0);
    release_values(2);
    common_most(next_tile == 0);
    results_leave();
    value_steps(4, tile, 0);
    release_values(4);
    exponentials(0);
    value_steps(6, tile, 0);
    release_values(6);
    exponentials(1);
    hand_over();
    wgmma_wait<0>();
    release(base(), 6, 8);
    pin(o);
  }

  /// The first tile's scores and softmax.
  __device__ void begin(const Item& item) {
    look_up_rows(item);
    scores(0, true, group == 1 && item.half(0));
    hide(item, 0);
    put_most();
    common_most(true);
    exponentials(0);
    exponentials(1);
    hand_over();
  }

  /// The last item's last values, and its results.
  __device__ void end(const Values& tile, const Complete& last) {
    if (complete.first_row >= 0) store_complete();
    rescale_output();
#pragma unroll
    for (int i = 0; i < kSteps; i += 2) value_steps(i, tile, 1);
    wgmma_wait<0>();
    pin(o);
    complete = last;
    store_complete();
    results_leave();
  }

  /// In every turn the scores of the next tile, which may be the next item's first, and the values of this
  /// one.
  __device__ void run() {
    Item item = next_item();
    if (item.first_row < 0) return;
    begin(item);
    for (int tile = 0;;) {
      const bool last = tile + 1 == item.count;
      const Values now{last ? item.last_steps : kSteps, tile == 0};
      Complete done{-1, at.slot, {top[0], top[1]}};
      Item next = item;
      if (last) {
        put_sums();
        done.first_row = item.first_row;
        next = next_item();
        if (next.first_row < 0) return end(now, done);
        look_up_rows(next);
      }
      tile = last ? 0 : tile + 1;
      scores(1, last, group == 1 && next.half(tile));
      rescale_output();
      complete = done;
      values(now, next, tile);
      item = next;
    }
  }
};

__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                   const __grid_constant__ CUtensorMap v, const __grid_constant__ CUtensorMap out,
                   const __grid_constant__ Problem z) {
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) shared.init();
  follow_previous();
  cluster_arrive();
  cluster_wait();
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp < 4) {
    registers_dec<24>();
    if (threadIdx.x == 0) {
      Loader{q, k, v, shared, static_cast<int>(cluster_rank()), {}}.run();
    } else if (warp == 1) {
      Scheduler(z, shared).run();
    }
    __syncwarp();
  } else {
    registers_inc<240>();
    Consumer(out, z, shared, warp / 4 - 1).run();
  }
  // A CTA that ends early would take its barriers and its ring from under the other.
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}

/// Columns fastest, then rows, then blocks of 64 columns: boxes of [4 blocks][16 rows][64].
CUtensorMap value_map(const Tensor& v) {
  return make_tensor_map({.data = v.data(),
                          .dtype = v.dtype(),
                          .dims = 3,
                          .size = {64, v.size(0), kDim / 64},
                          .stride = {1, kDim, 64},
                          .box = {64, 16, 4}});
}

}  // namespace

void attention512_forward(Stream& stream, const Attention& op) {
  const std::int64_t tokens = op.q.size(0), heads = op.q.size(1);
  const CUtensorMap q = make_tensor_map(op.q.reshape({tokens * heads, kDim}), kRows, 64),
                    k = make_tensor_map(op.k.reshape({tokens, kDim}), 64, 64), v = value_map(op.v),
                    out = make_tensor_map(op.out.reshape({tokens * heads, kDim}), kRows / 4, 64);
  static const cudaError_t allowed =
      cudaFuncSetAttribute(forward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  cuda_ok(allowed, "shared memory of attention512");
  const Problem z{rows_of(tokens, heads), ptr<std::int32_t>(op.lo), ptr<std::int32_t>(op.hi),
                  ptr<float>(op.lse), static_cast<int*>(op.scratch.data())};
  reset_work_counter("Attention", z.counter, cuda_stream(stream));
  const auto clusters = std::min<std::int64_t>(ceil_div(tokens * heads, kCtas * kRows), processors() / kCtas);
  launch_dependent("Attention", forward_kernel, static_cast<unsigned>(clusters * kCtas), kThreads,
                   kSharedBytes, cuda_stream(stream), q, k, v, out, z);
  launched("Attention");
}

}  // namespace lapidary
