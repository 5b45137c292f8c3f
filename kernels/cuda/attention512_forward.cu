// Forward attention for head dimension 512 on one key head: docs/attention512.md. A CTA holds 64 rows (a row
// is a query head of a token, heads fastest), a cluster of two CTAs shares every key and value through
// multicast. Two warpgroups each keep 256 columns of the output in registers and compute the scores of every
// other 64 keys; their probabilities meet in shared memory. Keys, then values of the tile before, stream
// through one ring of 16 KiB stages, so that the softmax of a tile runs beside the value product of the one
// before.
#include "kernels/cuda/attention512.h"
#include "kernels/cuda/attention512_cluster.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_map.h"

namespace lapidary {

namespace {

using namespace hopper;
using namespace attention512;

constexpr int kRows = 64, kKeys = 128;
constexpr int kBox = 64 * 64 * 2;  ///< bytes of 64 rows of 64 bf16
constexpr int kStages = 9;         ///< of the ring
constexpr int kStage = 2 * kBox;   ///< 64 columns of 128 keys, or 16 values
constexpr int kSteps = kDim / 64;  ///< stages of a tile's keys, and of its values
constexpr int kThreads = 3 * 128;  ///< a warpgroup that loads, two that compute
/// Probabilities are relative to a maximum that is raised only when it is this much too low (in log2): bf16
/// and float32 hold 2^8 as well as 1, and the output is rescaled less often.
constexpr float kSlack = 8.0f;

struct Shared {
  alignas(1024) std::byte q[kSteps * kBox];  ///< later the output
  alignas(1024) std::byte p[2 * kBox];       ///< probabilities [64, 128]
  alignas(1024) std::byte ring[kStages * kStage];
  float most[2][2][kRows];  ///< by parity of the tile and warpgroup: maxima, at last sums
  alignas(8) std::uint64_t full[kStages], empty[kStages], q_full[kSteps];
};
constexpr int kSharedBytes = sizeof(Shared) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

struct Sizes {
  int tokens, heads;
  __device__ int rows() const { return tokens * heads; }
};

/// Keys that some row of the cluster sees, in tiles of kKeys from `begin`.
struct KeyTiles {
  int begin, count;
  int last_steps;  ///< stages of the last tile's values: keys behind the last visible one are left out
  __device__ KeyTiles(const Sizes& z, const std::int32_t* lo, const std::int32_t* hi, int first_row) {
    const int last_row = min(first_row + kCtas * kRows, z.rows()) - 1;
    begin = lo[first_row / z.heads];
    const int keys = max(hi[last_row / z.heads] - begin, 0);
    count = (keys + kKeys - 1) / kKeys;
    last_steps = (keys - (count - 1) * kKeys + 15) / 16;
  }
};

/// The loading thread: every box of keys and values goes to both CTAs, each of which fetches half.
__device__ void load(const CUtensorMap& q, const CUtensorMap& k, const CUtensorMap& v, Shared& shared,
                     const KeyTiles& tiles, int first_row, int rank) {
  const auto load_queries = [&](int i) {
    const std::uint32_t full = shared_address(&shared.q_full[i]);
    arrive_expect(full, kBox);
    tma_load(shared_address(shared.q) + i * kBox, q, Box(i * 64, first_row), full);
  };
  Cursor<kStages> at;
  constexpr std::uint16_t kAll = (1 << kCtas) - 1;
  const auto stage = [&](auto&& copy) {
    wait(shared_address(&shared.empty[at.slot]), at.phase ^ 1);
    const std::uint32_t full = shared_address(&shared.full[at.slot]);
    arrive_expect(full, kStage);
    copy(shared_address(shared.ring) + at.slot * kStage + rank * kBox, full);
    at.next();
  };
  for (int tile = 0; tile <= tiles.count; ++tile) {
    const int key = tiles.begin + tile * kKeys;
    if (tile < tiles.count) {
      for (int i = 0; i < kSteps; ++i) {
        if (tile == 0) load_queries(i);
        stage([&](std::uint32_t to, std::uint32_t full) {
          tma_load_multicast(to, k, Box(i * 64, key + rank * 64), full, kAll);
        });
      }
    }
    if (tile > 0) {
      for (int i = 0; i < (tile < tiles.count ? kSteps : tiles.last_steps); ++i)
        stage([&](std::uint32_t to, std::uint32_t full) {
          tma_load_multicast(to, v, Box(0, key - kKeys + i * 16, rank * 4), full, kAll);
        });
    }
  }
}

/// What one thread of a computing warpgroup holds. Its two rows are `row` and row + 8 of the CTA.
struct Consumer {
  Shared& shared;
  const int group, thread, row;
  Cursor<kStages> at, released;
  float o[128] = {};
  float s[32];
  std::uint32_t p[16];
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, rescale[2] = {1, 1};

  __device__ Consumer(Shared& memory, int warpgroup)
      : shared(memory),
        group(warpgroup),
        thread(static_cast<int>(threadIdx.x) % 128),
        row(thread / 32 * 16 + thread % 32 / 4) {}

  __device__ std::uint32_t wait_stage() {
    wait(shared_address(&shared.full[at.slot]), at.phase);
    const std::uint32_t stage = shared_address(shared.ring) + at.slot * kStage;
    at.next();
    return stage;
  }

  /// Gives the oldest stages back to both CTAs: warp r tells CTA r.
  __device__ void release(int stages) {
    for (int i = 0; i < stages; ++i) {
      if (thread % 32 == 0 && thread / 32 < kCtas)
        arrive_at(shared_address(&shared.empty[released.slot]), thread / 32);
      released.next();
    }
  }

  /// Queues 64 columns of the scores of this warpgroup's 64 keys.
  __device__ void score_step(int i) {
    const std::uint32_t stage = wait_stage();
    const std::uint64_t a = descriptor(shared_address(shared.q) + i * kBox, 0),
                        b = descriptor(stage + group * kBox, 0);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      Wgmma<64>::run<Major::k, Major::k>(s, a + k * kDescriptorStep<Major::k>,
                                         b + k * kDescriptorStep<Major::k>, i > 0 || k > 0);
    wgmma_commit();
  }

  /// Queues the values of 16 keys.
  __device__ void value_step(int i) {
    const std::uint32_t stage = wait_stage();
    const std::uint64_t a = descriptor(shared_address(shared.p) + i / 4 * kBox, 0) +
                            static_cast<std::uint64_t>(i % 4) * kDescriptorStep<Major::k>,
                        b = descriptor(stage + group * kBox, 128 * 16);
    wgmma_fence();
    Wgmma<256>::run<Major::k, Major::mn>(o, a, b, true);
    wgmma_commit();
  }

  /// The maximum of both warpgroups' keys for each of the two rows.
  __device__ void common_most(float (&most)[2], int parity) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], 2));
      if (thread % 4 == 0) shared.most[parity][group][row + 8 * r] = most[r];
    }
    named_sync(1, 256);
#pragma unroll
    for (int r = 0; r < 2; ++r) most[r] = fmaxf(most[r], shared.most[parity][1 - group][row + 8 * r]);
  }

  /// Hides keys outside [from, to) of the warpgroup's 64.
  __device__ void mask(const int (&from)[2], const int (&to)[2]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int key = i / 4 * 8 + thread % 4 * 2 + i % 2, r = i / 2 % 2;
      if (key < from[r] || key >= to[r]) s[i] = -INFINITY;
    }
  }

  /// Scores become probabilities in p, in steps so that stages can be given back in between.
  __device__ void softmax_most(int parity) {
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 32; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
    common_most(most, parity);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rescale[r] = 1.0f;
      if (most[r] * kLog2e > top[r] + kSlack) {
        rescale[r] = exp2_approx(top[r] - most[r] * kLog2e);
        top[r] = most[r] * kLog2e;
        sum[r] *= rescale[r];
      }
    }
  }
  __device__ void softmax_exp() {
    const float base[2] = {top[0] == -INFINITY ? 0.0f : top[0], top[1] == -INFINITY ? 0.0f : top[1]};
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      const int r = i / 2 % 2;
      const float x = exp2_approx(fmaf(s[i], kLog2e, -base[r])),
                  y = exp2_approx(fmaf(s[i + 1], kLog2e, -base[r]));
      sum[r] += x + y;
      p[i / 2] = pack_bf16(x, y);
    }
  }

  /// Where this warp's rows of a box begin.
  __device__ std::uint32_t warp_panel(std::uint32_t box) const {
    return box + thread / 32 * (kBox / 4);
  }

  __device__ void store_probabilities() {
    store_panel(warp_panel(shared_address(shared.p) + group * kBox), p);
    fence_async_shared();
  }

  /// Hands this tile's probabilities over, once both warpgroups have read those of the tile before.
  __device__ void put_probabilities() {
    named_sync(2, 256);
    store_probabilities();
  }

  /// Ends the value product of the tile before and brings the output to this tile's maximum. Nothing may be
  /// under way: the compiler serialises all products if it sees sums read beside them.
  __device__ void finish_values(int stages) {
    wgmma_wait<0>();
    pin(o);
    release(stages);
    if (!__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] *= rescale[i / 2 % 2];
  }

  /// All of the softmax of a tile whose scores are complete; `values` stages of the value product under way
  /// are given back as they complete.
  template <bool kValues>
  __device__ void softmax(int tile, const KeyTiles& tiles, const int (&lo)[2], const int (&hi)[2],
                          bool covered) {
    if (!covered) {
      const int key = tiles.begin + tile * kKeys + group * 64;
      const int from[2] = {lo[0] - key, lo[1] - key}, to[2] = {hi[0] - key, hi[1] - key};
      mask(from, to);
    }
    softmax_most(tile % 2);
    if constexpr (kValues) wgmma_wait<4>(), release(4);
    softmax_exp();
    if constexpr (kValues) wgmma_wait<2>(), release(2);
  }
};

__device__ void compute(const CUtensorMap& out, Shared& shared, const Sizes& z, const std::int32_t* lo,
                        const std::int32_t* hi, float* lse, const KeyTiles& tiles, int first_row, int group) {
  Consumer c(shared, group);
  int row_lo[2] = {0, 0}, row_hi[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + c.row + 8 * r;
    if (row < z.rows()) row_lo[r] = lo[row / z.heads], row_hi[r] = hi[row / z.heads];
  }
  // Keys that every row of the CTA sees.
  const bool whole = first_row + kRows <= z.rows();
  const int all_lo = whole ? lo[(first_row + kRows - 1) / z.heads] : 0,
            all_hi = whole ? hi[first_row / z.heads] : 0;
  const auto covered = [&](int tile) {
    const int key = tiles.begin + tile * kKeys;
    return all_lo <= key && key + kKeys <= all_hi;
  };
  if (tiles.count > 0) {
    for (int i = 0; i < kSteps; ++i) {
      wait(shared_address(&shared.q_full[i]), 0);
      c.score_step(i);
    }
    wgmma_wait<0>();
    pin(c.s);
    c.release(kSteps);
    c.softmax<false>(0, tiles, row_lo, row_hi, covered(0));
  }
  for (int tile = 0; tile + 1 < tiles.count; ++tile) {
    c.finish_values(tile > 0 ? 2 : 0);
    c.score_step(0);
    c.put_probabilities();
#pragma unroll
    for (int i = 1; i < kSteps; ++i) {
      c.score_step(i);
      wgmma_wait<1>();
      c.release(1);
    }
    named_sync(3, 256);  // the probabilities are written
#pragma unroll
    for (int i = 0; i < kSteps; ++i) c.value_step(i);
    wgmma_wait<kSteps - 1>();  // 7 is the most that can be left under way
    pin(c.s);
    c.release(1);
    c.softmax<true>(tile + 1, tiles, row_lo, row_hi, covered(tile + 1));
  }
  if (tiles.count > 0) {
    c.finish_values(tiles.count > 1 ? 2 : 0);
    c.put_probabilities();
    named_sync(3, 256);
    for (int i = 0; i < tiles.last_steps; ++i) c.value_step(i);
  }
  wgmma_wait<0>();
  pin(c.o);
  // Sums of both warpgroups; the output over the queries, whose last reader is done.
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    c.sum[r] += __shfl_xor_sync(0xffffffffu, c.sum[r], 1);
    c.sum[r] += __shfl_xor_sync(0xffffffffu, c.sum[r], 2);
  }
  named_sync(1, 256);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (c.thread % 4 == 0) shared.most[0][group][c.row + 8 * r] = c.sum[r];
  }
  named_sync(1, 256);
  float scale[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int at = c.row + 8 * r, row = first_row + at;
    const float sum = shared.most[0][0][at] + shared.most[0][1][at];
    scale[r] = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (group == 0 && c.thread % 4 == 0 && row < z.rows())
      lse[static_cast<std::int64_t>(row % z.heads) * z.tokens + row / z.heads] =
          (c.top[r] + log2f(sum)) * 0.6931471805599453f;
  }
#pragma unroll
  for (int box = 0; box < 4; ++box)
    store_panel(c.warp_panel(shared_address(shared.q) + (group * 4 + box) * kBox), c.o, box, scale);
  fence_async_shared();
  named_sync(4 + group, 128);
  if (c.thread == 0) {
    for (int box = group * 4; box < group * 4 + 4; ++box)
      tma_store(out, Box(box * 64, first_row), shared_address(shared.q) + box * kBox);
    bulk_commit();
    bulk_wait_read<0>();
  }
}

__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                   const __grid_constant__ CUtensorMap v, const __grid_constant__ CUtensorMap out,
                   const std::int32_t* lo, const std::int32_t* hi, float* lse, Sizes z) {
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int rank = static_cast<int>(cluster_rank());
  // The last rows, which see the most keys where the mask is causal, go first.
  const int cluster = static_cast<int>(gridDim.x - 1 - blockIdx.x) / kCtas;
  const int first_row = (cluster * kCtas + rank) * kRows;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared_address(&shared.full[i]), 1);
      barrier_init(shared_address(&shared.empty[i]), 2 * kCtas);
    }
    for (int i = 0; i < kSteps; ++i) barrier_init(shared_address(&shared.q_full[i]), 1);
    fence_barrier_init();
  }
  cluster_arrive();
  cluster_wait();
  const KeyTiles tiles(z, lo, hi, cluster * kCtas * kRows);
  if (threadIdx.x < 128) {
    registers_dec<24>();
    if (threadIdx.x == 0) load(q, k, v, shared, tiles, first_row, rank);
    __syncwarp();
  } else {
    registers_inc<240>();
    compute(out, shared, z, lo, hi, lse, tiles, first_row, static_cast<int>(threadIdx.x) / 128 - 1);
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
  const auto clusters = static_cast<unsigned>(ceil_div(tokens * heads, kCtas * kRows));
  forward_kernel<<<clusters * kCtas, kThreads, kSharedBytes, cuda_stream(stream)>>>(
      q, k, v, out, ptr<std::int32_t>(op.lo), ptr<std::int32_t>(op.hi), ptr<float>(op.lse),
      Sizes{static_cast<int>(tokens), static_cast<int>(heads)});
  launched("Attention");
}

}  // namespace lapidary
