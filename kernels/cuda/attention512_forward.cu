// Forward attention for head dimension 512 on one key head: docs/attention512.md. A CTA holds 64 rows (a row
// is a query head of a token, heads fastest), a cluster of two CTAs shares every key and value through
// multicast. Two warpgroups each keep 256 columns of the output in registers and compute the scores of every
// other 64 keys; their probabilities meet in shared memory. Keys, then values of the tile before, stream
// through one ring of 16 KiB stages, so that the softmax of a tile runs beside the value product of the one
// before.
#include <algorithm>
#include <cstddef>

#include "kernels/cuda/attention512.h"
#include "kernels/cuda/attention512_forward.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/processors.h"
#include "kernels/cuda/tensor_map.h"

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
  int turn = 0;  ///< which of the two probabilities the tile has whose softmax was last
  float top[2], sum[2], rescale[2];
  /// An item whose output is complete but not stored; first_row negative: none.
  struct Complete {
    int first_row = -1, slot = 0, turn = 0;
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
  __device__ void release_queries() {
    q_phase ^= 1;
    if (thread == 0) arrive(shared_address(&shared.q_empty));
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

  /// Queues the values of 16 keys; o begins anew where `add` is false.
  __device__ void value_step(std::uint32_t base, std::uint32_t p, int i, std::uint32_t parity, bool add) {
    const std::uint32_t stage = wait_stage(base, i, parity);
    const std::uint64_t a = descriptor(p + i / 4 * kBox, 0) +
                            static_cast<std::uint64_t>(i % 4) * kDescriptorStep<Major::k>,
                        b = descriptor(stage + group * kBox, 128 * 16);
    wgmma_fence();
    Wgmma<256>::run<Major::k, Major::mn>(o, a, b, add);
    wgmma_commit();
  }

  /// The maximum of both warpgroups' keys for each of the two rows.
  __device__ void common_most(float (&most)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], 2));
      if (thread % 4 == 0) shared.most[group][row + 8 * r] = most[r];
    }
    if (thread == 0) bulk_wait_read<0>();  // results in the place of the next probabilities
    named_sync(1, 256);
#pragma unroll
    for (int r = 0; r < 2; ++r) most[r] = fmaxf(most[r], shared.most[1 - group][row + 8 * r]);
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

  /// Scores become probabilities in p, in steps so that stages can be given back in between.
  template <bool kFirst>
  __device__ void softmax_most() {
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 32; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
    common_most(most);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rescale[r] = 1.0f;
      if constexpr (kFirst) {
        top[r] = most[r] * kLog2e, sum[r] = 0.0f;
      } else if (most[r] * kLog2e > top[r] + kSlack) {
        rescale[r] = exp2_approx(top[r] - most[r] * kLog2e);
        top[r] = most[r] * kLog2e;
        sum[r] *= rescale[r];
      }
    }
  }
  /// Hands them over in the place that `turn` says.
  __device__ void softmax_exp() {
    const float base[2] = {top[0] == -INFINITY ? 0.0f : top[0], top[1] == -INFINITY ? 0.0f : top[1]};
    std::uint32_t p[16];
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      const int r = i / 2 % 2;
      const float x = exp2_approx(fmaf(s[i], kLog2e, -base[r])),
                  y = exp2_approx(fmaf(s[i + 1], kLog2e, -base[r]));
      sum[r] += x + y;
      p[i / 2] = pack_bf16(x, y);
    }
    store_panel(probabilities(turn) + warp_panel(), p);
    fence_async_shared();
    named_sync(3, 256);
  }
  __device__ void hide(const Item& item, int tile) {
    const int key = item.begin + tile * kKeys;
    if (item.all_lo > key || key + kKeys > item.all_hi) mask(key + group * 64);
  }

  /// Ends the value product of the tile before, whose last stages are still to be given back, and brings the
  /// output to this tile's maximum. Nothing may be under way: the compiler serialises all products if it sees
  /// sums read beside them.
  __device__ void finish_values(bool under_way) {
    wgmma_wait<0>();
    pin(o);
    if (under_way) release(base(), 6, kSteps);
    if (!__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] *= rescale[i / 2 % 2];
  }

  __device__ void store_complete() {
    float scale[2];
    finish_rows(scale);
#pragma unroll
    for (int block = 0; block < 4; ++block) store_results(block, scale);
    complete.first_row = -1;
  }

  /// The next tile's scores. Where the results of the item before are to leave, all are queued first.
  template <bool kStore>
  __device__ void score_steps(std::uint32_t parity, bool new_queries) {
    const std::uint32_t memory = base();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (new_queries) wait(memory + offsetof(Shared, q_full) + i * 8, q_phase);
      score_step(memory, i, parity);
      if (!kStore && i > 0) {
        wgmma_wait<1>();
        release(memory, i - 1, i);
      }
    }
    if constexpr (kStore) {
      float scale[2];
      finish_rows(scale);
      store_results(0, scale);
      wgmma_wait<6>(), release(memory, 0, 2);
      store_results(1, scale);
      wgmma_wait<4>(), release(memory, 2, 4);
      store_results(2, scale);
      wgmma_wait<2>(), release(memory, 4, 6);
      store_results(3, scale);
      wgmma_wait<1>(), release(memory, 6, 7);
    }
  }

  /// The same of a warpgroup whose keys nobody sees. It takes part in one step nevertheless: ptxas serialises
  /// all products where one branch has sums under way and the other has not.
  __device__ void idle_steps(std::uint32_t parity, bool new_queries) {
    const std::uint32_t memory = base();
    const bool stores = complete.first_row >= 0;
    float scale[2] = {};
    if (stores) finish_rows(scale);
#pragma unroll
    for (int i = 0; i < kSteps - 1; ++i) {
      wait_stage(memory, i, parity);
      named_sync(4, 128);  // a warp that comes late would wait for the stage's next turn
      release(memory, i, i + 1);
      if (stores && i % 2 == 1) store_results(i / 2, scale);
    }
    if (stores) store_results(3, scale);
    complete.first_row = -1;
    if (new_queries) wait(memory + offsetof(Shared, q_full) + (kSteps - 1) * 8, q_phase);
    score_step(memory, kSteps - 1, parity);
  }
  __device__ void scores(std::uint32_t parity, bool new_queries, bool idle) {
    if (idle) {
      idle_steps(parity, new_queries);
    } else if (complete.first_row >= 0) {
      score_steps<true>(parity, new_queries);
      complete.first_row = -1;
    } else {
      score_steps<false>(parity, new_queries);
    }
  }

  /// The last values of an item, of `steps` stages.
  __device__ void last_values(const Item& item, std::uint32_t parity) {
    const std::uint32_t memory = base(), p = probabilities(turn);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (i < item.last_steps) {
        value_step(memory, p, i, parity, item.count > 1 || i > 0);
      } else {
        wait_stage(memory, i, parity);
      }
    }
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
  /// last probabilities, whose place the results leave through.
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
  /// 64 columns of them, by way of this warpgroup's half of the probabilities: TMA takes them from there
  /// while products go on.
  __device__ void store_results(int block, const float (&scale)[2]) {
    const std::uint32_t box = probabilities(complete.turn) + group * kBox;
    if (block > 0) {
      if (thread == 0) bulk_wait_read<0>();
      named_sync(5 + group, 128);
    }
    store_panel(box + thread / 32 * (kBox / 4), o, block, scale);
    fence_async_shared();
    named_sync(5 + group, 128);
    if (thread == 0) {
      tma_store(out, Box(group * 256 + block * 64, complete.first_row), box);
      bulk_commit();
    }
  }

  /// All tiles of an item but its last values; the first tile's probabilities are there.
  __device__ void tiles(const Item& item) {
    for (int tile = 0; tile + 1 < item.count; ++tile) {
      finish_values(tile > 0);
      scores(1, false, group == 1 && item.half(tile + 1));
      const std::uint32_t memory = base(), p = probabilities(turn);
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        value_step(memory, p, i, 0, tile > 0 || i > 0);
        if (i == 1) {
          // The scores are complete; the last values need the place of their last stage.
          wgmma_wait<2>();
          release(memory, kSteps - 1, kSteps);
        }
      }
      pin(s);
      if (tile + 2 == item.count) release_queries();
      turn ^= 1;
      hide(item, tile + 1);
      softmax_most<false>();
      wgmma_wait<4>(), release(base(), 0, 4);
      softmax_exp();
      wgmma_wait<2>(), release(base(), 4, 6);
    }
    finish_values(item.count > 1);
  }

  __device__ void run() {
    Item item = next_item();
    if (item.first_row < 0) return;
    look_up_rows(item);
    scores(0, true, group == 1 && item.half(0));
    wgmma_wait<0>();
    pin(s);
    release(base(), kSteps - 1, kSteps);
    if (item.count == 1) release_queries();
    hide(item, 0);
    softmax_most<true>();
    softmax_exp();
    for (;;) {
      tiles(item);
      put_sums();
      const Complete done{item.first_row, at.slot, turn, {top[0], top[1]}};
      const Item next = next_item();
      const bool last = next.first_row < 0;
      if (last) {
        if (complete.first_row >= 0) store_complete();
        last_values(item, 1);
      } else {
        look_up_rows(next);
        scores(1, true, group == 1 && next.half(0));
        wgmma_wait<0>();
        pin(s);
        release(base(), kSteps - 1, kSteps);
        if (next.count == 1) release_queries();
        last_values(item, 0);
        turn ^= 1;
        hide(next, 0);
        softmax_most<true>();
        softmax_exp();
      }
      wgmma_wait<0>();
      pin(o);
      complete = done;
      if (last) break;
      release(base(), 0, kSteps);
      item = next;
    }
    store_complete();
    if (thread == 0) bulk_wait_read<0>();
  }
};

__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                   const __grid_constant__ CUtensorMap v, const __grid_constant__ CUtensorMap out,
                   const __grid_constant__ Problem z) {
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) shared.init();
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
                    out = make_tensor_map(op.out.reshape({tokens * heads, kDim}), kRows, 64);
  static const cudaError_t allowed =
      cudaFuncSetAttribute(forward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  cuda_ok(allowed, "shared memory of attention512");
  const Problem z{rows_of(tokens, heads), ptr<std::int32_t>(op.lo), ptr<std::int32_t>(op.hi),
                  ptr<float>(op.lse), static_cast<int*>(op.scratch.data())};
  cuda_ok(cudaMemsetAsync(z.counter, 0, sizeof(int), cuda_stream(stream)), "Attention");
  const auto clusters = std::min<std::int64_t>(ceil_div(tokens * heads, kCtas * kRows), processors() / kCtas);
  forward_kernel<<<static_cast<unsigned>(clusters * kCtas), kThreads, kSharedBytes, cuda_stream(stream)>>>(
      q, k, v, out, z);
  launched("Attention");
}

}  // namespace lapidary
