// What the attention kernels for heads of 256 components share: tiles of 64 rows, products of tiles, the
// queue of work items and the way results leave the registers.
//
// Every kernel runs one block per SM: two consumer warpgroups that multiply, and a producer thread that keeps
// TMA loads ahead of them. Blocks take items from a counter, so that long and short ones balance; which
// block computes an item does not change its result.
#pragma once
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/attention256.h"
#include "kernels/cuda/attention256_plan.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/dependent_launch.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/processors.h"
#include "kernels/cuda/tensor_map.h"

namespace lapidary::attention256 {

using hopper::follow_previous;
using Bf16 = __nv_bfloat16;

constexpr int kDim = 256;
constexpr int kTile = 64;  ///< rows of a tile: queries or keys
constexpr std::uint32_t kTileBytes = kTile * kDim * sizeof(Bf16);
constexpr std::uint32_t kChunkBytes = kTile * 128;  ///< 64 of the 256 columns: rows of 128 swizzled bytes
constexpr int kConsumers = 256;                     ///< threads of the two warpgroups that multiply
constexpr int kThreads = kConsumers + 128;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
constexpr float kLog2E = 1.4426950408889634f;

/// A tile as TMA leaves it: four chunks of 64 rows of 64 columns.
struct alignas(1024) Tile {
  Bf16 data[kTile * kDim];
};

using Barrier = unsigned long long;

__device__ inline std::uint32_t at(const void* shared) {
  return hopper::shared_address(shared);
}

/// Copies rows [token, token + 64) of a head into a tile; rows past the last token become 0.
__device__ inline void load_tile(const Tile& tile, const CUtensorMap& map, int token, int head,
                                 const Barrier& full) {
  hopper::tma_load(at(&tile), map, hopper::Box(0, token, 0, head), at(&full));
}

/// One arrival per warp.
__device__ inline void arrive_warp(const Barrier& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) hopper::arrive(at(&barrier));
}

/// Position in a ring of kStages stages that are used in turn.
template <int kStages>
struct Ring {
  std::uint32_t stage = 0, parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

/// The same value in every lane, and known as such to the compiler: what follows from it alone, loops and
/// descriptors, then lives in uniform registers.
template <class T>
__device__ inline T uniform(T value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

/// The consumer warpgroup of the thread.
__device__ inline int warpgroup_index() {
  return uniform(static_cast<int>(threadIdx.x) / 128);
}

/// An item of work: its number, and where what it walks begins and ends.
struct Work {
  int number, begin, end;
};

/// Hands work from the producer to the consumers, one ahead.
struct Queue {
  Barrier full[2], empty[2];
  Work work[2];

  __device__ void init() {
    for (int i = 0; i < 2; ++i) {
      hopper::barrier_init(at(&full[i]), 1);
      hopper::barrier_init(at(&empty[i]), kConsumers);
    }
  }
  __device__ void push(Ring<2>& ring, const Work& value) {
    hopper::wait(at(&empty[ring.stage]), ring.parity ^ 1);
    work[ring.stage] = value;
    hopper::arrive(at(&full[ring.stage]));
    ring.next();
  }
  __device__ Work pop(Ring<2>& ring) {
    hopper::wait(at(&full[ring.stage]), ring.parity);
    const Work value = {uniform(work[ring.stage].number), uniform(work[ring.stage].begin),
                        uniform(work[ring.stage].end)};
    hopper::arrive(at(&empty[ring.stage]));
    ring.next();
    return value;
  }
};

/// The blocks of rows whose items come at the end, the longest of them first, so that blocks of threads end
/// together: the shortest of all and some of those that would come last anyway. The others come as they lie,
/// for what is near in memory is to be read together.
struct LastBlocks {
  static constexpr int kMost = 32;
  int count = 0;
  int ascending[kMost] = {}, order[kMost] = {};

  LastBlocks() = default;
  /// From how much work there is in each block: the `shortest` and, of the others, the `last`, at most kMost.
  explicit LastBlocks(const std::vector<std::int32_t>& work, int shortest = 16, int last = 0);

  /// The block in a place of the order of `blocks`.
  __device__ int block(int place, int blocks) const {
    if (place >= blocks - count) return order[place - (blocks - count)];
    for (int i = 0; i < count; ++i) place += ascending[i] <= place ? 1 : 0;
    return place;
  }
};

/// What a producer takes from the counter of items, which its first is not from: not before it has loaded all
/// of the item before, for an item that one block has reserved is one that another can not begin, and the
/// blocks shall end together.
template <class Arguments, class Bounds>
class Feed {
 public:
  __device__ Feed(const Arguments& a, Queue& queue) : a_(a), queue_(queue) {}
  /// Asks for the next item, which take() then need not wait for: with the last loads of the item before.
  __device__ void reserve() {
    number_ = begun_ ? static_cast<int>(gridDim.x) + atomicAdd(a_.counter, 1) : static_cast<int>(blockIdx.x);
    begun_ = reserved_ = true;
  }
  /// The next item, also handed to the consumers; a number past the last ends both.
  __device__ Work take() {
    if (!reserved_) reserve();
    reserved_ = false;
    const Work work = Bounds::of(a_, number_);
    queue_.push(ring_, work);
    return work;
  }

 private:
  const Arguments& a_;
  Queue& queue_;
  Ring<2> ring_;
  int number_ = 0;
  bool begun_ = false, reserved_ = false;
};

/// Descriptor of a tile whose rows are m (n) of a product: columns are k. Made anew for every product: kept
/// over a loop, descriptors would take registers from the sums.
__device__ inline std::uint64_t by_rows(const Tile& tile) {
  return hopper::descriptor(uniform(at(&tile)), 1024);
}
/// Descriptor of a tile whose rows are k of a product: columns are n.
__device__ inline std::uint64_t by_columns(const Tile& tile) {
  return hopper::descriptor(uniform(at(&tile)), kChunkBytes);
}

/// Starts s [64, 64] = a b^T over all 256 columns of two tiles, as one group.
__device__ inline void start_scores(float (&s)[32], std::uint64_t a, std::uint64_t b) {
  using namespace hopper;
  pin(s);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const std::uint64_t step = i / 4 * (kChunkBytes / 16) + i % 4 * kDescriptorStep<Major::k>;
    Wgmma<64>::run<Major::k, Major::k>(s, a + step, b + step, i > 0);
  }
  wgmma_commit();
}

/// Starts sum [64, 256] (+)= p [64, 64] b, b a tile whose rows are k, as one group.
__device__ inline void start_sum(float (&sum)[128], const std::uint32_t (&p)[4][4], std::uint64_t b,
                                 bool accumulate) {
  using namespace hopper;
  pin(sum);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kTile / 16; ++i)
    Wgmma<256>::run<Major::mn>(sum, p[i], b + i * kDescriptorStep<Major::mn>, i > 0 || accumulate);
  wgmma_commit();
}

/// One of the four steps of start_sum, in the group that is open: sum += p b for 16 of the 64 k.
__device__ inline void add_step(float (&sum)[128], const std::uint32_t (&p)[4], std::uint64_t b, int step) {
  using namespace hopper;
  wgmma_fence();
  Wgmma<256>::run<Major::mn>(sum, p, b + static_cast<std::uint64_t>(step) * kDescriptorStep<Major::mn>, true);
}

/// The two numbers of a word of bf16.
__device__ inline float low_half(std::uint32_t word) {
  return __uint_as_float(word << 16);
}
__device__ inline float high_half(std::uint32_t word) {
  return __uint_as_float(word & 0xffff0000u);
}

/// Accumulators of a 64 x 64 product as the register operand of the next one.
__device__ inline void pack(std::uint32_t (&p)[4][4], const float (&s)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) p[i / 4][i % 4] = hopper::pack_bf16(s[2 * i], s[2 * i + 1]);
}

/// A thread holds rows `row` and `row + 8` of its warpgroup's 64 and, of every eight columns, those from
/// `column`.
struct Place {
  int row, column;
  __device__ Place()
      : row(static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4),
        column(static_cast<int>(threadIdx.x) % 4 * 2) {}
};

/// A warpgroup's [64, 256] result on its way to memory. Each warp puts its 16 rows into 8 KiB of a tile that
/// nobody reads any more, from where TMA takes them beside the next item's work; the tile's stage is `held`
/// until then.
class Output {
 public:
  /// Stores the thread's two rows of `sum` times a factor each, in bf16, at 64 rows from `token` on; `map` is
  /// an output_map, rows past the last token are left out.
  __device__ void store(Tile& tile, const Barrier* stage, const CUtensorMap& map, int token, int head,
                        const float (&sum)[128], const float (&factor)[2]) {
    const int warp = static_cast<int>(threadIdx.x) % 128 / 32;
    const std::uint32_t part = at(&tile) + warp * (kTileBytes / 4);
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk)
      hopper::store_panel(part + chunk * (kChunkBytes / 4), sum, chunk, factor);
    hopper::fence_async_shared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      hopper::tma_store(map, hopper::Box(0, token + warp * 16, 0, head), part);
      hopper::bulk_commit();
    }
    held_ = stage ? at(stage) : 0;
  }

  /// Before the part of a tile that the last store reads is written again.
  __device__ void wait() {
    if (threadIdx.x % 32 == 0) hopper::bulk_wait_read<0>();
    __syncwarp();
  }

  /// Gives the stage back, by one arrival of each warp or of each thread.
  template <bool kEveryThread = false>
  __device__ void release() {
    if (held_ == 0) return;
    wait();
    if (kEveryThread || threadIdx.x % 32 == 0) hopper::arrive(held_);
    held_ = 0;
  }

 private:
  std::uint32_t held_ = 0;
};

/// Who may write a tile by way of which the results of one warpgroup leave and then those of the other.
struct Turns {
  Barrier mine[2][4];  ///< of a warp of a warpgroup: its part of the tile is free

  __device__ void init() {
    for (auto& warpgroup : mine)
      for (Barrier& warp : warpgroup) hopper::barrier_init(at(&warp), 1);
  }
};

/// Output by way of one tile for both warpgroups, in turn. That sets them apart, so that one multiplies while
/// the other does not.
class OutputInTurn {
 public:
  /// As Output::store.
  __device__ void store(Tile& tile, const Turns& turns, int warpgroup, const CUtensorMap& map, int token,
                        int head, const float (&sum)[128], const float (&factor)[2]) {
    const int warp = static_cast<int>(threadIdx.x) % 128 / 32;
    hopper::wait(at(&turns.mine[warpgroup][warp]), turn_.parity ^ (warpgroup == 0 ? 1u : 0u));
    turn_.next();
    output_.store(tile, &turns.mine[1 - warpgroup][warp], map, token, head, sum, factor);
  }
  /// Passes the tile on once TMA has taken what was stored last: some time after the store.
  __device__ void release() { output_.release(); }

 private:
  Ring<1> turn_;
  Output output_;
};

/// Stores zeros at 64 rows from `token` on of a head of x [tokens, heads, 256]: warp `warp` of `warps`.
__device__ inline void store_zeros(Bf16* x, int token, int tokens, int head, int heads,
                                   int warp = static_cast<int>(threadIdx.x) % 128 / 32, int warps = 4) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = token + warp; row < min(token + kTile, tokens); row += warps)
    *reinterpret_cast<uint4*>(x + (static_cast<std::int64_t>(row) * heads + head) * kDim + lane * 8) =
        make_uint4(0, 0, 0, 0);
}

/// The block's dynamic shared memory, which has to start where the swizzle of TMA and wgmma begins.
template <class Shared>
__device__ inline Shared& shared_memory() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  if (at(bytes) % 1024 != 0) __trap();
  return *reinterpret_cast<Shared*>(bytes);
}

// ------------------------------------------------------------------------------------- items of queries

/// How the queries are cut into items of two times 64 rows, one per consumer warpgroup.
struct Queries {
  int tokens = 0, heads = 0, group = 0;
  int item_heads = 0;  ///< query heads of an item: 2 that share a key head, or 1 with twice the tokens
  int items = 0;
  LastBlocks last;  ///< of the blocks of queries, counted from the last tokens on

  Queries() = default;
  /// With the bounds of the queries in host memory, which may be null, and the numbers of LastBlocks.
  Queries(const AttentionSizes& sizes, const std::int32_t* lo, const std::int32_t* hi, int shortest = 16,
          int last = 0);
  __host__ __device__ int item_tokens() const { return 2 * kTile / item_heads; }
  __host__ __device__ int block_items() const { return heads / item_heads; }
};

/// What an item number means: items of the last tokens have the lowest, with causal masks they are the
/// longest.
struct QueryItem {
  int token, tokens, head, kv;
  __device__ QueryItem(const Queries& q, int item) {
    const int per_block = q.block_items();
    tokens = q.item_tokens();
    token = (q.items - 1 - item) / per_block * tokens;
    head = item % per_block * q.item_heads;
    kv = head / q.group;
  }
  /// First token and head of a warpgroup.
  __device__ int token_of(int warpgroup) const { return tokens == kTile ? token : token + warpgroup * kTile; }
  __device__ int head_of(int warpgroup) const { return tokens == kTile ? head + warpgroup : head; }
};

/// The item that comes in place `place` of the order of work, and the keys that any of its queries sees.
/// Arguments have `queries`, `lo` and `hi`.
struct KeyBounds {
  __device__ static int number(const Queries& q, int place) {
    const int per_block = q.block_items();
    return q.last.block(place / per_block, q.items / per_block) * per_block + place % per_block;
  }
  template <class Arguments>
  __device__ static Work of(const Arguments& a, int place) {
    if (place >= a.queries.items) return {place, 0, 0};
    const int number = KeyBounds::number(a.queries, place);
    const QueryItem item(a.queries, number);
    return {number, a.lo[item.token], a.hi[min(item.token + item.tokens, a.queries.tokens) - 1]};
  }
};

/// Tiles that cover [begin, end).
__device__ inline int tiles_of(const Work& work) {
  return max(0, (work.end - work.begin + kTile - 1) / kTile);
}

/// Visible keys of the thread's two rows, and those that every row of the warpgroup sees.
struct Rows {
  int lo[2], hi[2];
  int all_from, all_to;
  __device__ Rows(const Queries& q, const std::int32_t* lows, const std::int32_t* highs, int token,
                  const Place& place)
      : Rows(q, lows, highs, token, place, lows[min(token + kTile, q.tokens) - 1],
             highs[min(token, q.tokens - 1)]) {}
  /// Where what every row sees is known.
  __device__ Rows(const Queries& q, const std::int32_t* lows, const std::int32_t* highs, int token,
                  const Place& place, int from, int to)
      : all_from(from), all_to(to) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = token + place.row + 8 * r;
      lo[r] = row < q.tokens ? lows[row] : 0;
      hi[r] = row < q.tokens ? highs[row] : 0;
    }
  }
  __device__ bool whole(int key) const {
    return key >= all_from && key + kTile <= all_to;
  }
};

// ------------------------------------------------------------------------------------------- launches

/// Tensor map of x [N, heads, 256] for load_tile, and for Output.
CUtensorMap tile_map(const void* x, std::int64_t tokens, std::int64_t heads);
CUtensorMap output_map(void* x, std::int64_t tokens, std::int64_t heads);

/// Starts a kernel that begins with follow_previous: one block per SM, or per item where there are fewer.
template <class Arguments>
void launch_persistent(const char* op, void (*kernel)(Arguments), const Arguments& arguments, int items,
                       std::size_t shared, cudaStream_t stream) {
  cuda_ok(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          op);
  launch_dependent(op, kernel, static_cast<unsigned>(std::min(items, processors())), kThreads, shared, stream,
                   arguments);
}

}  // namespace lapidary::attention256
