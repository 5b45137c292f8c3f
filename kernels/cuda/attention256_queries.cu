// dq of attention for heads of 256 components: a block walks all keys that its 64 rows of two heads see.
#include "kernels/cuda/attention256_backward.cuh"

namespace lapidary::attention256 {

namespace {

// ------------------------------------------------------------------------- from the scores' gradients

struct SumArguments {
  CUtensorMap k, gradients, stored;
  const std::int32_t *lo, *hi;
  KeptGradients kept;
  Bf16* d_q;  ///< as `stored`
  int* counter;
  int heads;
  Queries queries;  ///< of the round's heads
  Round round;
};

/// A tile of score gradients [keys, queries] as store_gradients leaves it.
struct ScoreTile {
  alignas(1024) uint4 word[4][128];
};

struct SumShared {
  static constexpr int kStages = 4;
  Tile k[kStages];
  Tile results;
  ScoreTile gradients[kStages][2];
  Barrier full[kStages], empty[kStages];
  Turns turns;
  Queue queue;

  __device__ void init() {
    for (int i = 0; i < kStages; ++i) {
      hopper::barrier_init(at(&full[i]), 1);
      hopper::barrier_init(at(&empty[i]), kConsumers);
    }
    turns.init();
    queue.init();
    hopper::fence_barrier_init();
  }
};

__device__ void produce_sums(const SumArguments& a, SumShared& s) {
  Feed<SumArguments, KeyBounds> feed(a, s.queue);
  Ring<SumShared::kStages> stage;
  for (;;) {
    const Work work = feed.take();
    if (work.number >= a.queries.items) return;
    const QueryItem item(a.queries, work.number);
    const int end = end_tile(work.begin, work.end);
    for (int t = first_tile(work.begin); t < end; ++t) {
      if (t + 1 == end) feed.reserve();
      const Barrier& full = s.full[stage.stage];
      hopper::wait(at(&s.empty[stage.stage]), stage.parity ^ 1);
      hopper::arrive_expect(at(&full), kTileBytes + 2 * kScoreTileBytes);
      load_tile(s.k[stage.stage], a.k, t * kTile, a.round.kv_begin + item.kv, full);
      for (int i = 0; i < 2; ++i)
        hopper::tma_load(at(&s.gradients[stage.stage][i]), a.gradients,
                         hopper::Box(0, a.kept.place(item.head + i, item.token / kTile, t) * kTile),
                         at(&full));
      stage.next();
    }
  }
}

/// The words of a tile of which the thread's warp makes its 16 queries' rows, by 16 keys.
__device__ inline void load_gradients(uint4 (&raw)[4], const ScoreTile& tile) {
  const int warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) raw[i] = tile.word[warp][32 * i + lane];
}

/// Transposes them into the register operand of a product: rows are queries, k are keys.
__device__ inline void to_rows(std::uint32_t (&d_s)[4][4], const uint4 (&raw)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    d_s[i][0] = hopper::transpose_matrix(raw[i].x);
    d_s[i][1] = hopper::transpose_matrix(raw[i].z);
    d_s[i][2] = hopper::transpose_matrix(raw[i].y);
    d_s[i][3] = hopper::transpose_matrix(raw[i].w);
  }
}

/// What a consumer warpgroup of the sum kernel keeps from item to item.
struct SumConsumer {
  const SumArguments& a;
  SumShared& s;
  int warpgroup = warpgroup_index();
  Ring<2> queue;
  Ring<SumShared::kStages> stage;
  OutputInTurn output;

  __device__ int head_of(const QueryItem& item) const {
    return a.round.kv_begin * a.queries.group + item.head_of(warpgroup);
  }

  /// The next item that has keys, or the end. The queries of others get zeros.
  __device__ __forceinline__ Work next_work() {
    for (;;) {
      const Work work = s.queue.pop(queue);
      if (work.number >= a.queries.items || first_tile(work.begin) < end_tile(work.begin, work.end))
        return work;
      const QueryItem item(a.queries, work.number);
      store_zeros(a.d_q, item.token, a.queries.tokens, head_of(item), a.heads);
    }
  }

  __device__ __forceinline__ void load(uint4 (&raw)[4]) {
    hopper::wait(at(&s.full[stage.stage]), stage.parity);
    load_gradients(raw, s.gradients[stage.stage][warpgroup]);
  }
  /// Starts d_q += ds k of the stage.
  __device__ __forceinline__ void start(float (&d_q)[128], const std::uint32_t (&d_s)[4][4]) {
    start_sum(d_q, d_s, by_columns(s.k[stage.stage]), true);
    stage.next();
    output.release();
  }
  /// Ends it, in the stage before.
  __device__ __forceinline__ void end(float (&d_q)[128], const Barrier& done) {
    hopper::wgmma_wait<0>();
    hopper::pin(d_q);
    hopper::arrive(at(&done));
  }

  /// What the next tile needs is read beside the product of the one before, whichever item it belongs to.
  __device__ void run() {
    uint4 raw[4];
    std::uint32_t d_s[4][4];
    float d_q[128];
    Work work = next_work();
    if (work.number >= a.queries.items) return;
    load(raw);
    for (;;) {
      const QueryItem item(a.queries, work.number);
      const int tiles = end_tile(work.begin, work.end) - first_tile(work.begin);
#pragma unroll
      for (int i = 0; i < 128; ++i) d_q[i] = 0.0f;
      for (int t = 1; t < tiles; ++t) {
        to_rows(d_s, raw);
        const Barrier& done = s.empty[stage.stage];
        start(d_q, d_s);
        load(raw);
        end(d_q, done);
      }
      to_rows(d_s, raw);
      const Barrier& done = s.empty[stage.stage];
      start(d_q, d_s);
      work = next_work();
      const bool more = work.number < a.queries.items;
      if (more) load(raw);
      end(d_q, done);
      output.store(s.results, s.turns, warpgroup, a.stored, item.token, head_of(item), d_q, {1.0f, 1.0f});
      if (!more) break;
    }
    output.release();
  }
};

__global__ void __launch_bounds__(kThreads, 1) sum_kernel(const __grid_constant__ SumArguments a) {
  auto& s = shared_memory<SumShared>();
  if (threadIdx.x == 0) s.init();
  follow_previous();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    hopper::registers_dec<kProducerRegisters>();
    if (threadIdx.x == kConsumers) produce_sums(a, s);
  } else {
    hopper::registers_inc<kConsumerRegisters>();
    SumConsumer{a, s}.run();
  }
}

// ----------------------------------------------------------------------------- with the scores again

struct QueryArguments {
  CUtensorMap q, d_out, k, v, stored;
  const std::int32_t *lo, *hi;
  const float *lse2, *delta;
  Bf16* d_q;  ///< as `stored`
  int* counter;
  int stride;
  Queries queries;
};

struct QueryShared {
  static constexpr int kStages = 2;  ///< of k, which is read twice; v is free after its one product
  Tile q[2], d_out[2], k[kStages], v;
  Barrier q_full, q_empty, k_full[kStages], k_empty[kStages], v_full, v_empty;
  Queue queue;

  __device__ void init() {
    constexpr int kWarps = kConsumers / 32;
    for (Barrier* b : {&q_full, &v_full, &k_full[0], &k_full[1]}) hopper::barrier_init(at(b), 1);
    for (Barrier* b : {&q_empty, &v_empty, &k_empty[0], &k_empty[1]}) hopper::barrier_init(at(b), kWarps);
    queue.init();
    hopper::fence_barrier_init();
  }
};

__device__ void produce_for_queries(const QueryArguments& a, QueryShared& s) {
  Feed<QueryArguments, KeyBounds> feed(a, s.queue);
  Ring<2> k;
  Ring<1> q, v;
  for (;;) {
    const Work work = feed.take();
    if (work.number >= a.queries.items) return;
    const QueryItem item(a.queries, work.number);
    for (int key = work.begin; key < work.end; key += kTile) {
      hopper::wait(at(&s.k_empty[k.stage]), k.parity ^ 1);
      hopper::arrive_expect(at(&s.k_full[k.stage]), kTileBytes);
      load_tile(s.k[k.stage], a.k, key, item.kv, s.k_full[k.stage]);
      k.next();
      if (key == work.begin) {
        hopper::wait(at(&s.q_empty), q.parity ^ 1);
        q.next();
        hopper::arrive_expect(at(&s.q_full), 4 * kTileBytes);
        for (int i = 0; i < 2; ++i) {
          load_tile(s.q[i], a.q, item.token_of(i), item.head_of(i), s.q_full);
          load_tile(s.d_out[i], a.d_out, item.token_of(i), item.head_of(i), s.q_full);
        }
      }
      hopper::wait(at(&s.v_empty), v.parity ^ 1);
      hopper::arrive_expect(at(&s.v_full), kTileBytes);
      load_tile(s.v, a.v, key, item.kv, s.v_full);
      v.next();
    }
  }
}

/// Row statistics of the thread's two queries.
struct RowStatistics {
  float lse2[2], delta[2];
  __device__ RowStatistics(const QueryArguments& a, int token, int head, const Place& place) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(token + place.row + 8 * r, a.queries.tokens - 1);
      const std::int64_t from = static_cast<std::int64_t>(head) * a.stride + row;
      lse2[r] = a.lse2[from];
      delta[r] = a.delta[from];
    }
  }
};

/// Scores [queries, keys] become probabilities.
__device__ inline void probabilities(float (&s)[32], const float (&lse2)[2], const Rows& rows, int key,
                                     const Place& place) {
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = hopper::exp2_approx(fmaf(s[i], kLog2E, -lse2[i / 2 % 2]));
  if (rows.whole(key)) return;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = i / 2 % 2, column = key + place.column + 8 * (i / 4) + i % 2;
    if (column < rows.lo[r] || column >= rows.hi[r]) s[i] = 0.0f;
  }
}

/// What a consumer warpgroup of the query kernel keeps from item to item.
struct QueryConsumer {
  const QueryArguments& a;
  QueryShared& s;
  int warpgroup = warpgroup_index();
  Place place;
  Ring<2> queue, k;
  Ring<1> q, v;
  Output output;

  __device__ __forceinline__ void start(float (&scores)[32], float (&d_p)[32]) {
    hopper::wait(at(&s.k_full[k.stage]), k.parity);
    start_scores(scores, by_rows(s.q[warpgroup]), by_rows(s.k[k.stage]));
    hopper::wait(at(&s.v_full), v.parity);
    start_scores(d_p, by_rows(s.d_out[warpgroup]), by_rows(s.v));
  }

  /// With the scores finished and their gradients under way.
  __device__ __forceinline__ void take(float (&scores)[32], float (&d_p)[32], std::uint32_t (&d_s)[4][4],
                                       const Rows& rows, const RowStatistics& statistics, int key) {
    hopper::pin(scores);
    probabilities(scores, statistics.lse2, rows, key, place);
    hopper::wgmma_wait<0>();
    hopper::pin(d_p);
    arrive_warp(s.v_empty);
    v.next();
#pragma unroll
    for (int i = 0; i < 32; ++i) scores[i] *= d_p[i] - statistics.delta[i / 2 % 2];
    pack(d_s, scores);
  }

  /// d_q += the sum over [begin, begin + 64 tiles) of keys, one tile at least.
  __device__ __forceinline__ void walk(int begin, int tiles, const Rows& rows,
                                       const RowStatistics& statistics, float (&d_q)[128]) {
    float scores[32], d_p[32];
    std::uint32_t d_s[4][4];
    output.release();
    hopper::wait(at(&s.q_full), q.parity);
    q.next();
    start(scores, d_p);
    hopper::wgmma_wait<1>();
    take(scores, d_p, d_s, rows, statistics, begin);
    for (int j = 1; j < tiles; ++j) {
      start_sum(d_q, d_s, by_columns(s.k[k.stage]), true);
      const Barrier& done = s.k_empty[k.stage];
      k.next();
      start(scores, d_p);
      hopper::wgmma_wait<2>();
      hopper::pin(d_q);
      arrive_warp(done);
      hopper::wgmma_wait<1>();
      take(scores, d_p, d_s, rows, statistics, begin + j * kTile);
    }
    start_sum(d_q, d_s, by_columns(s.k[k.stage]), true);
    hopper::wgmma_wait<0>();
    hopper::pin(d_q);
    arrive_warp(s.k_empty[k.stage]);
    k.next();
  }

  __device__ void run() {
    for (;;) {
      const Work work = s.queue.pop(queue);
      if (work.number >= a.queries.items) break;
      const QueryItem item(a.queries, work.number);
      const int token = item.token_of(warpgroup), head = item.head_of(warpgroup);
      if (const int tiles = tiles_of(work); tiles > 0) {
        const Rows rows(a.queries, a.lo, a.hi, token, place);
        const RowStatistics statistics(a, token, head, place);
        float d_q[128] = {};
        walk(work.begin, tiles, rows, statistics, d_q);
        hopper::named_sync(1 + warpgroup, 128);
        output.store(s.d_out[warpgroup], &s.q_empty, a.stored, token, head, d_q, {1.0f, 1.0f});
      } else {
        store_zeros(a.d_q, token, a.queries.tokens, head, a.queries.heads);
      }
    }
    output.wait();
  }
};

__global__ void __launch_bounds__(kThreads, 1) query_kernel(const __grid_constant__ QueryArguments a) {
  auto& s = shared_memory<QueryShared>();
  if (threadIdx.x == 0) s.init();
  follow_previous();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    hopper::registers_dec<24>();
    if (threadIdx.x == kConsumers) produce_for_queries(a, s);
  } else {
    hopper::registers_inc<240>();
    QueryConsumer{a, s}.run();
  }
}

/// Tensor map of the round's tiles, each as it lies in memory. (A plain bulk copy would do, but racecheck
/// does not see that its barrier orders it.)
CUtensorMap gradients_map(const KeptGradients& kept, const Round& round, std::int64_t group) {
  const std::int64_t tiles = round.kv_heads * group * round.head_tiles;
  return make_tensor_map({.data = kept.tiles,
                          .dtype = DType::bf16,
                          .dims = 2,
                          .size = {kTile, tiles * kTile},
                          .stride = {1, kTile},
                          .box = {kTile, kTile},
                          .swizzle = false});
}

}  // namespace

void sum_over_keys(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& round,
                   int* counter, cudaStream_t stream) {
  const AttentionSizes& z = call.sizes;
  SumArguments a{};
  a.k = tile_map(call.k, z.tokens, z.kv_heads);
  a.lo = call.lo, a.hi = call.hi;
  a.kept = buffers.kept(round);
  a.gradients = gradients_map(a.kept, round, z.group());
  a.stored = output_map(call.d_q, z.tokens, z.heads);
  a.d_q = static_cast<Bf16*>(call.d_q);
  a.counter = counter;
  a.heads = static_cast<int>(z.heads);
  a.queries =
      Queries({z.tokens, z.group() * round.kv_heads, round.kv_heads, z.dim}, call.host_lo, call.host_hi);
  a.round = round;
  launch_persistent("AttentionBackward", sum_kernel, a, a.queries.items, sizeof(SumShared), stream);
}

void sum_over_keys_again(const Attention256Backward& call, const BackwardBuffers& buffers, int* counter,
                         cudaStream_t stream) {
  const AttentionSizes& z = call.sizes;
  QueryArguments a{};
  a.q = tile_map(call.q, z.tokens, z.heads), a.d_out = tile_map(call.d_out, z.tokens, z.heads);
  a.k = tile_map(call.k, z.tokens, z.kv_heads), a.v = tile_map(call.v, z.tokens, z.kv_heads);
  a.stored = output_map(call.d_q, z.tokens, z.heads);
  a.lo = call.lo, a.hi = call.hi;
  a.lse2 = buffers.lse2, a.delta = buffers.delta;
  a.d_q = static_cast<Bf16*>(call.d_q);
  a.counter = counter;
  a.stride = buffers.stride;
  a.queries = Queries(z, call.host_lo, call.host_hi);
  launch_persistent("AttentionBackward", query_kernel, a, a.queries.items, sizeof(QueryShared), stream);
}

}  // namespace lapidary::attention256
