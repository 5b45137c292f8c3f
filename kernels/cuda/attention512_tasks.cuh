// The backward for head dimension 512 as a sequence of tasks: what each computes and reads, and what it waits
// for. attention512_prepare.cuh writes the sequence; docs/attention512.md explains its order.
#pragma once
#include "kernels/cuda/attention512_cluster.cuh"
#include "kernels/ops.h"

namespace lapidary::attention512 {

constexpr int kTile = kAttention512Tile;  ///< rows (or keys) of a CTA's part of a task
constexpr int kKeyTile = 2 * kTile;
constexpr int kPanels = kKeyTile / 64;
constexpr int kChunkRows = static_cast<int>(kAttention512ChunkRows), kBoxes = kChunkRows / 64;
constexpr int kPanel =
    64 * 64 * 2;  ///< bytes of 64 rows of 64 columns of p or ds, swizzled as TMA and wgmma do
// -------------------------------------------------------------------------------- between the clusters

using hopper::add_relaxed, hopper::fence_gpu, hopper::load_acquire, hopper::store_relaxed;

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
struct alignas(16) Block {
  int row, rows, key, keys;
  int chunk, range, ranges;
  int scores_before, d_keys_before, d_queries_before;  ///< tasks of all blocks before

  __device__ int pairs() const { return (rows + kCtas * kTile - 1) / (kCtas * kTile); }
  __device__ int key_tiles() const { return (keys + kKeyTile - 1) / kKeyTile; }
  __device__ int scores() const { return pairs() * key_tiles(); }
  __device__ int d_keys() const { return 4 * key_tiles(); }
  __device__ int d_queries() const { return 2 * pairs(); }
};

static_assert(sizeof(Block) == kAttention512Block);

enum class Kind : std::uint8_t { scores, d_q, d_k, d_v, nothing, end };

/// Four small numbers.
struct Bytes {
  std::uint32_t all;
  __device__ int operator[](int i) const { return static_cast<int>(all >> 8 * i & 0xff); }
  __device__ void set(int i, int x) { all |= static_cast<std::uint32_t>(x) << 8 * i; }
};

/// A task of a cluster as the sequence keeps it.
struct alignas(16) TaskRecord {
  int block;
  Kind kind;
  std::uint8_t place;       ///< which 256 rows of the chunk (scores, d_q) or 256 keys of the block (d_k, d_v)
  std::uint8_t half : 1;    ///< columns [256 half, 256 half + 256) of the result
  std::uint8_t panels : 3;  ///< of d_k and d_v that exist; 1 for scores and d_q
  std::uint8_t first : 4, last : 4;  ///< by panel: nothing was added before, will be added after
  /// Panels of the block's keys that some row sees (scores, d_q: one number); by panel of d_k and d_v, boxes
  /// of the chunk's rows that may see it.
  Bytes from, to;
};
static_assert(sizeof(TaskRecord) == kAttention512Task);

/// The same with what its block says.
struct alignas(16) Task : TaskRecord {
  int chunk, chunk_row;  ///< the chunk and its first row
  int key;               ///< the block's first
  int slot;              ///< of the block's p and ds

  __device__ bool of_keys() const { return kind == Kind::d_k || kind == Kind::d_v; }
  /// Panel (d_q) or box (d_k, d_v) of step 0.
  __device__ int first_step() const { return from[0]; }
  __device__ int steps() const { return kind == Kind::scores ? 2 * kDim / 64 : to[panels - 1] - from[0]; }
  /// First row of the CTA's tile, and its box in the chunk (scores, d_q).
  __device__ int box(int rank) const { return (place * kCtas + rank) * (kTile / 64); }
  __device__ int row(int rank) const { return chunk_row + box(rank) * 64; }
  /// Which of the task's panels of keys a warpgroup has (d_k, d_v). Under a causal mask fewer queries see
  /// later keys: each CTA has an early and a late panel, so that both have as much to do.
  __device__ static int panel(int rank, int group) { return group == 0 ? rank : kPanels - 1 - rank; }
};

struct Counters {
  int *ticket, *blocks, *tasks, *row_ticket;
  /// Negative by what is missing. By chunk: rows whose statistics are there, but for those that were
  /// prepared.
  int* rows_done;
  int *scores_done, *products_done;  ///< by block: tasks of CTAs
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
  const Bf16 *out, *d_out;
  Bf16 *d_q, *d_k, *d_v;
  float2* statistics;  ///< by row: log-sum-exp in log2, dot product of output and its gradient
  Block* blocks;       ///< and one behind the last
  TaskRecord* tasks;
  std::byte* tiles;  ///< p and ds of `slots` blocks
  float4 *query_sums, *key_sums;
  Counters counters;

  /// Rows whose statistics are there before the first task.
  __host__ __device__ int prepared_rows() const {
    return tokens > kPreparedChunks * chunk_tokens ? kPreparedChunks * kChunkRows : rows();
  }

  __host__ __device__ int key_boxes() const { return (tokens + kTile - 1) / kTile * (kTile / 64); }

  /// Panel `panel` (64 keys) of box `box` (64 rows) of the p or ds of the block in slot `slot`.
  __device__ std::byte* tile(int slot, bool gradients, int panel, int box) const {
    const std::int64_t half = static_cast<std::int64_t>(range_keys / 64) * kBoxes;
    return tiles + ((slot * 2 + (gradients ? 1 : 0)) * half + panel * kBoxes + box) * kPanel;
  }

  __device__ Task task(int ticket) const {
    Task t;
    *reinterpret_cast<uint4*>(&t) = __ldcg(reinterpret_cast<const uint4*>(tasks + ticket));
    const Block& b = blocks[t.block];
    t.chunk = b.chunk, t.chunk_row = b.row, t.key = b.key, t.slot = t.block % slots;
    return t;
  }

  /// Until what the task reads, or overwrites, is ready.
  __device__ void wait_for_inputs(const Task& t) const {
    if (t.kind != Kind::scores) {
      wait_at_least(counters.scores_done + t.block, 0);
      return;
    }
    if (t.chunk >= kPreparedChunks) wait_at_least(counters.rows_done + t.chunk, 0);
    if (t.block >= slots) wait_at_least(counters.products_done + t.block - slots, 0);
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
  z.out = ptr<Bf16>(op.out), z.d_out = ptr<Bf16>(op.d_out);
  z.d_q = ptr<Bf16>(op.d_q), z.d_k = ptr<Bf16>(op.d_k), z.d_v = ptr<Bf16>(op.d_v);
  z.statistics = reinterpret_cast<float2*>(take(plan.statistics));
  z.key_sums = reinterpret_cast<float4*>(take(plan.key_sums));
  z.query_sums = reinterpret_cast<float4*>(take(plan.query_sums));
  z.tiles = take(plan.tiles);
  z.blocks = reinterpret_cast<Block*>(take(plan.blocks));
  z.tasks = reinterpret_cast<TaskRecord*>(take(plan.tasks));
  auto* counter = reinterpret_cast<int*>(take(plan.counters));
  const auto count = [&](std::int64_t n) {
    int* const out = counter;
    counter += n;
    return out;
  };
  z.counters.ticket = count(1), z.counters.blocks = count(1), z.counters.tasks = count(1);
  z.counters.row_ticket = count(1);
  z.counters.rows_done = count(plan.most_blocks);
  z.counters.scores_done = count(plan.most_blocks), z.counters.products_done = count(plan.most_blocks);
  z.counters.query_flags = count(plan.query_units);
  z.counters.key_flags = count(plan.key_units);
  return z;
}

/// What a computing warpgroup does of a task of d_q, d_k or d_v.
struct Part {
  int from, to;    ///< steps that it multiplies; it passes over the others
  int row;         ///< first row (key) of the result
  int unit, wait;  ///< of the sums: place, and the value of its flag before; after, `set`
  int set;
  bool first, last, valid;

  __device__ Part(const Problem& z, const Task& t, int rank, int group) {
    if (t.kind == Kind::d_q) {
      const int box = t.box(rank) + group;
      from = 0, to = t.steps(), row = t.chunk_row + box * 64, unit = t.half * kBoxes + box;
      first = t.first != 0, last = t.last != 0, valid = true;
      wait = z.one_range ? 0 : t.block, set = t.block + 1;
    } else {
      const int panel = Task::panel(rank, group);
      valid = panel < t.panels;
      from = t.from[panel] - t.from[0], to = t.to[panel] - t.from[0];
      row = t.key + (t.place * kPanels + panel) * 64;
      unit = ((t.kind == Kind::d_k ? 0 : 2) + t.half) * z.key_boxes() + row / 64;
      first = (t.first >> panel & 1) != 0, last = (t.last >> panel & 1) != 0;
      wait = first ? 0 : t.chunk, set = t.chunk + 1;
    }
  }
};

}  // namespace lapidary::attention512
