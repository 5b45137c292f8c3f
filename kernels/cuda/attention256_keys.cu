// dk and dv of attention for heads of 256 components: a block walks all queries that see its 64 keys, both
// sums stay in registers. One warpgroup computes the probabilities and sums dv, the other the gradients of
// the scores and dk; the probabilities pass between them through shared memory, thread to thread. While one
// warpgroup works on its numbers the other's products run.
#include "kernels/cuda/attention256_backward.cuh"

namespace lapidary::attention256 {

namespace {

struct KeyArguments {
  CUtensorMap q, d_out, k, v, stored_d_k, stored_d_v;
  const float *lse2, *delta;
  const std::int32_t *query_begin, *query_end;
  Bf16 *d_k, *d_v;  ///< as stored_d_k, stored_d_v
  int* counter;
  int tokens, heads, kv_heads, group, stride;
  int items;
  Round round;
  KeptGradients kept;
  int align;  ///< mask for the first query of a tile
  LastBlocks last;
};

/// The item that comes in place `number` of the order of work, and the queries that see any of its keys.
struct QueryBounds {
  __device__ static Work of(const KeyArguments& a, int number) {
    if (number >= a.items) return {number, 0, 0};
    const int heads = a.round.kv_heads, block = a.last.block(number / heads, a.items / heads);
    const int key = block * kTile;
    return {block * heads + number % heads, a.query_begin[key], a.query_end[min(key + kTile, a.tokens) - 1]};
  }
};

/// 64 keys of one key head; their queries, all heads of the group, are walked in tiles of 64.
struct KeyItem {
  int key, kv;
  int begin;  ///< first query of the first tile; even, for its statistics are read in pairs
  int steps;  ///< tiles of queries times heads of the group
  __device__ KeyItem(const KeyArguments& a, const Work& work) {
    key = work.number / a.round.kv_heads * kTile;
    kv = a.round.kv_begin + work.number % a.round.kv_heads;
    begin = work.begin & a.align;
    steps = max(0, (work.end - begin + kTile - 1) / kTile) * a.group;
  }
};

/// The tile of queries of a step: the heads of a group follow each other.
struct QueryCursor {
  int query, member = 0;
  __device__ explicit QueryCursor(const KeyItem& item) : query(item.begin) {}
  __device__ void next(const KeyArguments& a) {
    if (++member == a.group) member = 0, query += kTile;
  }
  /// Where a row statistic of the tile begins.
  __device__ int statistic(const KeyArguments& a, const KeyItem& item) const {
    return (item.kv * a.group + member) * a.stride + query;
  }
};

struct KeyShared {
  static constexpr int kStages = 2;
  Tile k, v, q[kStages], d_out[kStages];
  uint4 p[kStages][4][128];  ///< probabilities on their way from one warpgroup to the other
  Barrier k_full, k_empty, v_full, v_empty;
  Barrier q_full[kStages], q_empty[kStages], d_out_full[kStages], d_out_empty[kStages];
  Barrier p_full[kStages][2], p_empty[kStages];  ///< p comes in halves; every thread arrives for its own
  Queue queue;

  __device__ void init() {
    constexpr int kWarps = 4;
    for (Barrier* b : {&k_full, &v_full}) hopper::barrier_init(at(b), 1);
    for (Barrier* b : {&k_empty, &v_empty}) hopper::barrier_init(at(b), kWarps);
    for (int i = 0; i < kStages; ++i) {
      hopper::barrier_init(at(&q_full[i]), 1);
      hopper::barrier_init(at(&d_out_full[i]), 1);
      hopper::barrier_init(at(&q_empty[i]), 2 * kWarps);
      hopper::barrier_init(at(&d_out_empty[i]), 2 * kWarps);
      for (Barrier& b : p_full[i]) hopper::barrier_init(at(&b), kConsumers / 2);
      hopper::barrier_init(at(&p_empty[i]), kConsumers / 2);
    }
    queue.init();
    hopper::fence_barrier_init();
  }
};

__device__ void produce_for_keys(const KeyArguments& a, KeyShared& s) {
  Feed<KeyArguments, QueryBounds> feed(a, s.queue);
  Ring<2> stage;
  Ring<1> kv;
  for (;;) {
    const Work work = feed.take();
    if (work.number >= a.items) return;
    const KeyItem item(a, work);
    QueryCursor at_query(item);
    for (int step = 0; step < item.steps; ++step, at_query.next(a)) {
      const int query = at_query.query, head = item.kv * a.group + at_query.member;
      if (step == 0) {
        hopper::wait(at(&s.k_empty), kv.parity ^ 1);
        hopper::arrive_expect(at(&s.k_full), kTileBytes);
        load_tile(s.k, a.k, item.key, item.kv, s.k_full);
      }
      const Barrier& q_full = s.q_full[stage.stage];
      hopper::wait(at(&s.q_empty[stage.stage]), stage.parity ^ 1);
      hopper::arrive_expect(at(&q_full), kTileBytes);
      load_tile(s.q[stage.stage], a.q, query, head, q_full);
      if (step == 0) {
        hopper::wait(at(&s.v_empty), kv.parity ^ 1);
        hopper::arrive_expect(at(&s.v_full), kTileBytes);
        load_tile(s.v, a.v, item.key, item.kv, s.v_full);
        kv.next();
      }
      const Barrier& d_out_full = s.d_out_full[stage.stage];
      hopper::wait(at(&s.d_out_empty[stage.stage]), stage.parity ^ 1);
      hopper::arrive_expect(at(&d_out_full), kTileBytes);
      load_tile(s.d_out[stage.stage], a.d_out, query, head, d_out_full);
      stage.next();
    }
  }
}

/// Queries that see the thread's two keys, and those that see all keys of the tile.
struct Columns {
  int begin[2], end[2];
  int all_from, all_to;
  Columns() = default;
  __device__ Columns(const KeyArguments& a, int key, const Place& place) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = key + place.row + 8 * r;
      begin[r] = row < a.tokens ? a.query_begin[row] : 0;
      end[r] = row < a.tokens ? a.query_end[row] : 0;
    }
    const bool full = key + kTile <= a.tokens;
    all_from = full ? a.query_begin[key + kTile - 1] : a.tokens;
    all_to = full ? a.query_end[key] : 0;
  }
  __device__ bool whole(int query) const {
    return query >= all_from && query + kTile <= all_to;
  }
};

/// The thread's columns of a row statistic of 64 queries: from memory, beside the product under way.
__device__ inline void load_columns(float2 (&x)[8], const float* statistic, const Place& place) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = __ldg(reinterpret_cast<const float2*>(statistic + 8 * i + place.column));
}

/// Scores [keys, queries] of pairs that do not see each other become -infinity.
__device__ inline void mask_scores(float (&s)[32], const Columns& columns, int query, const Place& place) {
  if (columns.whole(query)) return;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = i / 2 % 2, column = query + place.column + 8 * (i / 4) + i % 2;
    if (column < columns.begin[r] || column >= columns.end[r]) s[i] = -INFINITY;
  }
}

/// Stores a quarter of a tile of score gradients as the registers hold it: word i of thread t at [i][t].
__device__ inline void store_gradients(const std::uint32_t (&d_s)[4], Bf16* tile, int i) {
  reinterpret_cast<uint4*>(tile)[128 * i + threadIdx.x % 128] = make_uint4(d_s[0], d_s[1], d_s[2], d_s[3]);
}

/// What a consumer warpgroup of the key kernel keeps from item to item.
struct KeyConsumer {
  const KeyArguments& a;
  KeyShared& s;
  Place place;
  int thread = static_cast<int>(threadIdx.x) % 128;
  Ring<2> queue, stage;
  Ring<1> kv;
  Output output;

  /// The next item that queries see, or the end. The keys of others get zeros.
  __device__ __forceinline__ Work next_work(Bf16* result) {
    for (;;) {
      const Work work = s.queue.pop(queue);
      if (work.number >= a.items) return work;
      const KeyItem item(a, work);
      if (item.steps > 0) return work;
      store_zeros(result, item.key, a.tokens, item.kv, a.kv_heads);
    }
  }
};

/// The warpgroup that computes the probabilities and sums dv = p^T d_out.
struct ValueSide : KeyConsumer {
  float2 lse2[8];
  Columns columns;
  int query;  ///< first of the step

  __device__ Bf16* result() const { return a.d_v; }

  /// Scores of the stage become p, sixteen queries after the other, here and for the other warpgroup; starts
  /// d_v += p^T d_out with each.
  __device__ __forceinline__ void take(float (&scores)[32], float (&d_v)[128]) {
    std::uint32_t p[4][4];
    hopper::pin(scores);
    arrive_warp(s.q_empty[stage.stage]);
    mask_scores(scores, columns, query, place);
    hopper::wait(at(&s.p_empty[stage.stage]), stage.parity ^ 1);
    hopper::wait(at(&s.d_out_full[stage.stage]), stage.parity);
    const std::uint64_t d_out = by_columns(s.d_out[stage.stage]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float x[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 shift = lse2[2 * i + j / 4];
        x[j] = hopper::exp2_approx(fmaf(scores[8 * i + j], kLog2E, j % 2 == 0 ? -shift.x : -shift.y));
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) p[i][j] = hopper::pack_bf16(x[2 * j], x[2 * j + 1]);
      s.p[stage.stage][i][thread] = make_uint4(p[i][0], p[i][1], p[i][2], p[i][3]);
      if (i % 2 == 1) hopper::arrive(at(&s.p_full[stage.stage][i / 2]));
      add_step(d_v, p[i], d_out, i);
    }
    hopper::wgmma_commit();
  }

  __device__ __forceinline__ void start(float (&scores)[32], int statistic) {
    hopper::wait(at(&s.q_full[stage.stage]), stage.parity);
    start_scores(scores, by_rows(s.k), by_rows(s.q[stage.stage]));
    load_columns(lse2, a.lse2 + statistic, place);
  }

  /// Starts the first scores of an item.
  __device__ __forceinline__ void start_item(float (&scores)[32], const KeyItem& item) {
    hopper::wait(at(&s.k_full), kv.parity);
    kv.next();
    start(scores, QueryCursor(item).statistic(a, item));
  }

  /// d_v += the item's sum, with its first scores under way, except for the last step: take does that.
  __device__ __forceinline__ void walk(const KeyItem& item, float (&scores)[32], float (&d_v)[128]) {
    columns = Columns(a, item.key, place);
    QueryCursor at_query(item);
    query = at_query.query;
    hopper::wgmma_wait<0>();
    output.release();
    for (int step = 1; step < item.steps; ++step) {
      take(scores, d_v);
      at_query.next(a);
      query = at_query.query;
      const Barrier& done = s.d_out_empty[stage.stage];
      stage.next();
      start(scores, at_query.statistic(a, item));
      hopper::wgmma_wait<1>();
      arrive_warp(done);
      hopper::wgmma_wait<0>();
      hopper::pin(d_v);
    }
    arrive_warp(s.k_empty);
  }

  /// d_v leaves by way of the item's last d_out, in stage `last`. The other side has read that when it has
  /// taken p.
  __device__ __forceinline__ void store(const KeyItem& item, const Ring<2>& last, const float (&d_v)[128]) {
    hopper::wait(at(&s.p_empty[last.stage]), last.parity);
    hopper::named_sync(1, 128);
    output.store(s.d_out[last.stage], &s.d_out_empty[last.stage], a.stored_d_v, item.key, item.kv, d_v,
                 {1.0f, 1.0f});
  }
};

/// The warpgroup that makes ds = p (dp - delta) and sums dk = ds^T q.
struct KeySide : KeyConsumer {
  float2 delta[8];
  Bf16* tile;  ///< where the gradients of the scores of the step are kept; may be null

  __device__ Bf16* result() const { return a.d_k; }

  /// Gradients of the probabilities become those of the scores, sixteen queries after the other; starts
  /// d_k += ds^T q with each. They are also kept.
  __device__ __forceinline__ void take(float (&d_p)[32], float (&d_k)[128]) {
    std::uint32_t d_s[4][4];
    hopper::pin(d_p);
    arrive_warp(s.d_out_empty[stage.stage]);
    hopper::wait(at(&s.q_full[stage.stage]), stage.parity);
    const std::uint64_t q = by_columns(s.q[stage.stage]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i % 2 == 0) hopper::wait(at(&s.p_full[stage.stage][i / 2]), stage.parity);
      const uint4 word = s.p[stage.stage][i][thread];
      const std::uint32_t p[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int from = 8 * i + 2 * j;
        d_s[i][j] = hopper::pack_bf16(low_half(p[j]) * (d_p[from] - delta[from / 4].x),
                                      high_half(p[j]) * (d_p[from + 1] - delta[from / 4].y));
      }
      if (i == 3) hopper::arrive(at(&s.p_empty[stage.stage]));
      add_step(d_k, d_s[i], q, i);
      if (tile) store_gradients(d_s[i], tile, i);
    }
    hopper::wgmma_commit();
  }

  __device__ __forceinline__ void start(float (&d_p)[32], int statistic) {
    hopper::wait(at(&s.d_out_full[stage.stage]), stage.parity);
    start_scores(d_p, by_rows(s.v), by_rows(s.d_out[stage.stage]));
    load_columns(delta, a.delta + statistic, place);
  }

  /// Where the gradients of the scores of a step are kept.
  __device__ Bf16* kept(const KeyItem& item, const QueryCursor& at_query) const {
    if (!a.kept.tiles) return nullptr;
    const int head = (item.kv - a.round.kv_begin) * a.group + at_query.member;
    return a.kept.tile(head, at_query.query / kTile, item.key / kTile);
  }

  /// Starts the first product of an item.
  __device__ __forceinline__ void start_item(float (&d_p)[32], const KeyItem& item) {
    hopper::wait(at(&s.v_full), kv.parity);
    kv.next();
    start(d_p, QueryCursor(item).statistic(a, item));
  }

  /// d_k += the item's sum, as ValueSide does.
  __device__ __forceinline__ void walk(const KeyItem& item, float (&d_p)[32], float (&d_k)[128]) {
    QueryCursor at_query(item);
    tile = kept(item, at_query);
    hopper::wgmma_wait<0>();
    output.release();
    for (int step = 1; step < item.steps; ++step) {
      take(d_p, d_k);
      at_query.next(a);
      const Barrier& done = s.q_empty[stage.stage];
      stage.next();
      start(d_p, at_query.statistic(a, item));
      tile = kept(item, at_query);
      hopper::wgmma_wait<1>();
      arrive_warp(done);
      hopper::wgmma_wait<0>();
      hopper::pin(d_k);
    }
    arrive_warp(s.v_empty);
  }

  /// d_k leaves by way of the item's last q, in stage `last`, which the other side had read before it gave p.
  __device__ __forceinline__ void store(const KeyItem& item, const Ring<2>& last, const float (&d_k)[128]) {
    hopper::named_sync(2, 128);
    output.store(s.q[last.stage], &s.q_empty[last.stage], a.stored_d_k, item.key, item.kv, d_k, {1.0f, 1.0f});
  }
};

/// The first product of an item runs while the sums of the one before leave. (Branches and loops stand before
/// the last step: ptxas serialises all products if the sums are read with one in between.)
template <class Side>
__device__ void consume(const KeyArguments& a, KeyShared& s) {
  Side side{{a, s}};
  float product[32], sum[128];
  Work work = side.next_work(side.result());
  if (work.number >= a.items) return;
  side.start_item(product, KeyItem(a, work));
  for (;;) {
    const KeyItem item(a, work);
#pragma unroll
    for (int i = 0; i < 128; ++i) sum[i] = 0.0f;
    side.walk(item, product, sum);
    work = side.next_work(side.result());
    const Ring<2> last = side.stage;
    if (work.number >= a.items) {
      side.take(product, sum);
      hopper::wgmma_wait<0>();
      hopper::pin(sum);
      side.store(item, last, sum);
      break;
    }
    const KeyItem next(a, work);
    side.take(product, sum);
    side.stage.next();
    side.start_item(product, next);
    hopper::wgmma_wait<1>();
    hopper::pin(sum);
    side.store(item, last, sum);
  }
  side.output.wait();
}

__global__ void __launch_bounds__(kThreads, 1) key_kernel(const __grid_constant__ KeyArguments a) {
  auto& s = shared_memory<KeyShared>();
  if (threadIdx.x == 0) s.init();
  follow_previous();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    hopper::registers_dec<kProducerRegisters>();
    if (threadIdx.x == kConsumers) produce_for_keys(a, s);
  } else {
    hopper::registers_inc<kConsumerRegisters>();
    if (threadIdx.x < kConsumers / 2) {
      consume<ValueSide>(a, s);
    } else {
      consume<KeySide>(a, s);
    }
  }
}

/// Of the blocks of keys, by the queries that see them.
LastBlocks last_blocks(const Attention256Backward& call) {
  const auto tokens = static_cast<int>(call.sizes.tokens);
  const std::int32_t *lo = call.host_lo, *hi = call.host_hi;
  if (!lo || !hi) return {};
  std::vector<std::int32_t> seen;
  for (int key = 0; key < tokens; key += kTile) {
    const auto begin = std::upper_bound(hi, hi + tokens, key) - hi,
               end = std::upper_bound(lo, lo + tokens, std::min(key + kTile, tokens) - 1) - lo;
    seen.push_back(static_cast<std::int32_t>(std::max<std::ptrdiff_t>(end - begin, 0)));
  }
  return LastBlocks(seen);
}

}  // namespace

void sum_over_queries(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& round,
                      int* counter, cudaStream_t stream) {
  const AttentionSizes& z = call.sizes;
  KeyArguments a{};
  a.q = tile_map(call.q, z.tokens, z.heads), a.d_out = tile_map(call.d_out, z.tokens, z.heads);
  a.k = tile_map(call.k, z.tokens, z.kv_heads), a.v = tile_map(call.v, z.tokens, z.kv_heads);
  a.stored_d_k = output_map(call.d_k, z.tokens, z.kv_heads);
  a.stored_d_v = output_map(call.d_v, z.tokens, z.kv_heads);
  a.lse2 = buffers.lse2, a.delta = buffers.delta;
  a.query_begin = buffers.query_begin, a.query_end = buffers.query_end;
  a.d_k = static_cast<Bf16*>(call.d_k), a.d_v = static_cast<Bf16*>(call.d_v);
  a.counter = counter;
  a.tokens = static_cast<int>(z.tokens), a.heads = static_cast<int>(z.heads);
  a.kv_heads = static_cast<int>(z.kv_heads), a.group = a.heads / a.kv_heads;
  a.stride = buffers.stride;
  a.items = (a.tokens + kTile - 1) / kTile * round.kv_heads;
  a.round = round;
  a.kept = buffers.kept(round);
  // Kept gradients are found by whole blocks of queries.
  a.align = round.head_tiles > 0 ? ~(kTile - 1) : ~1;
  a.last = last_blocks(call);
  launch_persistent("AttentionBackward", key_kernel, a, a.items, sizeof(KeyShared), stream);
}

}  // namespace lapidary::attention256
