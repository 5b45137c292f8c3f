// What the threads of the forward of attention with heads of 256 components share, and those that do not
// multiply: one warp takes items of work, one thread loads tiles, one stores results.
//
// Seven tiles fill the shared memory: two stages of keys, two of values, and three that go round for queries.
// While the warpgroups work on an item, two of the three hold its queries and the third takes those of the
// next item's first warpgroup; the next item's second warpgroup follows where the first one's were. The
// tile of an item's second warpgroup then serves the results of both, in turn, on their way to memory.
#pragma once
#include "kernels/cuda/attention256.cuh"

namespace lapidary::attention256 {

struct ForwardArguments {
  CUtensorMap q, k, v, stored;
  const std::int32_t *lo, *hi;
  Bf16* out;  ///< as `stored`
  float* lse;
  int* counter;
  Queries queries;
};

/// An item of work, or the end of all, which has a negative token.
struct ForwardItem {
  int begin, end;              ///< keys
  int token[2], head[2], kv;   ///< of either warpgroup
  int all_from[2], all_to[2];  ///< keys that all queries of a warpgroup see
  __device__ bool ended() const { return token[0] < 0; }
  __device__ int tiles() const { return tiles_of(Work{0, begin, end}); }
};

/// Items on their way from the warp that takes them to those who work on them.
struct ForwardItems {
  static constexpr int kDepth = 4;
  static constexpr int kReaders = kConsumers + 2;  ///< every consumer, who loads tiles, who stores results
  Barrier full[kDepth], empty[kDepth];
  Barrier wanted;  ///< the next item is to be taken
  ForwardItem item[kDepth];

  __device__ void init() {
    for (int i = 0; i < kDepth; ++i) {
      hopper::barrier_init(at(&full[i]), 1);
      hopper::barrier_init(at(&empty[i]), kReaders);
    }
    hopper::barrier_init(at(&wanted), 1);
  }
};

/// Barriers of queries and results have one instance for each of three items in a row: a warpgroup may be an
/// item ahead of the other, and nobody may miss a phase that he waits for.
struct ForwardShared {
  static constexpr int kStages = 2, kQueries = 3;
  static constexpr int kPieces = 2;  ///< in which results leave, so that one is written while one is read
  static constexpr std::uint32_t kPieceBytes = kTileBytes / kPieces;
  Tile q[kQueries], k[kStages], v[kStages];
  Barrier q_full[2][kQueries], q_empty[kQueries];
  Barrier k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  Barrier room[2][kQueries][kPieces];     ///< for the results of a warpgroup
  Barrier written[2][kQueries][kPieces];  ///< they are
  ForwardItems items;

  __device__ void init() {
    constexpr int kWarps = kConsumers / 32;
    for (int i = 0; i < kQueries; ++i) {
      hopper::barrier_init(at(&q_empty[i]), kWarps / 2);
      for (int w = 0; w < 2; ++w) hopper::barrier_init(at(&q_full[w][i]), 1);
      for (int piece = 0; piece < kPieces; ++piece) {
        hopper::barrier_init(at(&room[0][i][piece]), kWarps / 2);
        hopper::barrier_init(at(&room[1][i][piece]), 1);
        for (int w = 0; w < 2; ++w) hopper::barrier_init(at(&written[w][i][piece]), kWarps / 2);
      }
    }
    for (int i = 0; i < kStages; ++i) {
      hopper::barrier_init(at(&k_full[i]), 1);
      hopper::barrier_init(at(&v_full[i]), 1);
      hopper::barrier_init(at(&k_empty[i]), kWarps);
      hopper::barrier_init(at(&v_empty[i]), kWarps);
    }
    items.init();
    hopper::fence_barrier_init();
  }
};

/// Counts items: `stage` is the instance of their barriers.
using ForwardTurn = Ring<ForwardShared::kQueries>;

/// The tile of a warpgroup's queries: they go round in the order of items and warpgroups.
__device__ inline std::uint32_t query_tile(const ForwardTurn& item, int warpgroup) {
  const std::uint32_t tile = 2 * item.stage + static_cast<std::uint32_t>(warpgroup);
  return tile < 3 ? tile : tile == 3 ? 0 : tile - 3;
}

// ------------------------------------------------------------------------------------------ taking items

/// The item in a place of the order of work.
__device__ inline ForwardItem forward_item(const ForwardArguments& a, int place) {
  ForwardItem item{};
  item.token[0] = -1;
  if (place >= a.queries.items) return item;
  const QueryItem queries(a.queries, KeyBounds::number(a.queries, place));
  const int tokens = a.queries.tokens;
  item.kv = queries.kv;
  item.begin = a.lo[queries.token];
  item.end = a.hi[min(queries.token + queries.tokens, tokens) - 1];
  for (int i = 0; i < 2; ++i) {
    item.token[i] = queries.token_of(i), item.head[i] = queries.head_of(i);
    item.all_from[i] = a.lo[min(item.token[i] + kTile, tokens) - 1];
    item.all_to[i] = a.hi[min(item.token[i], tokens - 1)];
  }
  return item;
}

/// Zeros and logs of -infinity at the queries of an item without keys: for one warp.
__device__ inline void store_nothing(const ForwardArguments& a, const ForwardItem& item) {
  const int tokens = a.queries.tokens;
  for (int i = 0; i < 2; ++i) {
    store_zeros(a.out, item.token[i], tokens, item.head[i], a.queries.heads, 0, 1);
    float* lse = a.lse + static_cast<std::int64_t>(item.head[i]) * tokens;
    for (int row = item.token[i] + static_cast<int>(threadIdx.x) % 32;
         row < min(item.token[i] + kTile, tokens); row += 32)
      lse[row] = -INFINITY;
  }
}

/// Takes items from the counter, which a block's first is not from, each when it is wanted: for one warp. An
/// item that one block has taken is one that another can not begin, and the blocks shall end together.
__device__ inline void take_items(const ForwardArguments& a, ForwardItems& items) {
  const bool leader = threadIdx.x % 32 == 0;
  Ring<ForwardItems::kDepth> ring;
  Ring<1> wanted;
  for (int place = static_cast<int>(blockIdx.x);;) {
    const ForwardItem item = forward_item(a, place);
    if (!item.ended() && item.tiles() == 0) {
      store_nothing(a, item);
    } else {
      hopper::wait(at(&items.empty[ring.stage]), ring.parity ^ 1);
      if (leader) {
        items.item[ring.stage] = item;
        hopper::arrive(at(&items.full[ring.stage]));
      }
      ring.next();
      if (item.ended()) return;
      hopper::wait(at(&items.wanted), wanted.parity);
      wanted.next();
    }
    if (leader) place = static_cast<int>(gridDim.x) + atomicAdd(a.counter, 1);
    place = uniform(place);
  }
}

/// The next item, or the end: for one thread.
__device__ inline ForwardItem next_item(ForwardItems& items, Ring<ForwardItems::kDepth>& ring) {
  hopper::wait(at(&items.full[ring.stage]), ring.parity);
  const ForwardItem item = items.item[ring.stage];
  hopper::arrive(at(&items.empty[ring.stage]));
  ring.next();
  return item;
}

// ----------------------------------------------------------------------------------------- loading tiles

/// The thread that loads tiles, in the order in which their stages become free: keys a tile ahead of values.
struct ForwardLoads {
  /// Tiles of an item that are still to be loaded when the next one is wanted: an atomic, bounds and the
  /// first loads take some 5,000 cycles, a tile 2,100.
  static constexpr int kAhead = 4;
  const ForwardArguments& a;
  ForwardShared& s;
  Ring<ForwardItems::kDepth> items;
  ForwardTurn turn;
  Ring<ForwardShared::kQueries> q;
  Ring<ForwardShared::kStages> k, v;

  __device__ ForwardItem take() {
    const ForwardItem item = next_item(s.items, items);
    if (!item.ended() && item.tiles() < kAhead) hopper::arrive(at(&s.items.wanted));
    return item;
  }
  __device__ void load_q(const ForwardItem& item, int warpgroup) {
    const Barrier& full = s.q_full[warpgroup][turn.stage];
    hopper::wait(at(&s.q_empty[q.stage]), q.parity ^ 1);
    hopper::arrive_expect(at(&full), kTileBytes);
    load_tile(s.q[q.stage], a.q, item.token[warpgroup], item.head[warpgroup], full);
    q.next();
    if (warpgroup == 1) turn.next();
  }
  __device__ void load_k(const ForwardItem& item, int key) {
    hopper::wait(at(&s.k_empty[k.stage]), k.parity ^ 1);
    hopper::arrive_expect(at(&s.k_full[k.stage]), kTileBytes);
    load_tile(s.k[k.stage], a.k, key, item.kv, s.k_full[k.stage]);
    k.next();
  }
  __device__ void load_v(const ForwardItem& item, int key) {
    hopper::wait(at(&s.v_empty[v.stage]), v.parity ^ 1);
    hopper::arrive_expect(at(&s.v_full[v.stage]), kTileBytes);
    load_tile(s.v[v.stage], a.v, key, item.kv, s.v_full[v.stage]);
    v.next();
  }

  __device__ void run() {
    ForwardItem item = take();
    if (item.ended()) return;
    load_k(item, item.begin);
    load_q(item, 0);
    load_q(item, 1);
    for (;;) {
      int key = item.begin;
      for (int left = item.tiles(); left > 1; --left, key += kTile) {
        if (left == kAhead) hopper::arrive(at(&s.items.wanted));
        load_k(item, key + kTile);
        load_v(item, key);
      }
      const ForwardItem next = take();
      if (next.ended()) {
        load_v(item, key);
        return;
      }
      load_k(next, next.begin);
      load_q(next, 0);
      load_v(item, key);
      load_q(next, 1);
      item = next;
    }
  }
};

// --------------------------------------------------------------------------------------- storing results

/// Stores what the warpgroups write, the first one's before the second's, and gives the tile back.
__device__ inline void store_results(const ForwardArguments& a, ForwardShared& s) {
  constexpr int kPieces = ForwardShared::kPieces;
  Ring<ForwardItems::kDepth> items;
  ForwardTurn turn;
  for (;;) {
    const ForwardItem item = next_item(s.items, items);
    if (item.ended()) return;
    const std::uint32_t tile = query_tile(turn, 1);
    for (int i = 0; i < 2; ++i)
      for (int piece = 0; piece < kPieces; ++piece) {
        hopper::wait(at(&s.written[i][turn.stage][piece]), turn.parity);
        hopper::tma_store(a.stored, hopper::Box(0, item.token[i], 4 / kPieces * piece, item.head[i]),
                          at(&s.q[tile]) + piece * ForwardShared::kPieceBytes);
        hopper::bulk_commit();
        hopper::bulk_wait_read<0>();
        if (i == 0) hopper::arrive(at(&s.room[1][turn.stage][piece]));
      }
    // As often as the warps of a warpgroup do.
    for (int i = 0; i < kConsumers / 64; ++i) hopper::arrive(at(&s.q_empty[tile]));
    turn.next();
  }
}

}  // namespace lapidary::attention256
