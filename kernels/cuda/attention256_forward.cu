// Forward attention for heads of 256 components. An item is 64 tokens of two query heads that share a key
// head (or 128 tokens of one head where the group is odd): each consumer warpgroup has 64 rows of queries,
// both read the same tiles of 64 keys. A warpgroup starts the scores of a tile and the sum over the values of
// the tile before together, so that the softmax runs beside the products, whether the two tiles belong to the
// same item or not. An item's results leave when the scores of the next one's second tile have begun.
#include <algorithm>
#include <numeric>

#include "kernels/cuda/attention256_forward.cuh"
#include "kernels/cuda/work_counter.h"

namespace lapidary {

namespace attention256 {

namespace {

/// 1 / x of a number that is neither tiny nor huge; 0 of 0.
__device__ inline float inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return x == 0.0f ? 0.0f : fmaf(y, -fmaf(x, y, -1.0f), y);
}

/// Running softmax of the thread's two rows. The shift of a row is its largest score of some tile so far: it
/// follows only where a score is more than kSlack above it, which spares most tiles the maximum over the quad
/// and the sums their factor. Probabilities then reach exp(kSlack), far below what float32 and bf16 hold.
struct Softmax {
  static constexpr float kSlack = 5.0f;
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  float shift[2] = {0.0f, 0.0f};  ///< top in base 2, 0 before the first visible key

  /// Scores become exp(score - top). True where the top of any row of the warp has moved: what was summed
  /// before is then to be multiplied by `factor`.
  __device__ bool step(float (&s)[32], float (&factor)[2]) {
    float step_top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 32; ++i) step_top[i / 2 % 2] = fmaxf(step_top[i / 2 % 2], s[i]);
    const bool behind = step_top[0] > top[0] + kSlack || step_top[1] > top[1] + kSlack;
    const bool moved = __any_sync(0xffffffffu, behind);
    if (moved) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        step_top[r] = fmaxf(step_top[r], __shfl_xor_sync(0xffffffffu, step_top[r], 1));
        step_top[r] = fmaxf(step_top[r], __shfl_xor_sync(0xffffffffu, step_top[r], 2));
        step_top[r] = fmaxf(step_top[r], top[r]);
        const float step_shift = step_top[r] == -INFINITY ? 0.0f : step_top[r] * kLog2E;
        factor[r] = top[r] == -INFINITY ? 0.0f : hopper::exp2_approx(shift[r] - step_shift);
        top[r] = step_top[r], shift[r] = step_shift;
        sum[r] *= factor[r];
      }
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int r = i / 2 % 2;
      s[i] = hopper::exp2_approx(fmaf(s[i], kLog2E, -shift[r]));
      sum[r] += s[i];
    }
    return moved;
  }

  /// Sums over the quad.
  __device__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    }
  }
};

__device__ inline void mask_scores(float (&s)[32], const Rows& rows, int key, const Place& place) {
  if (rows.whole(key)) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int from = rows.lo[r] - key - place.column, to = rows.hi[r] - key - place.column;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (8 * i + j < from || 8 * i + j >= to) s[4 * i + 2 * r + j] = -INFINITY;
    }
  }
}

__device__ inline void rescale(float (&out)[128], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] *= factor[i / 2 % 2];
}

/// A warpgroup's part of an item.
struct Part {
  int begin, end;  ///< keys
  int token, head;
  int all_from, all_to;  ///< keys that all of its queries see
  __device__ bool ended() const { return token < 0; }
};

/// A tile of an item: the one whose scores are started next, or whose probabilities are there.
struct Position {
  Part part;
  int key;
  Rows rows;
  Softmax softmax;
  __device__ bool last() const { return key + kTile >= part.end; }
};

/// What a consumer warpgroup keeps from item to item.
struct ForwardConsumer {
  const ForwardArguments& a;
  ForwardShared& s;
  Place place;
  int warpgroup = warpgroup_index();
  Ring<ForwardItems::kDepth> items;
  ForwardTurn queries, results;
  Ring<ForwardShared::kStages> k, v;

  /// The next item, or the end.
  __device__ __forceinline__ Part take() {
    hopper::wait(at(&s.items.full[items.stage]), items.parity);
    const ForwardItem& item = s.items.item[items.stage];
    const Part part = {item.begin,
                       item.end,
                       item.ended() ? -1 : item.token[warpgroup],
                       item.head[warpgroup],
                       item.all_from[warpgroup],
                       item.all_to[warpgroup]};
    hopper::arrive(at(&s.items.empty[items.stage]));
    items.next();
    return part;
  }
  __device__ __forceinline__ Rows rows_of(const Part& part) const {
    return Rows(a.queries, a.lo, a.hi, part.token, place, part.all_from, part.all_to);
  }

  /// Starts the scores of the next tile of keys.
  __device__ __forceinline__ void start(float (&scores)[32]) {
    hopper::wait(at(&s.q_full[warpgroup][queries.stage]), queries.parity);
    hopper::wait(at(&s.k_full[k.stage]), k.parity);
    start_scores(scores, by_rows(s.q[query_tile(queries, warpgroup)]), by_rows(s.k[k.stage]));
  }
  /// Starts the sum over the values of the next tile.
  __device__ __forceinline__ void start_values(float (&out)[128], const std::uint32_t (&p)[4][4], bool add) {
    hopper::wait(at(&s.v_full[v.stage]), v.parity);
    start_sum(out, p, by_columns(s.v[v.stage]), add);
  }

  /// With an item's last scores finished: gives its queries' tile back, or to the results.
  __device__ __forceinline__ void end_queries() {
    if (warpgroup == 0) {
      arrive_warp(s.q_empty[query_tile(queries, 0)]);
    } else {
      for (const Barrier& piece : s.room[0][queries.stage]) arrive_warp(piece);
    }
    queries.next();
  }
  /// With the scores of a tile finished: makes them probabilities in place; as Softmax::step.
  __device__ __forceinline__ bool take_scores(Position& t, float (&scores)[32], float (&factor)[2]) {
    hopper::pin(scores);
    arrive_warp(s.k_empty[k.stage]);
    k.next();
    if (t.last()) end_queries();
    mask_scores(scores, t.rows, t.key, place);
    return t.softmax.step(scores, factor);
  }
  /// With a sum over values finished.
  __device__ __forceinline__ void end_values(float (&out)[128]) {
    hopper::pin(out);
    arrive_warp(s.v_empty[v.stage]);
    v.next();
  }

  /// With the probabilities of an item summed up: stores the logs of the sums; `scale` becomes what the
  /// results are to be multiplied by. No branches: the warpgroup's products wait meanwhile.
  __device__ __forceinline__ void finish(const Part& part, Softmax& softmax, float (&scale)[2]) {
    softmax.finish();
#pragma unroll
    for (int r = 0; r < 2; ++r) scale[r] = inverse(softmax.sum[r]);
    const int r = place.column / 2;  // two of a quad's lanes store a row each
    const int row = part.token + place.row + 8 * r;
    const float log_sum =
        (r == 0 ? softmax.top[0] : softmax.top[1]) + logf(r == 0 ? softmax.sum[0] : softmax.sum[1]);
    if (r < 2 && row < a.queries.tokens)
      a.lse[static_cast<std::int64_t>(part.head) * a.queries.tokens + row] = log_sum;
  }

  /// Writes an item's results to where another thread stores them from.
  __device__ __forceinline__ void store(const float (&out)[128], const float (&scale)[2]) {
    constexpr int kPieces = ForwardShared::kPieces;
    const std::uint32_t rows = at(&s.q[query_tile(results, 1)]) +
                               static_cast<std::uint32_t>(threadIdx.x) % 128 / 32 * (kChunkBytes / 4);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      hopper::wait(at(&s.room[warpgroup][results.stage][piece]), results.parity);
#pragma unroll
      for (int chunk = 4 / kPieces * piece; chunk < 4 / kPieces * (piece + 1); ++chunk)
        hopper::store_panel(rows + chunk * kChunkBytes, out, chunk, scale);
      hopper::fence_async_shared();
      arrive_warp(s.written[warpgroup][results.stage][piece]);
    }
    results.next();
  }

  /// The last sum of all.
  __device__ __forceinline__ void end(const Part& part, Softmax& softmax, bool add,
                                      const std::uint32_t (&p)[4][4], float (&out)[128], float (&scale)[2]) {
    start_values(out, p, add);
    finish(part, softmax, scale);
    hopper::wgmma_wait<0>();
    end_values(out);
    store(out, scale);
  }

  /// Every step of the loop adds a tile to its item's sum beside the scores of the next tile. (Two forms of a
  /// step, with and without results to store, make ptxas serialise all products.)
  __device__ void run() {
    float out[128], scores[32], factor[2], scale[2];
    std::uint32_t p[4][4];
    const Part first = take();
    if (first.ended()) return;
    Position t{first, first.begin, rows_of(first), {}};
    start(scores);
    hopper::wgmma_wait<0>();
    take_scores(t, scores, factor);
    pack(p, scores);
#pragma unroll
    for (int i = 0; i < 128; ++i) out[i] = 0.0f;
    bool add = true;       // to the sum, or begin one
    bool pending = false;  // the results of the item before are still in `out`
    for (;;) {
      const Part part = t.part;
      Softmax softmax = t.softmax;
      const bool ends = t.last();
      // With one tile to an item: the next scores' queries may go where these results are to go through.
      if (pending && ends) store(out, scale), pending = false;
      t.key += kTile;
      if (ends) t.part = take(), t.key = t.part.begin;
      if (t.part.ended()) return end(part, softmax, add, p, out, scale);
      start(scores);
      if (pending) store(out, scale);
      start_values(out, p, add);
      if (ends) {
        finish(part, softmax, scale);
        t.softmax = Softmax{};
        t.rows = rows_of(t.part);
      }
      hopper::wgmma_wait<1>();
      const bool moved = take_scores(t, scores, factor);
      hopper::wgmma_wait<0>();
      end_values(out);
      if (moved && !ends) rescale(out, factor);
      pack(p, scores);
      add = !ends;
      pending = ends;
    }
  }
};

__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const __grid_constant__ ForwardArguments a) {
  auto& s = shared_memory<ForwardShared>();
  if (threadIdx.x == 0) s.init();
  follow_previous();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    hopper::registers_dec<24>();
    const unsigned warp = threadIdx.x / 32 - kConsumers / 32, lane = threadIdx.x % 32;
    if (warp == 0 && lane == 0) ForwardLoads{a, s}.run();
    if (warp == 1) take_items(a, s.items);
    if (warp == 2 && lane == 0) store_results(a, s);
  } else {
    hopper::registers_inc<240>();
    ForwardConsumer{a, s}.run();
  }
}

}  // namespace

LastBlocks::LastBlocks(const std::vector<std::int32_t>& work, int shortest, int last)
    : count(std::min(std::min(shortest + last, kMost), static_cast<int>(work.size()))) {
  std::vector<int> blocks(work.size());
  std::iota(blocks.begin(), blocks.end(), 0);
  // The longest first; of two alike the one that comes first.
  const auto longer = [&](int a, int b) { return work[a] != work[b] ? work[a] > work[b] : a < b; };
  std::nth_element(blocks.begin(), blocks.end() - std::min(shortest, count), blocks.end(), longer);
  std::sort(blocks.begin(), blocks.end() - std::min(shortest, count));
  std::copy(blocks.end() - count, blocks.end(), order);
  std::sort(order, order + count, longer);
  std::copy(order, order + count, ascending);
  std::sort(ascending, ascending + count);
}

Queries::Queries(const AttentionSizes& sizes, const std::int32_t* lo, const std::int32_t* hi, int shortest,
                 int last_blocks)
    : tokens(static_cast<int>(sizes.tokens)),
      heads(static_cast<int>(sizes.heads)),
      group(static_cast<int>(sizes.heads / sizes.kv_heads)),
      item_heads(group % 2 == 0 ? 2 : 1) {
  const int blocks = (tokens + item_tokens() - 1) / item_tokens();
  items = blocks * block_items();
  if (!lo || !hi) return;
  std::vector<std::int32_t> seen(static_cast<std::size_t>(blocks));
  for (int i = 0; i < blocks; ++i) {
    const int token = (blocks - 1 - i) * item_tokens();
    seen[static_cast<std::size_t>(i)] = hi[std::min(token + item_tokens(), tokens) - 1] - lo[token];
  }
  last = LastBlocks(seen, shortest, last_blocks);
}

namespace {

constexpr std::int64_t kColumns = 64;  ///< of a swizzled row of 128 bytes

TensorMapShape boxes(const void* x, std::int64_t tokens, std::int64_t heads, std::int64_t box_tokens) {
  return {.data = const_cast<void*>(x),
          .dtype = DType::bf16,
          .dims = 4,
          .size = {kColumns, tokens, kDim / kColumns, heads},
          .stride = {1, heads * kDim, kColumns, kDim},
          .box = {kColumns, box_tokens, kDim / kColumns, 1}};
}

}  // namespace

CUtensorMap tile_map(const void* x, std::int64_t tokens, std::int64_t heads) {
  return make_tensor_map(boxes(x, tokens, heads, kTile));
}
CUtensorMap output_map(void* x, std::int64_t tokens, std::int64_t heads) {
  return make_tensor_map(boxes(x, tokens, heads, kTile / 4));
}

namespace {

/// For a piece of 64 rows of results.
CUtensorMap piece_map(void* x, std::int64_t tokens, std::int64_t heads) {
  TensorMapShape shape = boxes(x, tokens, heads, kTile);
  shape.box[2] /= ForwardShared::kPieces;
  return make_tensor_map(shape);
}

}  // namespace

}  // namespace attention256

void attention256_forward(const Attention256Forward& call, cudaStream_t stream) {
  using namespace attention256;
  const AttentionSizes& z = call.sizes;
  if (z.tokens == 0) return;
  ForwardArguments a{};
  a.q = tile_map(call.q, z.tokens, z.heads);
  a.k = tile_map(call.k, z.tokens, z.kv_heads);
  a.v = tile_map(call.v, z.tokens, z.kv_heads);
  a.stored = piece_map(call.out, z.tokens, z.heads);
  a.lo = call.lo, a.hi = call.hi;
  a.out = static_cast<Bf16*>(call.out), a.lse = call.lse;
  a.counter = static_cast<int*>(call.scratch);
  a.queries = Queries(call.sizes, call.host_lo, call.host_hi, 8, 24);
  reset_work_counter("Attention", a.counter, stream);
  launch_persistent("Attention", forward_kernel, a, a.queries.items, sizeof(ForwardShared), stream);
}

}  // namespace lapidary
