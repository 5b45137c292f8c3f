// Matrix products of bf16 on Hopper's tensor cores, for epilogues that no library has.
//
// c [m, n] = a b^T, a [m, k] and b [n, k] in either order in memory. One persistent CTA a multiprocessor, in
// clusters of two that take neighbouring tiles along m: each loads half of their common tile of b for both.
// A producer warp keeps a ring of stages filled by TMA; two consumer warpgroups take tiles in turn, so that
// one multiplies while the other runs its epilogue (which is why an epilogue may be long). Everything that
// varies in time (which tile comes when) is fixed by the shape and the number of clusters: equal calls give
// equal bits.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary::product {

using hopper::Major;

constexpr int kTileM = 128;  ///< rows of a consumer's tile: two wgmmas of 64
constexpr int kTileN = 192;  ///< the widest whose accumulators, two warpgroups' at a time, fit the registers
constexpr int kTileK = 64;   ///< one swizzled row of bf16
constexpr int kStages = 4;
constexpr int kThreads = 384;  ///< two consumers and the producer's warpgroup
constexpr int kCluster = 2;

constexpr std::uint32_t kBytesA = kTileM * kTileK * 2, kBytesB = kTileN * kTileK * 2;
constexpr std::uint32_t kStageBytes = kBytesA + kBytesB;
constexpr std::uint32_t kBufferBytes = 16384;  ///< 128 swizzled rows: what an epilogue moves at a time
constexpr int kStagingBuffers = 2;             ///< of each consumer, for its epilogue
constexpr std::uint32_t kStagingBytes = kStagingBuffers * kBufferBytes;
constexpr std::uint32_t kRing = kStages * kStageBytes;
constexpr std::uint32_t kBarriers = kRing + 2 * kStagingBytes;
/// Dynamic shared memory of a CTA, with room to align its start to a swizzle atom.
constexpr std::uint32_t kSharedBytes = kBarriers + (2 * kStages + 2 + 2 * kStagingBuffers) * 8 + 1024;

/// Accumulators of a thread: those of Wgmma<kTileN> for the tile's upper and lower 64 rows.
using Sums = float[2][kTileN / 2];

/// How a product is cut: units of work, each a tile of c and a part of k, handed to the clusters in turn.
struct Work {
  int pairs;    ///< tiles of m, two at a time
  int columns;  ///< tiles of n
  int steps;    ///< tiles of k
  int splits;   ///< parts of k
  int group;    ///< pairs that come one after the other before the next tile of n: what stays in the L2 cache

  __host__ __device__ int units() const { return pairs * columns * splits; }
  std::int64_t tile_steps() const { return std::int64_t{pairs} * columns * steps; }
};

/// One CTA's part of a unit, in tiles.
struct Unit {
  int m, n, split;
  int begin, end;  ///< steps of k
};

__device__ inline Unit unit_of(const Work& work, int index, int rank) {
  const int tiles = work.pairs * work.columns;
  const int split = index / tiles, tile = index - split * tiles;
  const int each = work.group * work.columns, group = tile / each, within = tile - group * each;
  const int pairs = min(work.group, work.pairs - group * work.group);
  const int n = within / pairs, pair = group * work.group + within - n * pairs;
  const auto step = [&](int part) { return work.steps * part / work.splits; };
  return {pair * kCluster + rank, n, split, step(split), step(split + 1)};
}

struct Maps {
  CUtensorMap a, b, c;
};

/// A place in the ring: the stage, and the parity of its barriers' phase.
struct Slot {
  int stage = 0;
  std::uint32_t phase = 0;

  __device__ void advance(int steps) {
    const int to = stage + steps;
    stage = to % kStages;
    phase ^= static_cast<std::uint32_t>(to / kStages) & 1u;
  }
};

/// Shared memory of a CTA by address.
struct Layout {
  std::uint32_t base;
  __device__ std::uint32_t a(int stage) const {
    return base + static_cast<std::uint32_t>(stage) * kStageBytes;
  }
  __device__ std::uint32_t b(int stage) const { return a(stage) + kBytesA; }
  __device__ std::uint32_t staging(int consumer) const {
    return base + kRing + static_cast<std::uint32_t>(consumer) * kStagingBytes;
  }
  __device__ std::uint32_t barrier(int i) const {
    return base + kBarriers + static_cast<std::uint32_t>(i) * 8;
  }
  __device__ std::uint32_t full(int stage) const { return barrier(stage); }
  __device__ std::uint32_t empty(int stage) const { return barrier(kStages + stage); }
  __device__ std::uint32_t turn(int consumer) const { return barrier(2 * kStages + consumer); }
  __device__ std::uint32_t loaded(int consumer, int buffer) const {
    return barrier(2 * kStages + 2 + consumer * kStagingBuffers + buffer);
  }
};

/// What an epilogue works with: its consumer's staging buffers, and barriers for loads into them.
struct Staging {
  Layout at;
  int consumer;
  __device__ std::uint32_t buffer(int i) const {
    return at.staging(consumer) + static_cast<std::uint32_t>(i % kStagingBuffers) * kBufferBytes;
  }
  __device__ std::uint32_t loaded(int i) const { return at.loaded(consumer, i % kStagingBuffers); }
  /// One thread of the consumer's warpgroup: it alone deals with TMA.
  __device__ bool leads() const { return threadIdx.x % 128 == 0; }
  /// The warpgroup of this consumer alone.
  __device__ void sync() const { hopper::named_sync(1 + static_cast<std::uint32_t>(consumer), 128); }
  /// Before a buffer is written again: all but the newest N of the copies that the warpgroup started are
  /// read.
  template <int N>
  __device__ void wait_free() const {
    if (leads()) hopper::bulk_wait_read<N>();
    sync();
  }
  /// After a buffer is written: lets TMA see it.
  __device__ void publish() const {
    hopper::fence_async_shared();
    sync();
  }
};

/// Loads step `k` of a unit: this CTA's tile of a, and for both CTAs its half of the tile of b.
template <Major kA, Major kB>
__device__ inline void load_stage(const Maps& maps, const Layout& at, int stage, const Unit& unit, int k,
                                  int rank) {
  constexpr std::uint16_t kBoth = 3;
  const std::uint32_t full = at.full(stage);
  hopper::arrive_expect(full, kStageBytes);
  if constexpr (kA == Major::k) {
    hopper::tma_load(at.a(stage), maps.a, hopper::Box{k * kTileK, unit.m * kTileM}, full);
  } else {
#pragma unroll
    for (int i = 0; i < kTileM / 64; ++i)
      hopper::tma_load(at.a(stage) + i * 8192, maps.a, hopper::Box{unit.m * kTileM + i * 64, k * kTileK},
                       full);
  }
  if constexpr (kB == Major::k) {
    constexpr int kHalf = kTileN / 2;
    hopper::tma_load_multicast(at.b(stage) + rank * kHalf * 128, maps.b,
                               hopper::Box{k * kTileK, unit.n * kTileN + rank * kHalf}, full, kBoth);
  } else {
    constexpr int kHalf = kTileK / 2;
#pragma unroll
    for (int i = 0; i < kTileN / 64; ++i)
      hopper::tma_load_multicast(at.b(stage) + i * 8192 + rank * kHalf * 128, maps.b,
                                 hopper::Box{unit.n * kTileN + i * 64, k * kTileK + rank * kHalf}, full,
                                 kBoth);
  }
}

/// A product: its operands, how it is cut, what becomes of its sums, and how many clusters of the launch work
/// on it.
template <Major kMajorA, Major kMajorB, class E>
struct Product {
  static constexpr Major kA = kMajorA, kB = kMajorB;
  using Epilogue = E;
  Maps maps;
  Work work;
  typename E::Terms terms;
  int clusters = 0;
};

/// No second product.
struct Nothing {};

/// One CTA's place: its cluster among those of its product, and its rank in the cluster.
struct Seat {
  int cluster, rank;
};

template <class P>
__device__ inline void produce(const P& product, const Layout& at, const Seat& seat) {
  Slot slot;
  for (int index = seat.cluster; index < product.work.units(); index += product.clusters) {
    const Unit unit = unit_of(product.work, index, seat.rank);
    for (int k = unit.begin; k < unit.end; ++k) {
      hopper::wait(at.empty(slot.stage), slot.phase ^ 1);
      load_stage<P::kA, P::kB>(product.maps, at, slot.stage, unit, k, seat.rank);
      slot.advance(1);
    }
  }
}

/// Adds one stage's product to the sums, as one group of wgmmas.
template <Major kA, Major kB>
__device__ inline void multiply(const Layout& at, int stage, bool first, Sums& sums) {
  const std::uint64_t b = hopper::descriptor(at.b(stage), kTileK * 128);
  hopper::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kTileK / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint64_t a = hopper::descriptor(at.a(stage) + i * 8192, 0);
      hopper::Wgmma<kTileN>::run<kA, kB>(sums[i], a + k * hopper::kDescriptorStep<kA>,
                                         b + k * hopper::kDescriptorStep<kB>, !first || k > 0);
    }
  }
  hopper::wgmma_commit();
}

/// The sums of a unit. Gives every stage back, to both CTAs' producers, when its product is done.
template <Major kA, Major kB>
__device__ inline void multiply_unit(const Layout& at, const Unit& unit, Slot& slot, std::uint32_t next_turn,
                                     int lane, Sums& sums) {
  const auto give_back = [&](int stage) {
    if (lane < kCluster) hopper::arrive_at(at.empty(stage), static_cast<std::uint32_t>(lane));
  };
  int previous = -1;
  hopper::pin(sums[0]), hopper::pin(sums[1]);
  for (int k = unit.begin; k < unit.end; ++k) {
    hopper::wait(at.full(slot.stage), slot.phase);
    multiply<kA, kB>(at, slot.stage, k == unit.begin, sums);
    if (previous >= 0) {
      hopper::wgmma_wait<1>();
      give_back(previous);
    }
    previous = slot.stage;
    slot.advance(1);
  }
  // The other consumer may queue its products behind these.
  if (lane == 0) hopper::arrive(next_turn);
  hopper::wgmma_wait<0>();
  hopper::pin(sums[0]), hopper::pin(sums[1]);
  give_back(previous);
}

template <class P>
__device__ inline void consume(const P& product, const Layout& at, const Seat& seat) {
  const int consumer = static_cast<int>(threadIdx.x) / 128, lane = static_cast<int>(threadIdx.x) % 32;
  typename P::Epilogue epilogue{product.terms, product.maps.c, Staging{at, consumer}};
  Slot slot;
  std::uint32_t turn = consumer == 0 ? 1 : 0;  // the first has its first turn at once
  int mine = 0;                                // the consumer whose unit it is
  for (int index = seat.cluster; index < product.work.units(); index += product.clusters, mine ^= 1) {
    const Unit unit = unit_of(product.work, index, seat.rank);
    if (mine != consumer) {
      slot.advance(unit.end - unit.begin);
      continue;
    }
    epilogue.begin(unit);
    hopper::wait(at.turn(consumer), turn);
    turn ^= 1;
    Sums sums{};  // overwritten; but the compiler need not keep what was there before
    multiply_unit<P::kA, P::kB>(at, unit, slot, at.turn(1 - consumer), lane, sums);
    epilogue.finish(unit, sums);
  }
}

/// 168 registers a thread at the start: 40 for the producer leave the consumers 232.
template <class P>
__device__ inline void run(const P& product, const Layout& at, const Seat& seat) {
  if (threadIdx.x >= 256) {
    hopper::registers_dec<40>();
    if (threadIdx.x < 288 && hopper::elect_one()) produce(product, at, seat);
  } else {
    hopper::registers_inc<232>();
    consume(product, at, seat);
  }
}

__device__ inline void init_barriers(const Layout& at) {
  for (int i = 0; i < kStages; ++i) {
    hopper::barrier_init(at.full(i), 1);
    hopper::barrier_init(at.empty(i), 4 * kCluster);  // the warps of a consumer in each CTA
  }
  for (int i = 0; i < 2; ++i) {
    hopper::barrier_init(at.turn(i), 4);
    for (int k = 0; k < kStagingBuffers; ++k) hopper::barrier_init(at.loaded(i, k), 1);
  }
  hopper::fence_barrier_init();
}

/// Epilogue: a struct made of (Terms, the map of c, Staging), one per thread of a consumer, with begin(unit),
/// called before a unit's products, and finish(unit, sums), called after them. maps.a: boxes of kTileK x
/// kTileM (Major::k) or 64 x kTileK; maps.b: of kTileK x kTileN / 2 or 64 x kTileK / 2; maps.c: the
/// epilogue's affair.
template <class First, class Second>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ First first, const __grid_constant__ Second second) {
  extern __shared__ std::uint8_t shared[];
  const Layout at{(hopper::shared_address(shared) + 1023u) & ~1023u};
  const Seat seat{static_cast<int>(blockIdx.x) / kCluster, static_cast<int>(hopper::cluster_rank())};
  if (threadIdx.x == 0) init_barriers(at);
  hopper::cluster_arrive();
  hopper::cluster_wait();
  if constexpr (std::is_same_v<Second, Nothing>) {
    run(first, at, seat);
  } else if (seat.cluster < first.clusters) {
    run(first, at, seat);
  } else {
    run(second, at, {seat.cluster - first.clusters, seat.rank});
  }
  // No CTA may leave while the other still writes into its shared memory or arrives at its barriers.
  __syncwarp();
  hopper::cluster_arrive();
  hopper::cluster_wait();
}

}  // namespace lapidary::product
