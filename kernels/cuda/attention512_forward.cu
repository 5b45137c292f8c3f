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
  alignas(1024) std::byte q[kSteps * kBox];
  alignas(1024) std::byte p[2 * kBox];  ///< probabilities [64, 128]; between items the output on its way
  alignas(1024) std::byte ring[kStages * kStage];
  float most[2][2][kRows];  ///< maxima, by parity of the tile and warpgroup
  float sums[2][kRows];     ///< by warpgroup
  int item[2];
  TicketBox tickets;
  alignas(8) std::uint64_t full[kStages], empty[kStages], q_full[kSteps], q_empty, item_full[2],
      item_empty[2];

  __device__ void init() {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared_address(&full[i]), 1);
      barrier_init(shared_address(&empty[i]), 2 * kCtas);
    }
    for (std::uint64_t& x : q_full) barrier_init(shared_address(&x), 1);
    barrier_init(shared_address(&q_empty), 8);
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&item_full[i]), 1);
      barrier_init(shared_address(&item_empty[i]), 8);
    }
    tickets.init();
    fence_barrier_init();
  }
};
constexpr int kSharedBytes = sizeof(Shared) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

/// An item is the rows of a cluster; the last ones, which see the most keys where the mask is causal, first.
struct Problem {
  int tokens, heads, items;
  const std::int32_t *lo, *hi;
  Bf16* out;
  float* lse;
  int* counter;  ///< hands out items

  __host__ __device__ int rows() const { return tokens * heads; }
  __device__ int first_row(int item) const { return (items - 1 - item) * kCtas * kRows; }
};

/// Keys that some row of the cluster sees, in tiles of kKeys from `begin`.
struct KeyTiles {
  int begin, count;
  int last_steps;  ///< stages of the last tile's values: keys behind the last visible one are left out
  __device__ KeyTiles(const Problem& z, int first_row) {
    const int last_row = min(first_row + kCtas * kRows, z.rows()) - 1;
    begin = z.lo[first_row / z.heads];
    const int keys = max(z.hi[last_row / z.heads] - begin, 0);
    count = (keys + kKeys - 1) / kKeys;
    last_steps = (keys - (count - 1) * kKeys + 15) / 16;
  }
};

struct Maps {
  CUtensorMap q, k, v;
};

/// The loading warp, whose first lane issues: every box of keys and values goes to both CTAs, each of which
/// fetches half.
struct Loader {
  const Maps& maps;
  const Problem& z;
  Shared& shared;
  const int rank, lane;
  Tickets tickets;
  Cursor<kStages> at;
  Cursor<2> posted;
  Cursor<1> queries;

  __device__ Loader(const Maps& m, const Problem& problem, Shared& memory)
      : maps(m),
        z(problem),
        shared(memory),
        rank(static_cast<int>(cluster_rank())),
        lane(static_cast<int>(threadIdx.x) % 32),
        tickets{memory.tickets, problem.counter, rank, lane, {}, {}} {}

  /// Tells the computing warpgroups.
  __device__ void post(int item) {
    wait(shared_address(&shared.item_empty[posted.slot]), posted.phase ^ 1);
    shared.item[posted.slot] = item;
    arrive(shared_address(&shared.item_full[posted.slot]));
    posted.next();
  }

  template <class Copy>
  __device__ void stage(Copy&& copy) {
    wait(shared_address(&shared.empty[at.slot]), at.phase ^ 1);
    const std::uint32_t full = shared_address(&shared.full[at.slot]);
    arrive_expect(full, kStage);
    copy(shared_address(shared.ring) + at.slot * kStage + rank * kBox, full);
    at.next();
  }

  __device__ void load_queries(int i, int first_row) {
    if (i == 0) wait(shared_address(&shared.q_empty), queries.phase ^ 1), queries.next();
    const std::uint32_t full = shared_address(&shared.q_full[i]);
    arrive_expect(full, kBox);
    tma_load(shared_address(shared.q) + i * kBox, maps.q, Box(i * 64, first_row + rank * kRows), full);
  }

  __device__ void load(const KeyTiles& tiles, int first_row) {
    constexpr std::uint16_t kAll = (1 << kCtas) - 1;
    for (int tile = 0; tile <= tiles.count; ++tile) {
      const int key = tiles.begin + tile * kKeys;
      if (tile < tiles.count) {
        for (int i = 0; i < kSteps; ++i) {
          if (tile == 0) load_queries(i, first_row);
          stage([&](std::uint32_t to, std::uint32_t full) {
            tma_load_multicast(to, maps.k, Box(i * 64, key + rank * 64), full, kAll);
          });
        }
      }
      if (tile > 0) {
        for (int i = 0; i < (tile < tiles.count ? kSteps : tiles.last_steps); ++i)
          stage([&](std::uint32_t to, std::uint32_t full) {
            tma_load_multicast(to, maps.v, Box(0, key - kKeys + i * 16, rank * 4), full, kAll);
          });
      }
    }
  }

  __device__ void run() {
    tickets.fetch();
    for (;;) {
      const int item = tickets.take();
      if (lane == 0) post(item);
      if (item >= z.items) return;
      tickets.fetch();
      if (lane == 0) load(KeyTiles(z, z.first_row(item)), z.first_row(item));
      __syncwarp();
    }
  }
};

/// What one thread of a computing warpgroup holds. Its two rows are `row` and row + 8 of the CTA.
struct Consumer {
  Shared& shared;
  const int group, thread, row;
  Cursor<kStages> at, released;
  Cursor<2> taken;
  Cursor<1> queries;
  float o[128];
  float s[32];
  std::uint32_t p[16];
  float top[2], sum[2], rescale[2];

  __device__ Consumer(Shared& memory, int warpgroup)
      : shared(memory),
        group(warpgroup),
        thread(static_cast<int>(threadIdx.x) % 128),
        row(thread / 32 * 16 + thread % 32 / 4) {}

  __device__ int take_item() {
    wait(shared_address(&shared.item_full[taken.slot]), taken.phase);
    const int item = shared.item[taken.slot];
    __syncwarp();
    if (thread % 32 == 0) arrive(shared_address(&shared.item_empty[taken.slot]));
    taken.next();
    return item;
  }

  __device__ void reset() {
#pragma unroll
    for (float& x : o) x = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = -INFINITY, sum[r] = 0.0f, rescale[r] = 1.0f;
  }

  /// This warp has read the queries for the last time.
  __device__ void release_queries() {
    if (thread % 32 == 0) arrive(shared_address(&shared.q_empty));
  }

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
    compute_now(fminf(sum[0], sum[1]));
    if constexpr (kValues) wgmma_wait<2>(), release(2);
  }
};

/// The tiles of an item, one at least: c.o and c.sum become the unnormalised output and its sums.
__device__ void attend(Consumer& c, const Problem& z, const KeyTiles& tiles, int first_row) {
  int row_lo[2] = {0, 0}, row_hi[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + c.row + 8 * r;
    if (row < z.rows()) row_lo[r] = z.lo[row / z.heads], row_hi[r] = z.hi[row / z.heads];
  }
  // Keys that every row of the CTA sees.
  const bool whole = first_row + kRows <= z.rows();
  const int all_lo = whole ? z.lo[(first_row + kRows - 1) / z.heads] : 0,
            all_hi = whole ? z.hi[first_row / z.heads] : 0;
  const auto covered = [&](int tile) {
    const int key = tiles.begin + tile * kKeys;
    return all_lo <= key && key + kKeys <= all_hi;
  };
  c.reset();
  for (int i = 0; i < kSteps; ++i) {
    wait(shared_address(&c.shared.q_full[i]), c.queries.phase);
    c.score_step(i);
  }
  c.queries.next();
  wgmma_wait<0>();
  pin(c.s);
  c.release(kSteps);
  if (tiles.count == 1) c.release_queries();
  c.softmax<false>(0, tiles, row_lo, row_hi, covered(0));
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
    if (tile + 2 == tiles.count) c.release_queries();
    c.softmax<true>(tile + 1, tiles, row_lo, row_hi, covered(tile + 1));
  }
  c.finish_values(tiles.count > 1 ? 2 : 0);
  c.put_probabilities();
  named_sync(3, 256);
  for (int i = 0; i < tiles.last_steps; ++i) c.value_step(i);
  wgmma_wait<0>();
  pin(c.o);
  c.release(tiles.last_steps);
}

/// Ends an item: joins the sums of both warpgroups and stores the output and its log-sum-exp.
__device__ void store(Consumer& c, const Problem& z, int first_row) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    c.sum[r] += __shfl_xor_sync(0xffffffffu, c.sum[r], 1);
    c.sum[r] += __shfl_xor_sync(0xffffffffu, c.sum[r], 2);
    if (c.thread % 4 == 0) c.shared.sums[c.group][c.row + 8 * r] = c.sum[r];
  }
  named_sync(1, 256);  // and the other warpgroup has read the probabilities
  float scale[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int at = c.row + 8 * r, row = first_row + at;
    const float sum = c.shared.sums[0][at] + c.shared.sums[1][at];
    scale[r] = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (c.group == 0 && c.thread % 4 == 0 && row < z.rows())
      z.lse[static_cast<std::int64_t>(row % z.heads) * z.tokens + row / z.heads] =
          (c.top[r] + log2f(sum)) * 0.6931471805599453f;
  }
  store_rows(c.warp_panel(shared_address(c.shared.p) + c.group * kBox), c.o, scale, z.out,
             first_row + c.thread / 32 * 16, z.rows(), c.group * 256);
}

/// Rows that see no key.
__device__ void store_nothing(const Problem& z, int first_row, int thread, int group) {
  for (int i = group * 128 + thread; i < kRows * (kDim / 8); i += 256) {
    const int row = first_row + i / (kDim / 8);
    if (row >= z.rows()) return;
    *reinterpret_cast<uint4*>(z.out + static_cast<std::int64_t>(row) * kDim + i % (kDim / 8) * 8) =
        make_uint4(0, 0, 0, 0);
    if (i % (kDim / 8) == 0)
      z.lse[static_cast<std::int64_t>(row % z.heads) * z.tokens + row / z.heads] = -INFINITY;
  }
}

__device__ void compute(const Problem& z, Shared& shared, int rank, int group) {
  Consumer c(shared, group);
  for (;;) {
    const int item = c.take_item();
    if (item >= z.items) return;
    const KeyTiles tiles(z, z.first_row(item));
    const int first_row = z.first_row(item) + rank * kRows;
    if (tiles.count == 0) {
      store_nothing(z, first_row, c.thread, group);
    } else {
      attend(c, z, tiles, first_row);
      store(c, z, first_row);
    }
  }
}

__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads, 1)
    attention512_forward_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Problem z) {
  extern __shared__ std::byte raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) shared.init();
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x < 128) {
    registers_dec<40>();
    if (threadIdx.x < 32) Loader(maps, z, shared).run();
  } else {
    registers_inc<232>();
    compute(z, shared, static_cast<int>(cluster_rank()), static_cast<int>(threadIdx.x) / 128 - 1);
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
  Problem z{};
  z.tokens = static_cast<int>(tokens), z.heads = static_cast<int>(heads);
  z.items = static_cast<int>(ceil_div(tokens * heads, kCtas * kRows));
  z.lo = ptr<std::int32_t>(op.lo), z.hi = ptr<std::int32_t>(op.hi);
  z.out = ptr<Bf16>(op.out), z.lse = ptr<float>(op.lse);
  z.counter = static_cast<int*>(op.scratch.data());
  const Maps maps{make_tensor_map(op.q.reshape({tokens * heads, kDim}), kRows, 64),
                  make_tensor_map(op.k.reshape({tokens, kDim}), 64, 64), value_map(op.v)};
  static const cudaError_t allowed = cudaFuncSetAttribute(
      attention512_forward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  cuda_ok(allowed, "shared memory of attention512_forward_kernel");
  cuda_ok(cudaMemsetAsync(z.counter, 0, sizeof(int), cuda_stream(stream)), "Attention: cudaMemsetAsync");
  const int ctas = kCtas * std::min(processors() / kCtas, z.items);
  attention512_forward_kernel<<<static_cast<unsigned>(ctas), kThreads, kSharedBytes, cuda_stream(stream)>>>(
      maps, z);
  launched("Attention");
}

}  // namespace lapidary
