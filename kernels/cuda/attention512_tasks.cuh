// The backward for head dimension 512 as a sequence of tasks: which exist, in what order a cluster takes
// them, what each reads, and what it waits for. docs/attention512.md explains the order.
#pragma once
#include <climits>

#include "kernels/cuda/attention512_cluster.cuh"
#include "kernels/ops.h"

namespace lapidary::attention512 {

constexpr int kTile = kAttention512Tile;  ///< rows (or keys) of a CTA's part of a task
constexpr int kKeyTile = 2 * kTile;
constexpr int kPanels = kKeyTile / 64;
constexpr int kPanel =
    64 * 64 * 2;  ///< bytes of 64 rows of 64 columns of p or ds, swizzled as TMA and wgmma do
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

enum class Kind : int { scores, d_q, d_k, d_v, nothing, end };

struct Counters {
  int *ticket, *blocks, *row_ticket;
  int* rows_done;  ///< by chunk: rows whose statistics are there, but for those that were prepared
  int *scores_done, *products_done;  ///< by block
  int* query_flags;                  ///< by unit of a chunk's dq: blocks whose part is in
  int* key_flags;                    ///< by unit of dk and dv: chunks whose part is in

  __device__ int* flag(Kind kind, int unit) const {
    return (kind == Kind::d_q ? query_flags : key_flags) + unit;
  }
};

/// Chunks whose rows' statistics the first tasks need at once.
constexpr int kPreparedChunks = 4;

/// Sums are kept as units of 64 rows and 256 columns in the order of wgmma's registers: 32 float4 of every
/// thread.
struct Problem : Rows {
  int chunk_tokens, range_keys;
  int slots, ahead;  ///< as Attention512Schedule
  bool one_range;
  const std::int32_t *lo, *hi;
  const float* lse;
  Bf16 *d_q, *d_k, *d_v;
  float2* statistics;  ///< by row: log-sum-exp in log2, dot product of output and its gradient
  Block* blocks;
  std::byte* tiles;  ///< p and ds of `slots` blocks
  float4 *query_sums, *key_sums;
  Counters counters;

  /// Rows whose statistics are there before the first task.
  __host__ __device__ int prepared_rows() const {
    return tokens > kPreparedChunks * chunk_tokens ? (kPreparedChunks * chunk_tokens) << heads_log2 : rows();
  }
  __host__ __device__ int chunk_boxes() const { return (chunk_tokens << heads_log2) / 64; }

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
  static_cast<Rows&>(z) = rows_of(sizes.tokens, sizes.heads);
  z.chunk_tokens = static_cast<int>(plan.chunk_tokens);
  z.range_keys = static_cast<int>(schedule.range_keys);
  z.slots = schedule.slots, z.ahead = schedule.ahead, z.one_range = schedule.one_range;
  z.lo = ptr<std::int32_t>(op.lo), z.hi = ptr<std::int32_t>(op.hi), z.lse = ptr<float>(op.lse);
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
  z.counters.ticket = count(1), z.counters.blocks = count(1), z.counters.row_ticket = count(1);
  z.counters.rows_done = count(plan.most_blocks);
  z.counters.scores_done = count(plan.most_blocks), z.counters.products_done = count(plan.most_blocks);
  z.counters.query_flags = count(plan.query_units);
  z.counters.key_flags = count(plan.key_units);
  return z;
}

// ---------------------------------------------------------------------------------------------- tasks

/// What a computing warpgroup does of a task of d_q, d_k or d_v.
struct Part {
  int from, to;    ///< steps that it multiplies; it passes over the others
  int row;         ///< first row (key) of the result
  int panel;       ///< of p or ds that it multiplies (d_k, d_v)
  int unit, wait;  ///< of the sums: place, and the value of its flag before
  bool first, last, valid;
};

/// One CTA's part of a task.
struct Task {
  Kind kind;
  int block, slot, steps;
  int row;         ///< first row: of the CTA's tile (scores, d_q), of the chunk (d_k, d_v)
  int key;         ///< first key: of the cluster's tile (scores), of the block (d_q)
  int panel, box;  ///< where the CTA's tile begins in the block's p and ds
  int panels;      ///< of 64 keys of the tile (scores)
  int first_step;  ///< panel (d_q) or box (d_k, d_v) of step 0
  int half;        ///< columns [256 half, 256 half + 256) of the result
  int set;         ///< value of the sums' flags after
  Part part[2];    ///< by warpgroup (d_q, d_k, d_v)
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
      wait_at_least(z_.counters.scores_done + block_, row_pairs() * key_tiles() * kCtas);
      return;
    }
    if (b_.chunk >= kPreparedChunks) wait_at_least(z_.counters.rows_done + b_.chunk, b_.rows);
    if (block_ >= z_.slots) {
      const Block& before = z_.blocks[block_ - z_.slots];
      wait_at_least(z_.counters.products_done + block_ - z_.slots, products(before) * kCtas);
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

  /// Panels of the block's keys that some of a cluster's rows see: what is computed of p and ds.
  struct Panels {
    int from, to;
  };
  __device__ Panels visible_panels(int row) const {
    const int from = max(z_.lo[z_.token_of(row)] - b_.key, 0),
              to = min(z_.hi[z_.token_of(row + kCtas * kTile - 1)] - b_.key, b_.keys);
    return {from / 64, (to + 63) / 64};
  }

  __device__ Task scores(int rank) const {
    const int pair = index_ % row_pairs(), tile = index_ / row_pairs();
    const int row = b_.row + pair * kCtas * kTile;
    const Panels see = visible_panels(row);
    Task t{};
    t.kind = Kind::scores, t.block = block_, t.slot = slot_, t.steps = 2 * kDim / 64;
    t.row = row + rank * kTile, t.box = (t.row - b_.row) / 64;
    t.panel = max(see.from, tile * kPanels);
    t.panels = min(see.to, (tile + 1) * kPanels) - t.panel;
    t.key = b_.key + t.panel * 64;
    if (t.panels <= 0) t.kind = Kind::nothing;
    return t;
  }

  /// Later rows, which see more keys where the mask is causal, go first.
  __device__ Task d_q(int index, int rank) const {
    const int row = b_.row + index / 2 * kCtas * kTile;
    const Panels see = visible_panels(row);
    Task t{};
    t.kind = Kind::d_q, t.block = block_, t.slot = slot_, t.half = index % 2;
    t.row = row + rank * kTile, t.key = b_.key, t.box = (t.row - b_.row) / 64;
    t.first_step = see.from, t.steps = max(see.to - see.from, 0), t.set = block_ + 1;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      t.part[i] = {.from = 0,
                   .to = t.steps,
                   .row = t.row + i * 64,
                   .panel = 0,
                   .unit = t.half * z_.chunk_boxes() + t.box + i,
                   .wait = z_.one_range ? 0 : block_,
                   .first = b_.range == 0,
                   .last = b_.range == b_.ranges - 1,
                   .valid = true};
    return t;
  }

  /// Of the chunk's boxes of 64 rows, which a warp looks at all at once: how many see no key from `key` on
  /// yet, and how many see a key before `key`.
  struct Boxes {
    int boxes, lo[2], hi[2];  ///< of boxes lane and lane + 32
    __device__ Boxes(const Walk& walk, int lane) : boxes((walk.b_.rows + 63) / 64) {
      for (int i = 0; i < 2; ++i) {
        const int row = walk.b_.row + min(lane + 32 * i, boxes - 1) * 64;
        lo[i] = walk.z_.lo[walk.z_.token_of(row)];
        hi[i] = walk.z_.hi[walk.z_.token_of(min(row + 64, walk.b_.row + walk.b_.rows) - 1)];
      }
      if (lane >= boxes) lo[0] = hi[0] = INT_MAX;
      if (lane + 32 >= boxes) lo[1] = hi[1] = INT_MAX;
    }
    __device__ static int below(const int (&x)[2], int key) {
      return __popc(__ballot_sync(0xffffffffu, x[0] < key)) + __popc(__ballot_sync(0xffffffffu, x[1] < key));
    }
    __device__ int first(int key) const { return below(hi, key + 1); }
    __device__ int end(int key) const { return below(lo, key); }
  };

  /// Under a causal mask fewer queries see later keys: each CTA has an early and a late panel, so that both
  /// have as much to do.
  __device__ Task d_key(int index, int rank, int lane) const {
    const int panel = index / 4 * kPanels;
    Task t{};
    t.kind = index % 2 == 0 ? Kind::d_k : Kind::d_v, t.block = block_, t.slot = slot_, t.half = index / 2 % 2;
    t.row = b_.row, t.set = b_.chunk + 1;
    const Boxes boxes(*this, lane);
    t.first_step = boxes.first(b_.key + panel * 64);
    t.steps = max(boxes.end(min(b_.key + (panel + kPanels) * 64, b_.key + b_.keys)) - t.first_step, 0);
    const int next = z_.token(b_.row) + z_.chunk_tokens;
    const int seen_before = b_.row == 0 ? 0 : z_.hi[z_.token(b_.row) - 1],
              seen_after = next >= z_.tokens ? INT_MAX : z_.lo[next] / kTile * kTile;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Part& part = t.part[i];
      part.panel = panel + (i == 0 ? rank : kPanels - 1 - rank);
      part.row = b_.key + part.panel * 64;
      part.valid = part.panel * 64 < b_.keys;
      part.from = max(boxes.first(part.row) - t.first_step, 0);
      part.to = part.valid ? max(boxes.end(part.row + 64) - t.first_step, part.from) : part.from;
      part.from = min(part.from, t.steps), part.to = min(part.to, t.steps);
      part.unit = ((t.kind == Kind::d_k ? 0 : 2) + t.half) * z_.key_boxes() + part.row / 64;
      part.first = seen_before <= part.row, part.last = seen_after > part.row;
      part.wait = part.first ? 0 : b_.chunk;
    }
    return t;
  }

  const Problem& z_;
  const int blocks_;
  int phase_ = 0, first_ = 0, count_ = 0, index_ = 0, block_ = 0, slot_ = 0;
  Block b_{};
};

}  // namespace lapidary::attention512
