// Backward attention for heads of 256 components, without atomics on floating point: one kernel walks the
// queries of every tile of keys and sums dk and dv in registers, another walks the keys of every tile of
// queries and sums dq. Both compute scores and their gradients again: seven products where five would do, but
// no sum ever leaves the registers.
#include "kernels/cuda/attention256.cuh"

namespace lapidary {

namespace attention256 {

namespace {

// ------------------------------------------------------------------------------------------- preparation

struct PrepareArguments {
  const Bf16 *out, *d_out;
  const float* lse;
  const std::int32_t *lo, *hi;
  int* counters;
  float *lse2, *delta;
  std::int32_t *query_begin, *query_end;
  int tokens, heads, stride;
};

/// First index of the never decreasing array x [n] whose value is above `bound`.
__device__ inline int first_above(const std::int32_t* x, int n, int bound) {
  int begin = 0, end = n;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (x[middle] > bound) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

constexpr int kPrepareThreads = 256;

/// A warp per token and head: delta = sum of out d_out and lse log2(e), 0 past the last token. A thread per
/// key: the queries that see it.
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const PrepareArguments a) {
  const int index = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (index < 2) a.counters[index] = 0;
  if (index < a.tokens) {
    a.query_begin[index] = first_above(a.hi, a.tokens, index);
    a.query_end[index] = first_above(a.lo, a.tokens, index);
  }
  const int pair = index / 32, lane = index % 32;
  const int token = pair / a.heads, head = pair % a.heads;
  if (token >= a.stride) return;
  float sum = 0.0f, lse2 = 0.0f;
  if (token < a.tokens) {
    constexpr int kWords = 4;  // of 2 elements, per lane
    const std::int64_t from = (static_cast<std::int64_t>(token) * a.heads + head) * kDim + lane * 2 * kWords;
    const uint4 x = *reinterpret_cast<const uint4*>(a.out + from);
    const uint4 y = *reinterpret_cast<const uint4*>(a.d_out + from);
    const std::uint32_t xs[kWords] = {x.x, x.y, x.z, x.w}, ys[kWords] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      sum = fmaf(low_half(xs[i]), low_half(ys[i]), sum);
      sum = fmaf(high_half(xs[i]), high_half(ys[i]), sum);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) lse2 = a.lse[static_cast<std::int64_t>(head) * a.tokens + token] * kLog2E;
  }
  if (lane == 0) {
    a.delta[static_cast<std::int64_t>(head) * a.stride + token] = sum;
    a.lse2[static_cast<std::int64_t>(head) * a.stride + token] = lse2;
  }
}

// ----------------------------------------------------------------------------------------------- dk, dv

struct KeyArguments {
  CUtensorMap q, d_out, k, v;
  const float *lse2, *delta;
  const std::int32_t *query_begin, *query_end;
  Bf16 *d_k, *d_v;
  int* counter;
  int tokens, heads, kv_heads, group, stride;
  int items;
};

/// 64 keys of one key head; their queries, all heads of the group, are walked in tiles of 64.
struct KeyItem {
  int key, kv;
  int begin;  ///< first query of the first tile: a multiple of 4, so that its statistics lie on 16 bytes
  int steps;  ///< tiles of queries times heads of the group; the heads of a tile follow each other
  __device__ KeyItem(const KeyArguments& a, int item) {
    key = item / a.kv_heads * kTile;
    kv = item % a.kv_heads;
    begin = a.query_begin[key] & ~3;
    const int end = a.query_end[min(key + kTile, a.tokens) - 1];
    steps = max(0, (end - begin + kTile - 1) / kTile) * a.group;
  }
  __device__ int query(const KeyArguments& a, int step) const { return begin + step / a.group * kTile; }
  __device__ int head(const KeyArguments& a, int step) const { return kv * a.group + step % a.group; }
};

struct KeyShared {
  static constexpr int kStages = 2;
  Tile k, v, q[kStages], d_out[kStages];
  uint4 p[kStages][4][128];  ///< probabilities on their way from one warpgroup to the other
  float lse2[kStages][kTile], delta[kStages][kTile];
  Barrier k_full, k_empty, v_full, v_empty;
  Barrier q_full[kStages], q_empty[kStages], d_out_full[kStages], d_out_empty[kStages];
  Barrier p_full[kStages], p_empty[kStages];
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
      hopper::barrier_init(at(&p_full[i]), kWarps);
      hopper::barrier_init(at(&p_empty[i]), kWarps);
    }
    queue.init();
    hopper::fence_barrier_init();
  }
};

__device__ void produce_for_keys(const KeyArguments& a, KeyShared& s) {
  constexpr std::uint32_t kStatistics = kTile * sizeof(float);
  Ring<2> queue, stage;
  Ring<1> kv;
  int number = atomicAdd(a.counter, 1);
  for (;;) {
    s.queue.push(queue, number);
    if (number >= a.items) return;
    const KeyItem item(a, number);
    number = atomicAdd(a.counter, 1);
    for (int step = 0; step < item.steps; ++step) {
      const int query = item.query(a, step), head = item.head(a, step);
      const std::int64_t statistics = static_cast<std::int64_t>(head) * a.stride + query;
      if (step == 0) {
        hopper::wait(at(&s.k_empty), kv.parity ^ 1);
        hopper::arrive_expect(at(&s.k_full), kTileBytes);
        load_tile(s.k, a.k, item.key, item.kv, s.k_full);
      }
      const Barrier& q_full = s.q_full[stage.stage];
      hopper::wait(at(&s.q_empty[stage.stage]), stage.parity ^ 1);
      hopper::arrive_expect(at(&q_full), kTileBytes + kStatistics);
      load_tile(s.q[stage.stage], a.q, query, head, q_full);
      hopper::bulk_load(at(s.lse2[stage.stage]), a.lse2 + statistics, kStatistics, at(&q_full));
      if (step == 0) {
        hopper::wait(at(&s.v_empty), kv.parity ^ 1);
        hopper::arrive_expect(at(&s.v_full), kTileBytes);
        load_tile(s.v, a.v, item.key, item.kv, s.v_full);
        kv.next();
      }
      const Barrier& d_out_full = s.d_out_full[stage.stage];
      hopper::wait(at(&s.d_out_empty[stage.stage]), stage.parity ^ 1);
      hopper::arrive_expect(at(&d_out_full), kTileBytes + kStatistics);
      load_tile(s.d_out[stage.stage], a.d_out, query, head, d_out_full);
      hopper::bulk_load(at(s.delta[stage.stage]), a.delta + statistics, kStatistics, at(&d_out_full));
      stage.next();
    }
  }
}

/// Queries that see the thread's two keys, and those that see all keys of the tile.
struct Columns {
  int begin[2], end[2];
  int all_from, all_to;
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

/// The thread's columns of a row statistic of 64 queries.
__device__ inline void load_columns(float2 (&x)[8], const float* statistic, const Place& place) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = *reinterpret_cast<const float2*>(statistic + 8 * i + place.column);
}

/// Scores [keys, queries] become probabilities.
__device__ inline void probabilities(float (&s)[32], const float2 (&lse2)[8], const Columns& columns,
                                     int query, const Place& place) {
#pragma unroll
  for (int i = 0; i < 32; ++i)
    s[i] = exp2_of(fmaf(s[i], kLog2E, i % 2 == 0 ? -lse2[i / 4].x : -lse2[i / 4].y));
  if (columns.whole(query)) return;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = i / 2 % 2, column = query + place.column + 8 * (i / 4) + i % 2;
    if (column < columns.begin[r] || column >= columns.end[r]) s[i] = 0.0f;
  }
}

/// Stores the sum of a tile of keys, key rows in the place of kv head `kv`.
__device__ inline void store_keys(const KeyArguments& a, const KeyItem& item, const Place& place, Bf16* to,
                                  const float (&sum)[128]) {
  Bf16* row[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int key = item.key + place.row + 8 * r;
    row[r] = key < a.tokens ? to + (static_cast<std::int64_t>(key) * a.kv_heads + item.kv) * kDim : nullptr;
  }
  store_rows(sum, row, {1.0f, 1.0f});
}

/// What a consumer warpgroup of the key kernel keeps from item to item.
struct KeyConsumer {
  const KeyArguments& a;
  KeyShared& s;
  Place place;
  int thread = static_cast<int>(threadIdx.x) % 128;
  Ring<2> queue, stage;
  Ring<1> kv;
};

/// The warpgroup that computes the probabilities and sums dv = p^T d_out.
struct ValueSide : KeyConsumer {
  /// Scores of the stage become p, here and for the other warpgroup.
  __device__ __forceinline__ void take(float (&scores)[32], std::uint32_t (&p)[4][4], const Columns& columns,
                                       int query) {
    hopper::pin(scores);
    float2 lse2[8];
    load_columns(lse2, s.lse2[stage.stage], place);
    arrive_warp(s.q_empty[stage.stage]);
    probabilities(scores, lse2, columns, query, place);
    pack(p, scores);
    hopper::wait(at(&s.p_empty[stage.stage]), stage.parity ^ 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) s.p[stage.stage][i][thread] = make_uint4(p[i][0], p[i][1], p[i][2], p[i][3]);
    arrive_warp(s.p_full[stage.stage]);
    hopper::wait(at(&s.d_out_full[stage.stage]), stage.parity);
  }

  __device__ __forceinline__ void start(float (&scores)[32]) {
    hopper::wait(at(&s.q_full[stage.stage]), stage.parity);
    start_scores(scores, by_rows(s.k), by_rows(s.q[stage.stage]));
  }

  /// d_v += the item's sum; it has one step at least.
  __device__ __forceinline__ void walk(const KeyItem& item, float (&d_v)[128]) {
    const Columns columns(a, item.key, place);
    float scores[32];
    std::uint32_t p[4][4];
    hopper::wait(at(&s.k_full), kv.parity);
    kv.next();
    start(scores);
    hopper::wgmma_wait<0>();
    for (int step = 1; step < item.steps; ++step) {
      take(scores, p, columns, item.query(a, step - 1));
      start_sum(d_v, p, by_columns(s.d_out[stage.stage]), true);
      const Barrier& done = s.d_out_empty[stage.stage];
      stage.next();
      start(scores);
      hopper::wgmma_wait<1>();
      arrive_warp(done);
      hopper::wgmma_wait<0>();
      hopper::pin(d_v);
    }
    arrive_warp(s.k_empty);
    take(scores, p, columns, item.query(a, item.steps - 1));
    start_sum(d_v, p, by_columns(s.d_out[stage.stage]), true);
    hopper::wgmma_wait<0>();
    hopper::pin(d_v);
    arrive_warp(s.d_out_empty[stage.stage]);
    stage.next();
  }
};

/// The warpgroup that makes ds = p (dp - delta) and sums dk = ds^T q.
struct KeySide : KeyConsumer {
  __device__ __forceinline__ void take(float (&d_p)[32], std::uint32_t (&d_s)[4][4]) {
    hopper::pin(d_p);
    float2 delta[8];
    load_columns(delta, s.delta[stage.stage], place);
    arrive_warp(s.d_out_empty[stage.stage]);
    hopper::wait(at(&s.p_full[stage.stage]), stage.parity);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 word = s.p[stage.stage][i][thread];
      const std::uint32_t p[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int from = 8 * i + 2 * j;
        d_s[i][j] = pack(low_half(p[j]) * (d_p[from] - delta[from / 4].x),
                         high_half(p[j]) * (d_p[from + 1] - delta[from / 4].y));
      }
    }
    arrive_warp(s.p_empty[stage.stage]);
    hopper::wait(at(&s.q_full[stage.stage]), stage.parity);
  }

  __device__ __forceinline__ void start(float (&d_p)[32]) {
    hopper::wait(at(&s.d_out_full[stage.stage]), stage.parity);
    start_scores(d_p, by_rows(s.v), by_rows(s.d_out[stage.stage]));
  }

  /// d_k += the item's sum; it has one step at least.
  __device__ __forceinline__ void walk(const KeyItem& item, float (&d_k)[128]) {
    float d_p[32];
    std::uint32_t d_s[4][4];
    hopper::wait(at(&s.v_full), kv.parity);
    kv.next();
    start(d_p);
    hopper::wgmma_wait<0>();
    for (int step = 1; step < item.steps; ++step) {
      take(d_p, d_s);
      start_sum(d_k, d_s, by_columns(s.q[stage.stage]), true);
      const Barrier& done = s.q_empty[stage.stage];
      stage.next();
      start(d_p);
      hopper::wgmma_wait<1>();
      arrive_warp(done);
      hopper::wgmma_wait<0>();
      hopper::pin(d_k);
    }
    arrive_warp(s.v_empty);
    take(d_p, d_s);
    start_sum(d_k, d_s, by_columns(s.q[stage.stage]), true);
    hopper::wgmma_wait<0>();
    hopper::pin(d_k);
    arrive_warp(s.q_empty[stage.stage]);
    stage.next();
  }
};

template <class Side>
__device__ void consume(const KeyArguments& a, KeyShared& s, Bf16* to) {
  Side side{{a, s}};
  for (;;) {
    const int number = s.queue.pop(side.queue);
    if (number >= a.items) return;
    const KeyItem item(a, number);
    float sum[128] = {};
    if (item.steps > 0) side.walk(item, sum);
    store_keys(a, item, side.place, to, sum);
  }
}

__global__ void __launch_bounds__(kThreads, 1) key_kernel(const __grid_constant__ KeyArguments a) {
  auto& s = shared_memory<KeyShared>();
  if (threadIdx.x == 0) s.init();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    hopper::registers_dec<kProducerRegisters>();
    if (threadIdx.x == kConsumers) produce_for_keys(a, s);
  } else {
    hopper::registers_inc<kConsumerRegisters>();
    if (threadIdx.x < kConsumers / 2) {
      consume<ValueSide>(a, s, a.d_v);
    } else {
      consume<KeySide>(a, s, a.d_k);
    }
  }
}

// --------------------------------------------------------------------------------------------------- dq

struct QueryArguments {
  CUtensorMap q, d_out, k, v;
  const std::int32_t *lo, *hi;
  const float *lse2, *delta;
  Bf16* d_q;
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
  Ring<2> queue, k;
  Ring<1> q, v;
  int number = atomicAdd(a.counter, 1);
  for (;;) {
    s.queue.push(queue, number);
    if (number >= a.queries.items) return;
    const QueryItem item(a.queries, number);
    const KeyRange keys(a.queries, item, a.lo, a.hi);
    number = atomicAdd(a.counter, 1);
    for (int j = 0; j < keys.tiles(); ++j) {
      const int key = keys.begin + j * kTile;
      hopper::wait(at(&s.k_empty[k.stage]), k.parity ^ 1);
      hopper::arrive_expect(at(&s.k_full[k.stage]), kTileBytes);
      load_tile(s.k[k.stage], a.k, key, item.kv, s.k_full[k.stage]);
      k.next();
      if (j == 0) {
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
  for (int i = 0; i < 32; ++i) s[i] = exp2_of(fmaf(s[i], kLog2E, -lse2[i / 2 % 2]));
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
  int warpgroup = static_cast<int>(threadIdx.x) / 128;
  Place place;
  Ring<2> queue, k;
  Ring<1> q, v;

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
    arrive_warp(s.q_empty);
    start_sum(d_q, d_s, by_columns(s.k[k.stage]), true);
    hopper::wgmma_wait<0>();
    hopper::pin(d_q);
    arrive_warp(s.k_empty[k.stage]);
    k.next();
  }
};

__device__ void consume_queries(const QueryArguments& a, QueryShared& s) {
  QueryConsumer consumer{a, s};
  for (;;) {
    const int number = s.queue.pop(consumer.queue);
    if (number >= a.queries.items) return;
    const QueryItem item(a.queries, number);
    const int token = item.token_of(consumer.warpgroup), head = item.head_of(consumer.warpgroup);
    const KeyRange keys(a.queries, item, a.lo, a.hi);
    const Rows rows(a.queries, a.lo, a.hi, token, consumer.place);
    const RowStatistics statistics(a, token, head, consumer.place);
    float d_q[128] = {};
    if (const int tiles = keys.tiles(); tiles > 0) consumer.walk(keys.begin, tiles, rows, statistics, d_q);
    Bf16* row[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at_row = token + consumer.place.row + 8 * r;
      row[r] = at_row < a.queries.tokens
                   ? a.d_q + (static_cast<std::int64_t>(at_row) * a.queries.heads + head) * kDim
                   : nullptr;
    }
    store_rows(d_q, row, {1.0f, 1.0f});
  }
}

__global__ void __launch_bounds__(kThreads, 1) query_kernel(const __grid_constant__ QueryArguments a) {
  auto& s = shared_memory<QueryShared>();
  if (threadIdx.x == 0) s.init();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    hopper::registers_dec<24>();
    if (threadIdx.x == kConsumers) produce_for_queries(a, s);
  } else {
    hopper::registers_inc<240>();
    consume_queries(a, s);
  }
}

// -------------------------------------------------------------------------------------------- launches

/// Pointers into the scratch.
struct Buffers {
  int* counters;
  float *lse2, *delta;
  std::int32_t *query_begin, *query_end;
  Buffers(void* scratch, const Attention256Scratch& plan) {
    auto* byte = static_cast<std::byte*>(scratch);
    counters = reinterpret_cast<int*>(byte);
    byte += kAttention256Scratch;
    lse2 = reinterpret_cast<float*>(byte);
    delta = reinterpret_cast<float*>(byte + plan.statistic);
    byte += 2 * plan.statistic;
    query_begin = reinterpret_cast<std::int32_t*>(byte);
    query_end = reinterpret_cast<std::int32_t*>(byte + plan.interval);
  }
};

void prepare(const Attention256Backward& call, const Attention256Scratch& plan, const Buffers& buffers,
             cudaStream_t stream) {
  PrepareArguments a{};
  a.out = static_cast<const Bf16*>(call.out), a.d_out = static_cast<const Bf16*>(call.d_out);
  a.lse = call.lse, a.lo = call.lo, a.hi = call.hi;
  a.counters = buffers.counters, a.lse2 = buffers.lse2, a.delta = buffers.delta;
  a.query_begin = buffers.query_begin, a.query_end = buffers.query_end;
  a.tokens = static_cast<int>(call.sizes.tokens), a.heads = static_cast<int>(call.sizes.heads);
  a.stride = static_cast<int>(plan.stride);
  const std::int64_t threads = plan.stride * call.sizes.heads * 32;
  prepare_kernel<<<static_cast<unsigned>(threads / kPrepareThreads), kPrepareThreads, 0, stream>>>(a);
  launched("AttentionBackward");
}

void launch_keys(const Attention256Backward& call, const Attention256Scratch& plan, const Buffers& buffers,
                 cudaStream_t stream) {
  const AttentionSizes& z = call.sizes;
  KeyArguments a{};
  a.q = tile_map(call.q, z.tokens, z.heads), a.d_out = tile_map(call.d_out, z.tokens, z.heads);
  a.k = tile_map(call.k, z.tokens, z.kv_heads), a.v = tile_map(call.v, z.tokens, z.kv_heads);
  a.lse2 = buffers.lse2, a.delta = buffers.delta;
  a.query_begin = buffers.query_begin, a.query_end = buffers.query_end;
  a.d_k = static_cast<Bf16*>(call.d_k), a.d_v = static_cast<Bf16*>(call.d_v);
  a.counter = buffers.counters;
  a.tokens = static_cast<int>(z.tokens), a.heads = static_cast<int>(z.heads);
  a.kv_heads = static_cast<int>(z.kv_heads), a.group = a.heads / a.kv_heads;
  a.stride = static_cast<int>(plan.stride);
  a.items = (a.tokens + kTile - 1) / kTile * a.kv_heads;
  launch_persistent("AttentionBackward", key_kernel, a, a.items, sizeof(KeyShared), stream);
}

void launch_queries(const Attention256Backward& call, const Attention256Scratch& plan, const Buffers& buffers,
                    cudaStream_t stream) {
  const AttentionSizes& z = call.sizes;
  QueryArguments a{};
  a.q = tile_map(call.q, z.tokens, z.heads), a.d_out = tile_map(call.d_out, z.tokens, z.heads);
  a.k = tile_map(call.k, z.tokens, z.kv_heads), a.v = tile_map(call.v, z.tokens, z.kv_heads);
  a.lo = call.lo, a.hi = call.hi;
  a.lse2 = buffers.lse2, a.delta = buffers.delta;
  a.d_q = static_cast<Bf16*>(call.d_q);
  a.counter = buffers.counters + 1;
  a.stride = static_cast<int>(plan.stride);
  a.queries = Queries(call.sizes);
  launch_persistent("AttentionBackward", query_kernel, a, a.queries.items, sizeof(QueryShared), stream);
}

}  // namespace

}  // namespace attention256

void attention256_backward(const Attention256Backward& call, cudaStream_t stream) {
  using namespace attention256;
  if (call.sizes.tokens == 0) return;
  const Attention256Scratch plan = attention256_backward_scratch(call.sizes);
  const Buffers buffers(call.scratch, plan);
  prepare(call, plan, buffers, stream);
  launch_keys(call, plan, buffers, stream);
  launch_queries(call, plan, buffers, stream);
}

}  // namespace lapidary
