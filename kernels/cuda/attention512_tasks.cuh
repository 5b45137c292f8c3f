// The backward for head dimension 512 as a sequence of tasks: which exist, in what order a cluster takes
// them, what each reads, and what it waits for. docs/attention512.md explains the order.
#pragma once
#include "kernels/cuda/attention512_cluster.cuh"
#include "kernels/ops.h"

namespace lapidary::attention512 {

constexpr int kTile = kAttention512Tile;  ///< rows (or keys) of a CTA's part of a task
constexpr int kKeyTile = 2 * kTile;
constexpr int kPanel =
    64 * 64 * 2;  ///< bytes of 64 rows of 64 columns of p or ds, swizzled as TMA and wgmma do
/// What one scores task adds to scores_done: one from each computing warp.
constexpr int kScoreSignals = kCtas * 8;
constexpr int kProductSignals = kCtas * 8;

// -------------------------------------------------------------------------------- between the clusters

__device__ inline int load_acquire(const int* p) {
  int x;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}
/// What this thread has written, or seen written by its warp, before what it stores or adds after.
__device__ inline void fence_gpu() {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}
__device__ inline void store_relaxed(int* p, int x) {
  asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
__device__ inline void add_relaxed(int* p, int x) {
  asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
__device__ inline void wait_at_least(const int* p, int x) {
  while (load_acquire(p) < x) __nanosleep(64);
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));  // volatile: in order, fewer at a time
  return y;
}

// ------------------------------------------------------------------------------------------ the problem

/// A chunk of queries against one range of its keys. Rows are query heads of tokens, heads fastest.
struct Block {
  int row, rows, key, keys;
  int chunk, range, ranges;
  int unused;
};

struct Counters {
  int *ticket, *blocks;
  int *scores_done, *products_done;  ///< by block
  int* query_flags;                  ///< by unit of a chunk's dq and warp: blocks whose part is in
  int* key_flags;                    ///< by unit of dk and dv and warp: chunks whose part is in
};

/// Sums are kept as units of 64 rows and 256 columns in the order of wgmma's registers: 32 float4 of every
/// thread.
struct Problem {
  int tokens, heads, chunk_tokens, range_keys;
  int slots, ahead;  ///< as Attention512Schedule
  bool one_range;
  const std::int32_t *lo, *hi;
  Bf16 *d_q, *d_k, *d_v;
  float2* statistics;  ///< by row: log-sum-exp in log2, dot product of output and its gradient
  Block* blocks;
  std::byte* tiles;  ///< p and ds of `slots` blocks
  float4 *query_sums, *key_sums;
  Counters counters;

  __host__ __device__ int rows() const { return tokens * heads; }
  __host__ __device__ int chunk_boxes() const { return chunk_tokens * heads / 64; }

  __host__ __device__ int key_boxes() const { return (tokens + kTile - 1) / kTile * (kTile / 64); }

  /// Panel `panel` (64 keys) of box `box` (64 rows) of the p or ds of the block in slot `slot`.
  __device__ std::byte* tile(int slot, bool gradients, int panel, int box) const {
    const std::int64_t half = static_cast<std::int64_t>(range_keys / 64) * chunk_boxes();
    const std::int64_t at =
        (slot * 2 + (gradients ? 1 : 0)) * half + static_cast<std::int64_t>(panel) * chunk_boxes() + box;
    return tiles + at * kPanel;
  }
};

inline Problem problem_of(const AttentionBackward& op, const Attention512Scratch& plan) {
  auto* at = static_cast<std::byte*>(op.scratch.data());
  const auto take = [&](std::size_t bytes) {
    std::byte* const out = at;
    at += bytes;
    return out;
  };
  Problem z{};
  const AttentionSizes sizes{op.q.size(0), op.q.size(1), op.k.size(1), op.q.size(2)};
  const Attention512Schedule schedule = attention512_schedule(sizes, plan, op.host_lo, op.host_hi);
  z.tokens = static_cast<int>(sizes.tokens), z.heads = static_cast<int>(sizes.heads);
  z.chunk_tokens = static_cast<int>(plan.chunk_tokens);
  z.range_keys = static_cast<int>(schedule.range_keys);
  z.slots = schedule.slots, z.ahead = schedule.ahead, z.one_range = schedule.one_range;
  z.lo = ptr<std::int32_t>(op.lo), z.hi = ptr<std::int32_t>(op.hi);
  z.d_q = ptr<Bf16>(op.d_q), z.d_k = ptr<Bf16>(op.d_k), z.d_v = ptr<Bf16>(op.d_v);
  z.statistics = reinterpret_cast<float2*>(take(plan.statistics));
  z.key_sums = reinterpret_cast<float4*>(take(plan.key_sums));
  z.query_sums = reinterpret_cast<float4*>(take(plan.query_sums));
  z.tiles = take(plan.tiles);
  z.blocks = reinterpret_cast<Block*>(take(plan.blocks));
  auto* counter = reinterpret_cast<int*>(take(plan.counters));
  const auto count = [&](std::int64_t n) {
    int* const out = counter;
    counter += n;
    return out;
  };
  z.counters.ticket = count(1), z.counters.blocks = count(1);
  z.counters.scores_done = count(plan.most_blocks), z.counters.products_done = count(plan.most_blocks);
  z.counters.query_flags = count(plan.query_units * 4);
  z.counters.key_flags = count(plan.key_units * 4);
  return z;
}

// ---------------------------------------------------------------------------------------------- tasks

enum class Kind : int { scores, d_q, d_k, d_v, nothing, end };

/// One CTA's part of a task.
struct Task {
  Kind kind;
  int block, slot, steps;
  int row;         ///< first row: of the CTA's tile (scores, d_q), of the chunk (d_k, d_v)
  int key;         ///< first key: of the cluster's tile (scores), of the block (d_q), of the CTA's tile
  int panel, box;  ///< where the CTA's tile begins in the block's p and ds
  int first_step;  ///< panel (d_q) or box (d_k, d_v) of step 0
  int half;        ///< columns [256 half, 256 half + 256) of the result
  int unit;        ///< of the sums
  int wait, set;   ///< value of the unit's flag before and after
  bool first, last, valid;
};

/// Goes through the sequence of tasks with growing tickets: scores of the first blocks, then for every block
/// b the scores of block b + `ahead` and the products of block b.
class Walk {
 public:
  __device__ explicit Walk(const Problem& problem) : z_(problem), blocks_(*problem.counters.blocks) {
    enter();
  }

  /// False behind the last task.
  __device__ bool seek(int ticket) {
    while (ticket >= first_ + count_) {
      first_ += count_;
      if (++phase_ >= 2 * blocks_ + z_.ahead) return false;
      enter();
    }
    index_ = ticket - first_;
    return true;
  }

  /// Called by a whole warp.
  __device__ Task task(int rank, int lane) const {
    if (scores_phase()) return scores(rank);
    // Those of keys, the longest, begin first.
    const int keys = 4 * key_tiles();
    return index_ < keys ? d_key(index_, rank, lane) : d_q(2 * row_pairs() - 1 - (index_ - keys), rank);
  }

  /// Until what the task reads, or overwrites, is ready.
  __device__ void wait_for_inputs(const Task& t) const {
    if (t.kind != Kind::scores) {
      wait_at_least(z_.counters.scores_done + block_, row_pairs() * key_tiles() * kScoreSignals);
    } else if (block_ >= z_.slots) {
      const Block& before = z_.blocks[block_ - z_.slots];
      wait_at_least(z_.counters.products_done + block_ - z_.slots, products(before) * kProductSignals);
    }
  }

 private:
  __device__ bool scores_phase() const { return phase_ < z_.ahead || (phase_ - z_.ahead) % 2 == 0; }
  __device__ int row_pairs() const { return row_pairs(b_); }
  __device__ int key_tiles() const { return key_tiles(b_); }
  __device__ static int row_pairs(const Block& b) { return (b.rows + kCtas * kTile - 1) / (kCtas * kTile); }
  __device__ static int key_tiles(const Block& b) { return (b.keys + kKeyTile - 1) / kKeyTile; }
  __device__ static int products(const Block& b) { return 2 * row_pairs(b) + 4 * key_tiles(b); }

  __device__ void enter() {
    block_ = phase_ < z_.ahead ? phase_ : (phase_ - z_.ahead) / 2 + (scores_phase() ? z_.ahead : 0);
    count_ = 0;
    if (block_ >= blocks_) return;
    b_ = z_.blocks[block_], slot_ = block_ % z_.slots;
    count_ = scores_phase() ? row_pairs() * key_tiles() : products(b_);
  }

  __device__ int token_of(int row) const { return min(row, z_.rows() - 1) / z_.heads; }

  __device__ Task scores(int rank) const {
    const int pair = index_ % row_pairs(), tile = index_ / row_pairs();
    const int row = b_.row + pair * kCtas * kTile;
    Task t{};
    t.kind = Kind::scores, t.block = block_, t.slot = slot_, t.steps = 2 * kDim / 64;
    t.row = row + rank * kTile, t.key = b_.key + tile * kKeyTile;
    t.panel = tile * (kKeyTile / 64), t.box = (t.row - b_.row) / 64;
    if (z_.lo[token_of(row)] >= t.key + kKeyTile || z_.hi[token_of(row + kCtas * kTile - 1)] <= t.key)
      t.kind = Kind::nothing;
    return t;
  }

  /// Later rows, which see more keys where the mask is causal, go first.
  __device__ Task d_q(int index, int rank) const {
    const int row = b_.row + index / 2 * kCtas * kTile;
    Task t{};
    t.kind = Kind::d_q, t.block = block_, t.slot = slot_, t.half = index % 2, t.valid = true;
    t.row = row + rank * kTile, t.key = b_.key, t.box = (t.row - b_.row) / 64;
    const int from = max(z_.lo[token_of(row)] - b_.key, 0),
              to = min(z_.hi[token_of(row + kCtas * kTile - 1)] - b_.key, b_.keys);
    t.first_step = from / 64;
    t.steps = max((to + 63) / 64 - t.first_step, 0);
    t.unit = t.half * z_.chunk_boxes() + t.box;
    t.first = b_.range == 0, t.last = b_.range == b_.ranges - 1;
    t.wait = z_.one_range ? 0 : block_, t.set = block_ + 1;
    return t;
  }

  /// The first of a chunk's boxes of 64 rows that sees a key from `key` on, and the first that sees none
  /// before `key` any more; `boxes` where there is none. A whole warp looks at up to 32 boxes at a time, then
  /// closer.
  __device__ int first_box(int key, int boxes, int lane) const {
    return first_that(boxes, lane, [&](int box) {
      return z_.hi[token_of(b_.row + min((box + 1) * 64, b_.rows) - 1)] > key;
    });
  }
  __device__ int end_box(int key, int boxes, int lane) const {
    return first_that(boxes, lane, [&](int box) { return z_.lo[token_of(b_.row + box * 64)] >= key; });
  }
  /// The first of n for which a monotone condition holds, or n.
  template <class Condition>
  __device__ static int first_that(int n, int lane, Condition&& holds) {
    int from = 0, to = n;  // it holds nowhere before `from`, and everywhere from `to` on
    while (from < to) {
      const int each = (to - from + 31) / 32, at = from + (lane + 1) * each - 1;
      const unsigned found = __ballot_sync(0xffffffffu, at >= to || holds(at));
      if (found == 0) return to;
      const int groups = __ffs(static_cast<int>(found)) - 1;
      to = min(to, from + (groups + 1) * each - 1);
      from += groups * each;
    }
    return to;
  }

  __device__ Task d_key(int index, int rank, int lane) const {
    const int tile = index / 4, key = b_.key + tile * kKeyTile;
    Task t{};
    t.kind = index % 2 == 0 ? Kind::d_k : Kind::d_v, t.block = block_, t.slot = slot_, t.half = index / 2 % 2;
    t.row = b_.row, t.key = key + rank * kTile, t.panel = tile * (kKeyTile / 64) + rank * (kTile / 64);
    const int boxes = (b_.rows + 63) / 64, end = end_box(key + kKeyTile, boxes, lane);
    t.first_step = first_box(key, boxes, lane);
    t.steps = max(end - t.first_step, 0);
    const int place = t.key / kTile, next = b_.row / z_.heads + z_.chunk_tokens;
    t.unit = ((t.kind == Kind::d_k ? 0 : 2) + t.half) * z_.key_boxes() + place * 2;
    t.valid = t.key < b_.key + b_.keys;
    t.first = b_.row == 0 || z_.hi[b_.row / z_.heads - 1] <= t.key;
    t.last = next >= z_.tokens || z_.lo[next] / kTile > place;
    t.wait = t.first ? 0 : b_.chunk, t.set = b_.chunk + 1;
    return t;
  }

  const Problem& z_;
  const int blocks_;
  int phase_ = 0, first_ = 0, count_ = 0, index_ = 0, block_ = 0, slot_ = 0;
  Block b_{};
};

}  // namespace lapidary::attention512
