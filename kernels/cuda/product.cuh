// Matrix products of bf16 on Hopper's tensor cores, for epilogues that no library has.
//
// c [m, n] = a b^T, a [m, k] and b [n, k] in either order in memory. One persistent CTA a multiprocessor, in
// clusters that take neighbouring tiles: those that have a tile of a or of b in common each load a part of it
// for all of them. (A GPU at its power limit pays for bytes in time: those that come from the L2 cache, and
// more for those that come from memory.) A producer warp keeps a ring of stages filled by TMA; two consumer
// warpgroups take tiles in turn, so that one multiplies while the other runs its epilogue (which is why an
// epilogue may be long). Everything that varies in time (which tile comes when) is fixed by the shape and the
// number of clusters: equal calls give equal bits.
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

/// CTAs, and tiles, of a cluster along m and n. Ranks go along m first.
template <int kAlongM, int kAlongN>
struct Cluster {
  static constexpr int kM = kAlongM, kN = kAlongN, kSize = kM * kN;
  static constexpr int kGivers = kM + kN - 1;  ///< CTAs that fill a stage of one of them
  /// The ranks that share a tile of a with rank 0, and a tile of b.
  static constexpr unsigned kSameA = ((1u << kSize) - 1) / ((1u << kM) - 1), kSameB = (1u << kM) - 1;
};
/// The larger a cluster, the fewer bytes cross from the L2 cache. But clusters of four and of eight leave
/// some of a GPU's multiprocessors unused (12 of an H200's 132), on which clusters of two find room.
using Two = Cluster<2, 1>;
using Four = Cluster<2, 2>;
using Eight = Cluster<2, 4>;

/// How an operand lies in memory, and whether it is to stay in the L2 cache: every row, or column, reads it
/// again.
template <Major kOrder, bool kKept = false>
struct Operand {
  static constexpr Major kMajor = kOrder;
  static constexpr bool kStays = kKept;
};

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

/// How a product is cut: units of work, each a cluster's tiles of c and a part of k, handed to the clusters
/// in turn.
struct Work {
  int rows;         ///< clusters along m
  int columns;      ///< clusters along n
  int steps;        ///< tiles of k
  int splits = 1;   ///< parts of k
  int group = 1;    ///< rows that come one after the other before the next column: what stays in the L2 cache
  int first_m = 0;  ///< tiles of c that are not this product's affair
  int first_n = 0;

  __host__ __device__ int units() const { return rows * columns * splits; }
};

/// One CTA's part of a unit, in tiles.
struct Unit {
  int m, n, split;
  int begin, end;  ///< steps of k
};

template <class C>
__device__ inline Unit unit_of(const Work& work, int index, int rank) {
  const int blocks = work.rows * work.columns;
  const int split = index / blocks, block = index - split * blocks;
  const int each = work.group * work.columns, group = block / each, within = block - group * each;
  const int rows = min(work.group, work.rows - group * work.group);
  const int n = within / rows, m = group * work.group + within - n * rows;
  const auto step = [&](int part) { return work.steps * part / work.splits; };
  return {work.first_m + m * C::kM + rank % C::kM, work.first_n + n * C::kN + rank / C::kM, split,
          step(split), step(split + 1)};
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

/// Loads a CTA's part of a tile, for the kShares CTAs that have it in common.
template <int kShares, bool kStays>
__device__ inline void load_part(std::uint32_t shared, const CUtensorMap& map, const hopper::Box<2>& box,
                                 std::uint32_t full, std::uint16_t ctas) {
  if constexpr (kShares > 1 && kStays) {
    hopper::tma_load_multicast(shared, map, box, full, ctas, hopper::evict_last());
  } else if constexpr (kShares > 1) {
    hopper::tma_load_multicast(shared, map, box, full, ctas);
  } else if constexpr (kStays) {
    hopper::tma_load(shared, map, box, full, hopper::evict_last());
  } else {
    hopper::tma_load(shared, map, box, full);
  }
}

/// Loads step `k` of a unit: this CTA's parts of its tiles of a and b.
template <class P>
__device__ inline void load_stage(const Maps& maps, const Layout& at, int stage, const Unit& unit, int k,
                                  int rank) {
  using C = typename P::Cluster;
  const int row = rank % C::kM, column = rank / C::kM;
  const auto same_a = static_cast<std::uint16_t>(C::kSameA << row);
  const auto same_b = static_cast<std::uint16_t>(C::kSameB << (column * C::kM));
  const std::uint32_t full = at.full(stage);
  hopper::arrive_expect(full, kStageBytes);
  if constexpr (P::A::kMajor == Major::k) {
    constexpr int kPart = kTileM / C::kN;
    load_part<C::kN, P::A::kStays>(at.a(stage) + column * kPart * 128, maps.a,
                                   hopper::Box{k * kTileK, unit.m * kTileM + column * kPart}, full, same_a);
  } else {
    constexpr int kPart = kTileK / C::kN;
#pragma unroll
    for (int i = 0; i < kTileM / 64; ++i)
      load_part<C::kN, P::A::kStays>(at.a(stage) + i * 8192 + column * kPart * 128, maps.a,
                                     hopper::Box{unit.m * kTileM + i * 64, k * kTileK + column * kPart}, full,
                                     same_a);
  }
  if constexpr (P::B::kMajor == Major::k) {
    constexpr int kPart = kTileN / C::kM;
    load_part<C::kM, P::B::kStays>(at.b(stage) + row * kPart * 128, maps.b,
                                   hopper::Box{k * kTileK, unit.n * kTileN + row * kPart}, full, same_b);
  } else {
    constexpr int kPart = kTileK / C::kM;
#pragma unroll
    for (int i = 0; i < kTileN / 64; ++i)
      load_part<C::kM, P::B::kStays>(at.b(stage) + i * 8192 + row * kPart * 128, maps.b,
                                     hopper::Box{unit.n * kTileN + i * 64, k * kTileK + row * kPart}, full,
                                     same_b);
  }
}

/// A product: its operands, how it is cut, what becomes of its sums, and how many clusters of the launch work
/// on it.
template <class C, class OperandA, class OperandB, class E>
struct Product {
  using Cluster = C;
  using A = OperandA;
  using B = OperandB;
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
    const Unit unit = unit_of<typename P::Cluster>(product.work, index, seat.rank);
    for (int k = unit.begin; k < unit.end; ++k) {
      hopper::wait(at.empty(slot.stage), slot.phase ^ 1);
      load_stage<P>(product.maps, at, slot.stage, unit, k, seat.rank);
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

/// The CTA whose producer a lane of a consumer's warp tells that a stage is free, or -1: those that share the
/// tile of b, then the others that share that of a.
template <class C>
__device__ inline int giver_of(int rank, int lane) {
  const int row = rank % C::kM, column = rank / C::kM;
  if (lane < C::kM) return column * C::kM + lane;
  if (lane >= C::kGivers) return -1;
  const int other = lane - C::kM;
  return (other + (other >= column ? 1 : 0)) * C::kM + row;
}

/// The sums of a unit. Gives every stage back, to the producers of all CTAs that fill it, when its product is
/// done. giver: the one that this lane tells, if any.
template <Major kA, Major kB>
__device__ inline void multiply_unit(const Layout& at, const Unit& unit, Slot& slot, std::uint32_t next_turn,
                                     int giver, Sums& sums) {
  const auto give_back = [&](int stage) {
    if (giver >= 0) hopper::arrive_at(at.empty(stage), static_cast<std::uint32_t>(giver));
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
  if (threadIdx.x % 32 == 0) hopper::arrive(next_turn);
  hopper::wgmma_wait<0>();
  hopper::pin(sums[0]), hopper::pin(sums[1]);
  give_back(previous);
}

template <class P>
__device__ inline void consume(const P& product, const Layout& at, const Seat& seat) {
  using C = typename P::Cluster;
  const int consumer = static_cast<int>(threadIdx.x) / 128;
  const int giver = giver_of<C>(seat.rank, static_cast<int>(threadIdx.x) % 32);
  typename P::Epilogue epilogue{product.terms, product.maps.c, Staging{at, consumer}};
  Slot slot;
  std::uint32_t turn = consumer == 0 ? 1 : 0;  // the first has its first turn at once
  int mine = 0;                                // the consumer whose unit it is
  for (int index = seat.cluster; index < product.work.units(); index += product.clusters, mine ^= 1) {
    const Unit unit = unit_of<C>(product.work, index, seat.rank);
    if (mine != consumer) {
      slot.advance(unit.end - unit.begin);
      continue;
    }
    epilogue.begin(unit);
    hopper::wait(at.turn(consumer), turn);
    turn ^= 1;
    Sums sums{};  // overwritten; but the compiler need not keep what was there before
    multiply_unit<P::A::kMajor, P::B::kMajor>(at, unit, slot, at.turn(1 - consumer), giver, sums);
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

template <class C>
__device__ inline void init_barriers(const Layout& at) {
  for (int i = 0; i < kStages; ++i) {
    hopper::barrier_init(at.full(i), 1);
    hopper::barrier_init(at.empty(i), 4 * C::kGivers);  // the warps of a consumer in each CTA
  }
  for (int i = 0; i < 2; ++i) {
    hopper::barrier_init(at.turn(i), 4);
    for (int k = 0; k < kStagingBuffers; ++k) hopper::barrier_init(at.loaded(i, k), 1);
  }
  hopper::fence_barrier_init();
}

/// Epilogue: a struct made of (Terms, the map of c, Staging), one per thread of a consumer, with begin(unit),
/// called before a unit's products, and finish(unit, sums), called after them; tiles may lie outside of c.
/// maps.a: boxes of kTileK x kTileM / kN (Major::k) or 64 x kTileK / kN; maps.b: of kTileK x kTileN / kM or
/// 64 x kTileK / kM; maps.c: the epilogue's affair.
///
/// As soon as all clusters run, the next kernel of the stream may, if it was launched as their companion: it
/// finds the multiprocessors that they left. Each of the two ends after the other.
template <class First, class Second>
__global__ void __cluster_dims__(First::Cluster::kSize, 1, 1) __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ First first, const __grid_constant__ Second second) {
  extern __shared__ std::uint8_t shared[];
  const Layout at{(hopper::shared_address(shared) + 1023u) & ~1023u};
  using C = typename First::Cluster;
  const Seat seat{static_cast<int>(blockIdx.x) / C::kSize, static_cast<int>(hopper::cluster_rank())};
  if (threadIdx.x == 0) init_barriers<C>(at);
  hopper::cluster_arrive();
  hopper::cluster_wait();
  hopper::launch_dependents();
  if constexpr (std::is_same_v<Second, Nothing>) {
    run(first, at, seat);
  } else if (seat.cluster < first.clusters) {
    run(first, at, seat);
  } else {
    static_assert(std::is_same_v<typename Second::Cluster, C>);
    run(second, at, {seat.cluster - first.clusters, seat.rank});
  }
  // No CTA may leave while another still writes into its shared memory or arrives at its barriers.
  __syncwarp();
  hopper::cluster_arrive();
  hopper::cluster_wait();
  hopper::wait_for_previous();
}

}  // namespace lapidary::product
