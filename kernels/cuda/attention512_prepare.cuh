// What comes before the backward for head dimension 512: two small kernels that write its sequence of tasks,
// the statistics of the rows that its first tasks read, and zeros where no task writes.
#pragma once
#include <climits>

#include "kernels/cuda/attention512_statistics.cuh"
#include "kernels/cuda/attention512_tasks.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary::attention512 {

constexpr int kPrepareThreads = 256, kPrepareWarps = kPrepareThreads / 32;

// ------------------------------------------------------------------------------------------- the blocks

/// Sums of two numbers over the threads before, and over all, of a block of kPrepareThreads.
struct Scan {
  int2 before, all;

  __device__ explicit Scan(int2 x) {
    __shared__ int2 sum[kPrepareThreads];
    const int i = static_cast<int>(threadIdx.x);
    sum[i] = x;
    __syncthreads();
    for (int step = 1; step < kPrepareThreads; step *= 2) {
      const int2 left = i >= step ? sum[i - step] : make_int2(0, 0);
      __syncthreads();
      sum[i].x += left.x, sum[i].y += left.y;
      __syncthreads();
    }
    before = make_int2(sum[i].x - x.x, sum[i].y - x.y), all = sum[kPrepareThreads - 1];
    __syncthreads();
  }
};

/// Writes the blocks of a chunk, of which `first` and `tiles` of 256 keys come before, sets their counters,
/// and returns what would be the block behind.
__device__ inline Block put_blocks(const Problem& z, Block b, int first, int tiles) {
  const int keys = b.keys, begin = b.key, range_tiles = z.range_keys / kKeyTile;
  const int chunk_tiles = b.key_tiles(), pairs = b.pairs();
  z.counters.rows_done[b.chunk] = -b.rows;
  for (b.range = 0;; ++b.range) {
    const int done = min(b.range * range_tiles, chunk_tiles);
    // The chunks before are whole.
    b.scores_before = kChunkRows / (kCtas * kTile) * tiles + pairs * done;
    b.d_keys_before = 4 * (tiles + done);
    b.d_queries_before = kChunkRows / kTile * first + 2 * pairs * b.range;
    if (b.range == b.ranges) return b;
    b.key = begin + b.range * z.range_keys, b.keys = min(keys - b.range * z.range_keys, z.range_keys);
    const int block = first + b.range;
    z.blocks[block] = b;
    z.counters.scores_done[block] = -kCtas * b.scores();
    z.counters.products_done[block] = -kCtas * (b.d_keys() + b.d_queries());
  }
}

/// Sets the counters and cuts every chunk's keys into ranges, in order. One block of threads.
__global__ void __launch_bounds__(kPrepareThreads)
    attention512_plan(const __grid_constant__ Problem z, int counters) {
  hopper::launch_dependents();
  for (int i = static_cast<int>(threadIdx.x); i < counters; i += kPrepareThreads) z.counters.ticket[i] = 0;
  __syncthreads();
  const int chunks = static_cast<int>(ceil_div(z.tokens, z.chunk_tokens));
  int2 total = make_int2(0, 0);  // blocks, tiles of keys
  for (int base = 0; base < chunks; base += kPrepareThreads) {
    Block b{};
    b.chunk = base + static_cast<int>(threadIdx.x);
    if (b.chunk < chunks) {
      const int begin = b.chunk * z.chunk_tokens, end = min(begin + z.chunk_tokens, z.tokens);
      b.row = begin << z.heads_log2, b.rows = (end - begin) << z.heads_log2;
      b.key = z.lo[begin] / kTile * kTile, b.keys = max(z.hi[end - 1] - b.key, 0);
      b.ranges = max(1, static_cast<int>(ceil_div(b.keys, z.range_keys)));
    }
    const Scan scan(make_int2(b.ranges, b.key_tiles()));
    if (b.chunk < chunks) {
      const int first = total.x + scan.before.x;
      const Block behind = put_blocks(z, b, first, total.y + scan.before.y);
      if (b.chunk == chunks - 1) {
        z.blocks[first + b.ranges] = behind;
        *z.counters.blocks = first + b.ranges;
        *z.counters.tasks = behind.scores_before + behind.d_keys_before + behind.d_queries_before;
      }
    }
    total.x += scan.all.x, total.y += scan.all.y;
  }
}

// -------------------------------------------------------------------------------------------- the tasks

/// Where a block's tasks begin in the sequence.
struct Places {
  int scores, d_keys, d_queries;

  /// Scores of the first blocks; then for every block b the scores of block b + `ahead`, and of b dk and dv,
  /// the longest, before dq. Behind the last scores dk and dv of all blocks come before dq of any: the
  /// shortest end the sequence.
  __device__ Places(const Problem& z, int block, int blocks) {
    const int late = max(blocks - min(2 * z.ahead, z.slots), 0);  // first block whose dq comes last
    const Block &b = z.blocks[block], &behind = z.blocks[max(block - z.ahead, 0)];
    const int scores_before = z.blocks[min(block + z.ahead + 1, blocks)].scores_before;
    scores = b.scores_before + behind.d_keys_before +
             z.blocks[min(max(block - z.ahead, 0), late)].d_queries_before;
    d_keys = scores_before + b.d_keys_before + z.blocks[min(block, late)].d_queries_before;
    d_queries = (block < late ? scores_before : z.blocks[blocks].scores_before) +
                z.blocks[block < late ? block + 1 : blocks].d_keys_before + b.d_queries_before;
  }
};

/// The bounds of a chunk's boxes of 64 rows. Neither ever decreases.
struct BoxBounds {
  int lo[kBoxes], hi[kBoxes];

  __device__ void fill(const Problem& z, const Block& b, int i) {
    const int row = b.row + i * 64, end = b.row + b.rows;
    lo[i] = row < end ? z.lo[z.token(row)] : INT_MAX;
    hi[i] = row < end ? z.hi[z.token(min(row + 64, end) - 1)] : INT_MAX;
  }
  /// How many of x are below `key`.
  __device__ static int below(const int (&x)[kBoxes], int key) {
    int count = 0;
    for (int step = kBoxes; step > 0; step /= 2)
      if (count + step <= kBoxes && x[count + step - 1] < key) count += step;
    return count;
  }
  /// How many see no key from `key` on yet, and how many see a key before `key`.
  __device__ int first(int key) const { return below(hi, key + 1); }
  __device__ int end(int key) const { return below(lo, key); }
};

/// Writes the tasks of one block. Called by a block of threads.
class BlockTasks {
 public:
  __device__ BlockTasks(const Problem& z, int block, int blocks, BoxBounds& bounds)
      : z_(z), b_(z.blocks[block]), block_(block), places_(z, block, blocks), bounds_(bounds) {
    __syncthreads();  // nobody reads the bounds of the block before
    if (threadIdx.x < kBoxes) bounds.fill(z, b_, static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  __device__ void write() const {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < b_.scores(); i += kPrepareThreads)
      z_.tasks[places_.scores + i] = scores(i % b_.pairs(), i / b_.pairs());
    for (int tile = thread; tile < b_.key_tiles(); tile += kPrepareThreads) put_d_keys(tile);
    for (int pair = thread; pair < b_.pairs(); pair += kPrepareThreads) put_d_queries(pair);
  }

 private:
  __device__ TaskRecord record(Kind kind, int place) const {
    TaskRecord t{};
    t.block = block_, t.kind = kind, t.place = static_cast<std::uint8_t>(place), t.panels = 1;
    return t;
  }

  /// Panels of the block's keys that some of a pair of tiles of rows sees: what is computed of p and ds.
  __device__ int2 visible_panels(int pair) const {
    constexpr int kPairBoxes = kCtas * kTile / 64;
    const int last = min(pair * kPairBoxes + kPairBoxes, (b_.rows + 63) / 64) - 1;
    const int from = max(bounds_.lo[pair * kPairBoxes] - b_.key, 0),
              to = min(bounds_.hi[last] - b_.key, b_.keys);
    return make_int2(from / 64, max((to + 63) / 64, from / 64));
  }

  __device__ TaskRecord scores(int pair, int tile) const {
    const int2 see = visible_panels(pair);
    const int from = max(see.x, tile * kPanels), to = min(see.y, (tile + 1) * kPanels);
    TaskRecord t = record(from < to ? Kind::scores : Kind::nothing, pair);
    if (from < to) t.from.set(0, from), t.to.set(0, to);
    return t;
  }

  /// Later rows, which see more keys where the mask is causal, go first.
  __device__ void put_d_queries(int pair) const {
    const int2 see = visible_panels(pair);
    TaskRecord t = record(Kind::d_q, pair);
    if (see.x < see.y) t.from.set(0, see.x), t.to.set(0, see.y);
    t.first = b_.range == 0 ? 1 : 0, t.last = b_.range == b_.ranges - 1 ? 1 : 0;
    for (int half = 0; half < 2; ++half) {
      t.half = static_cast<std::uint8_t>(half);
      z_.tasks[places_.d_queries + 2 * (b_.pairs() - 1 - pair) + 1 - half] = t;
    }
  }

  __device__ void put_d_keys(int tile) const {
    const int next = z_.token(b_.row) + z_.chunk_tokens, key = b_.key + tile * kKeyTile,
              keys_end = b_.key + b_.keys;
    const int seen_before = b_.row == 0 ? 0 : z_.hi[z_.token(b_.row) - 1],
              seen_after = next >= z_.tokens ? INT_MAX : z_.lo[next] / kTile * kTile;
    TaskRecord t = record(Kind::d_k, tile);
    t.panels = static_cast<std::uint8_t>(min((keys_end - key + 63) / 64, kPanels));
    const int first = bounds_.first(key), end = max(bounds_.end(min(key + kKeyTile, keys_end)), first);
    int firsts = 0, lasts = 0;
    for (int i = 0; i < kPanels; ++i) {
      const int row = key + i * 64, from = min(max(bounds_.first(row), first), end);
      t.from.set(i, from), t.to.set(i, i < t.panels ? min(max(bounds_.end(row + 64), from), end) : from);
      firsts |= (seen_before <= row ? 1 : 0) << i, lasts |= (seen_after > row ? 1 : 0) << i;
    }
    t.first = static_cast<std::uint8_t>(firsts), t.last = static_cast<std::uint8_t>(lasts);
    for (int i = 0; i < 4; ++i) {
      t.kind = i % 2 == 0 ? Kind::d_k : Kind::d_v, t.half = static_cast<std::uint8_t>(i / 2);
      z_.tasks[places_.d_keys + 4 * tile + i] = t;
    }
  }

  const Problem& z_;
  const Block b_;
  const int block_;
  const Places places_;
  const BoxBounds& bounds_;
};

// ------------------------------------------------------------------------------------------ the numbers

/// The statistics of a row. A warp per row.
__device__ inline void row_statistics(const Problem& z, int row, int lane) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int64_t at = static_cast<std::int64_t>(row) * kDim + (i * 32 + lane) * 8;
    const auto x = Pack<Bf16, 8>::load(z.out + at), y = Pack<Bf16, 8>::load(z.d_out + at);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += x.get(j) * y.get(j);
  }
  sum = warp_sum(sum);
  if (lane == 0) put_statistics(z, row, sum);
}

/// True where some query sees the key: the first that looks beyond it does not begin behind it.
__device__ inline bool seen(const Problem& z, int key) {
  int first = 0;
  for (int end = z.tokens; first < end;) {
    const int middle = (first + end) / 2;
    if (z.hi[middle] > key) {
      end = middle;
    } else {
      first = middle + 1;
    }
  }
  return first < z.tokens && z.lo[first] <= key;
}

/// Clears dk and dv of those of 32 keys that nobody sees. Called by a warp.
__device__ inline void clear_unseen(const Problem& z, int first_key, int lane) {
  const int key = first_key + lane;
  unsigned unseen = __ballot_sync(0xffffffffu, key < z.tokens && !seen(z, key));
  for (; unseen != 0; unseen &= unseen - 1) {
    const std::int64_t row =
        static_cast<std::int64_t>(first_key + __ffs(static_cast<int>(unseen)) - 1) * kDim;
    for (int i = lane * 8; i < kDim; i += 32 * 8) {
      *reinterpret_cast<uint4*>(z.d_k + row + i) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(z.d_v + row + i) = make_uint4(0, 0, 0, 0);
    }
  }
}

/// The first `planners` blocks of threads write the tasks of some blocks each, as soon as those are planned.
/// Of the others every warp takes a row, the first ones keys too.
__global__ void __launch_bounds__(kPrepareThreads)
    attention512_prepare(const __grid_constant__ Problem z, int planners) {
  __shared__ BoxBounds bounds;
  hopper::launch_dependents();
  const int planner = static_cast<int>(blockIdx.x);
  if (planner < planners) {
    hopper::wait_for_previous();
    const int blocks = *z.counters.blocks;
    for (int block = planner; block < blocks; block += planners) BlockTasks(z, block, blocks, bounds).write();
    return;
  }
  const int warp = (planner - planners) * kPrepareWarps + static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % 32;
  if (warp < z.prepared_rows()) row_statistics(z, warp, lane);
  if (warp * 32 < z.tokens) clear_unseen(z, warp * 32, lane);
}

}  // namespace lapidary::attention512
