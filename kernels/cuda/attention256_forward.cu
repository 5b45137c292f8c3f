// Forward attention for heads of 256 components. An item is 64 tokens of two query heads that share a key
// head (or 128 tokens of one head where the group is odd): each consumer warpgroup has 64 rows of queries,
// both read the same tiles of 64 keys. A warpgroup starts the scores of tile j + 1 and the sum over the
// values of tile j together, so that the softmax of j + 1 runs beside the products; and the first scores of
// an item beside the last sum of the one before, whose results leave meanwhile.
#include <algorithm>
#include <numeric>

#include "kernels/cuda/attention256.cuh"

namespace lapidary {

namespace attention256 {

namespace {

struct ForwardArguments {
  CUtensorMap q, k, v, stored;
  const std::int32_t *lo, *hi;
  Bf16* out;  ///< as `stored`
  float* lse;
  int* counter;
  Queries queries;
};

struct ForwardShared {
  static constexpr int kStages = 2;
  Tile q[2], k[kStages], v[kStages];
  Tile results;
  Barrier q_full[2], q_empty[2], k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  Turns turns;
  Queue queue;

  __device__ void init() {
    constexpr int kWarps = kConsumers / 32;
    for (int i = 0; i < 2; ++i) {
      hopper::barrier_init(at(&q_full[i]), 1);
      hopper::barrier_init(at(&q_empty[i]), kWarps / 2);
    }
    for (int i = 0; i < kStages; ++i) {
      hopper::barrier_init(at(&k_full[i]), 1);
      hopper::barrier_init(at(&v_full[i]), 1);
      hopper::barrier_init(at(&k_empty[i]), kWarps);
      hopper::barrier_init(at(&v_empty[i]), kWarps);
    }
    turns.init();
    queue.init();
    hopper::fence_barrier_init();
  }
};

__device__ void produce_forward(const ForwardArguments& a, ForwardShared& s) {
  Feed<ForwardArguments, KeyBounds> feed(a, s.queue);
  Ring<1> q;
  Ring<ForwardShared::kStages> kv;
  for (;;) {
    const Work work = feed.take();
    if (work.number >= a.queries.items) return;
    const QueryItem item(a.queries, work.number);
    for (int key = work.begin; key < work.end; key += kTile) {
      hopper::wait(at(&s.k_empty[kv.stage]), kv.parity ^ 1);
      hopper::arrive_expect(at(&s.k_full[kv.stage]), kTileBytes);
      load_tile(s.k[kv.stage], a.k, key, item.kv, s.k_full[kv.stage]);
      if (key == work.begin) {
        for (int i = 0; i < 2; ++i) {
          hopper::wait(at(&s.q_empty[i]), q.parity ^ 1);
          hopper::arrive_expect(at(&s.q_full[i]), kTileBytes);
          load_tile(s.q[i], a.q, item.token_of(i), item.head_of(i), s.q_full[i]);
        }
        q.next();
      }
      hopper::wait(at(&s.v_empty[kv.stage]), kv.parity ^ 1);
      hopper::arrive_expect(at(&s.v_full[kv.stage]), kTileBytes);
      load_tile(s.v[kv.stage], a.v, key, item.kv, s.v_full[kv.stage]);
      kv.next();
    }
  }
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

/// What a consumer warpgroup keeps from item to item.
struct ForwardConsumer {
  const ForwardArguments& a;
  ForwardShared& s;
  Place place;
  int warpgroup = warpgroup_index();
  Ring<2> queue;
  Ring<1> q;
  Ring<ForwardShared::kStages> k, v;
  OutputInTurn output;

  /// The next item that has keys, or the end.
  __device__ __forceinline__ Work next_work() {
    for (;;) {
      const Work work = s.queue.pop(queue);
      if (work.number >= a.queries.items || tiles_of(work) > 0) return work;
      const QueryItem item(a.queries, work.number);
      const int token = item.token_of(warpgroup), head = item.head_of(warpgroup);
      store_zeros(a.out, token, a.queries.tokens, head, a.queries.heads);
      const int row = token + static_cast<int>(threadIdx.x) % 128;
      if (row < min(token + kTile, a.queries.tokens)) lse(head)[row] = -INFINITY;
    }
  }

  __device__ float* lse(int head) const { return a.lse + static_cast<std::int64_t>(head) * a.queries.tokens; }

  __device__ __forceinline__ Rows rows_of(const Work& work) const {
    return Rows(a.queries, a.lo, a.hi, QueryItem(a.queries, work.number).token_of(warpgroup), place);
  }

  /// Starts the scores of the next tile of keys.
  __device__ __forceinline__ void start(float (&scores)[32]) {
    hopper::wait(at(&s.k_full[k.stage]), k.parity);
    start_scores(scores, by_rows(s.q[warpgroup]), by_rows(s.k[k.stage]));
  }
  /// The same of the first tile of an item.
  __device__ __forceinline__ void start_item(float (&scores)[32]) {
    hopper::wait(at(&s.q_full[warpgroup]), q.parity);
    q.next();
    start(scores);
  }
  /// Starts the sum over the values of the next tile.
  __device__ __forceinline__ void start_values(float (&out)[128], const std::uint32_t (&p)[4][4]) {
    hopper::wait(at(&s.v_full[v.stage]), v.parity);
    start_sum(out, p, by_columns(s.v[v.stage]), true);
  }

  /// With the scores of tile `key` finished: makes them probabilities in place; as Softmax::step.
  __device__ __forceinline__ bool take_scores(const Rows& rows, int key, bool last, Softmax& softmax,
                                              float (&scores)[32], float (&factor)[2]) {
    hopper::pin(scores);
    arrive_warp(s.k_empty[k.stage]);
    k.next();
    if (last) arrive_warp(s.q_empty[warpgroup]);
    mask_scores(scores, rows, key, place);
    return softmax.step(scores, factor);
  }

  /// With a sum over values finished.
  __device__ __forceinline__ void end_values(float (&out)[128]) {
    hopper::pin(out);
    arrive_warp(s.v_empty[v.stage]);
    v.next();
  }

  /// Walks an item's tiles behind the first, whose probabilities are in p; those of the last are there after.
  __device__ __forceinline__ void walk(const Rows& rows, const Work& work, Softmax& softmax,
                                       std::uint32_t (&p)[4][4], float (&scores)[32], float (&out)[128]) {
    float factor[2];
    const int tiles = tiles_of(work);
    for (int j = 1; j < tiles; ++j) {
      start(scores);
      start_values(out, p);
      hopper::wgmma_wait<1>();
      const bool moved = take_scores(rows, work.begin + j * kTile, j + 1 == tiles, softmax, scores, factor);
      hopper::wgmma_wait<0>();
      end_values(out);
      if (moved) rescale(out, factor);
      pack(p, scores);
    }
  }

  /// Stores an item's results.
  __device__ __forceinline__ void store(const Work& work, Softmax& softmax, const float (&out)[128]) {
    const QueryItem item(a.queries, work.number);
    const int token = item.token_of(warpgroup), head = item.head_of(warpgroup);
    softmax.finish();
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) factor[r] = softmax.sum[r] == 0.0f ? 0.0f : 1.0f / softmax.sum[r];
    output.store(s.results, s.turns, warpgroup, a.stored, token, head, out, factor);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = token + place.row + 8 * r;
      if (place.column == 0 && row < a.queries.tokens) lse(head)[row] = softmax.top[r] + logf(softmax.sum[r]);
    }
  }

  /// (Branches and loops stand before an item's last sum: ptxas serialises all products if sums are read with
  /// one in between.)
  __device__ void run() {
    float out[128], scores[32], factor[2];
    std::uint32_t p[4][4];
    Work work = next_work();
    if (work.number >= a.queries.items) return;
    Rows rows = rows_of(work);
    start_item(scores);
    for (;;) {
      Softmax softmax;
#pragma unroll
      for (int i = 0; i < 128; ++i) out[i] = 0.0f;
      hopper::wgmma_wait<0>();
      take_scores(rows, work.begin, tiles_of(work) == 1, softmax, scores, factor);
      pack(p, scores);
      output.release();
      walk(rows, work, softmax, p, scores, out);
      const Work next = next_work();
      if (next.number >= a.queries.items) {
        start_values(out, p);
        hopper::wgmma_wait<0>();
        end_values(out);
        store(work, softmax, out);
        output.release();
        break;
      }
      start_values(out, p);
      start_item(scores);
      rows = rows_of(next);
      hopper::wgmma_wait<1>();
      end_values(out);
      store(work, softmax, out);
      work = next;
    }
  }
};

/// Sets the counter of items to 0: a kernel, which the next one's blocks can follow without a gap.
__global__ void reset_kernel(int* counter) {
  follow_previous();
  *counter = 0;
}

__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const __grid_constant__ ForwardArguments a) {
  auto& s = shared_memory<ForwardShared>();
  if (threadIdx.x == 0) s.init();
  follow_previous();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    hopper::registers_dec<kProducerRegisters>();
    if (threadIdx.x == kConsumers) produce_forward(a, s);
  } else {
    hopper::registers_inc<kConsumerRegisters>();
    ForwardConsumer{a, s}.run();
  }
}

}  // namespace

LastBlocks::LastBlocks(const std::vector<std::int32_t>& work)
    : count(std::min(kMost, static_cast<int>(work.size()))) {
  std::vector<int> blocks(work.size());
  std::iota(blocks.begin(), blocks.end(), 0);
  // The longest of the last first; of two alike the one that comes first.
  const auto longer = [&](int a, int b) { return work[a] != work[b] ? work[a] > work[b] : a < b; };
  std::nth_element(blocks.begin(), blocks.end() - count, blocks.end(), longer);
  std::copy(blocks.end() - count, blocks.end(), order);
  std::sort(order, order + count, longer);
  std::copy(order, order + count, ascending);
  std::sort(ascending, ascending + count);
}

Queries::Queries(const AttentionSizes& sizes, const std::int32_t* lo, const std::int32_t* hi)
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
  last = LastBlocks(seen);
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

}  // namespace attention256

void attention256_forward(const Attention256Forward& call, cudaStream_t stream) {
  using namespace attention256;
  const AttentionSizes& z = call.sizes;
  if (z.tokens == 0) return;
  ForwardArguments a{};
  a.q = tile_map(call.q, z.tokens, z.heads);
  a.k = tile_map(call.k, z.tokens, z.kv_heads);
  a.v = tile_map(call.v, z.tokens, z.kv_heads);
  a.stored = output_map(call.out, z.tokens, z.heads);
  a.lo = call.lo, a.hi = call.hi;
  a.out = static_cast<Bf16*>(call.out), a.lse = call.lse;
  a.counter = static_cast<int*>(call.scratch);
  a.queries = Queries(call.sizes, call.host_lo, call.host_hi);
  launch_following("Attention", reset_kernel, a.counter, 1, 1, 0, stream);
  launch_persistent("Attention", forward_kernel, a, a.queries.items, sizeof(ForwardShared), stream);
}

}  // namespace lapidary
