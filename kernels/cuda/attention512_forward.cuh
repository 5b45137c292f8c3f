// The loading warpgroup of the forward for head dimension 512. A warp that schedules takes items from a
// counter and finds their keys; a thread that loads keeps TMA ahead of the computing warpgroups.
#pragma once
#include "kernels/cuda/attention512_cluster.cuh"
#include "kernels/cuda/attention512_tickets.cuh"

namespace lapidary::attention512::forward {

using namespace hopper;

constexpr int kRows = 64, kKeys = 128;
constexpr int kBox = 64 * 64 * 2;  ///< bytes of 64 rows of 64 bf16
constexpr int kStage = 2 * kBox;   ///< 64 columns of 128 keys, or 16 values
/// Stages of a tile's keys, and of its values: as many as the ring has, so that a step's place in it and the
/// parity of its turn are constants.
constexpr int kSteps = kDim / 64;
constexpr int kThreads = 3 * 128;  ///< a warpgroup that loads, two that compute
constexpr int kConsumerWarps = 8;
/// 128 rows, 64 of each CTA, and the keys that some of them sees, in tiles of kKeys from `begin`.
struct Item {
  int first_row;  ///< of this CTA; negative: no more
  int begin, count;
  int last_steps;  ///< stages of the last tile's values, two or more: keys behind the last visible one are
                   ///< left out
  /// The last tile's scores: of its second 64 keys nobody sees any.
  __device__ bool half(int tile) const { return tile == count - 1 && last_steps <= kKeys / 2 / 16; }
  int all_lo, all_hi;  ///< keys that every row of the CTA sees
};

struct Shared {
  alignas(1024) std::byte q[kSteps * kBox];
  /// Probabilities [64, 128] of the tile whose values are multiplied and of the next; in between results on
  /// their way out.
  alignas(1024) std::byte p[2][2 * kBox];
  alignas(1024) std::byte ring[kSteps * kStage];
  float most[2][kRows], sum[2][2][kRows];  ///< by warpgroup; sums by the parity of the item too
  Item item[2];
  TicketBox tickets;
  alignas(8) std::uint64_t full[kSteps], empty[kSteps], q_full[kSteps], item_full[2], item_empty[2];

  __device__ void init() {
    for (int i = 0; i < kSteps; ++i) {
      barrier_init(shared_address(&full[i]), 1);
      barrier_init(shared_address(&empty[i]), 2 * kCtas);
      barrier_init(shared_address(&q_full[i]), 1);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&item_full[i]), 1);
      barrier_init(shared_address(&item_empty[i]), kConsumerWarps + 1);
    }
    tickets.init();
    fence_barrier_init();
  }
};
constexpr int kSharedBytes = sizeof(Shared) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

struct Problem : Rows {
  const std::int32_t *lo, *hi;
  float* lse;
  int* counter;
  __device__ int clusters() const { return (rows() + kCtas * kRows - 1) / (kCtas * kRows); }
};

/// The scheduling warp.
struct Scheduler {
  const Problem& z;
  Shared& shared;
  const int rank, lane;
  Tickets tickets;
  Cursor<2> at;

  __device__ Scheduler(const Problem& problem, Shared& memory)
      : z(problem),
        shared(memory),
        rank(static_cast<int>(cluster_rank())),
        lane(static_cast<int>(threadIdx.x) % 32),
        tickets{memory.tickets, problem.counter, rank, lane} {}

  __device__ Item item_of(int ticket) const {
    // The last rows, which see the most keys where the mask is causal, go first.
    const int row = (z.clusters() - 1 - ticket) * kCtas * kRows;
    if (row < 0) return {-1, 0, 0, 0, 0, 0};
    const int mine = row + rank * kRows;
    const int begin = z.lo[z.token_of(row)], end = z.hi[z.token_of(row + kCtas * kRows - 1)];
    const bool whole = mine + kRows <= z.rows();
    const int all_lo = z.lo[z.token_of(mine + kRows - 1)], all_hi = z.hi[z.token_of(mine)];
    const int keys = max(end - begin, 1), count = (keys + kKeys - 1) / kKeys;
    return {mine, begin, count, (keys - (count - 1) * kKeys + 31) / 32 * 2, all_lo, whole ? all_hi : 0};
  }

  __device__ void run() {
    // The first is that of the cluster's number, the others come from the counter.
    const int clusters = static_cast<int>(gridDim.x) / kCtas;
    for (int ticket = static_cast<int>(blockIdx.x) / kCtas;; ticket = clusters + tickets.take()) {
      const Item item = item_of(ticket);
      if (lane == 0) {
        wait(shared_address(&shared.item_empty[at.slot]), at.phase ^ 1);
        shared.item[at.slot] = item;
        arrive(shared_address(&shared.item_full[at.slot]));
      }
      __syncwarp();
      at.next();
      if (item.first_row < 0) return;
      tickets.fetch_when_wanted();
    }
  }
};

/// The loading thread: every box of keys and values goes to both CTAs, each of which fetches half.
struct Loader {
  const CUtensorMap &q, &k, &v;
  Shared& shared;
  const int rank;
  static constexpr std::uint16_t kAll = (1 << kCtas) - 1;
  Cursor<2> at;
  std::uint32_t phase = 0;
  int value_key = 0, value_steps = 0;  ///< whose values are still to be loaded

  __device__ Item next_item() {
    wait(shared_address(&shared.item_full[at.slot]), at.phase);
    const Item item = shared.item[at.slot];
    arrive(shared_address(&shared.item_empty[at.slot]));
    at.next();
    return item;
  }

  __device__ bool item_is_there() const {
    return test_wait(shared_address(&shared.item_full[at.slot]), at.phase);
  }

  /// A box of an item's queries takes the place of one that the item before reads for the last time with
  /// stage i of its last keys: it may come when that stage is free again.
  __device__ void load_queries(int i, int first_row) {
    const std::uint32_t full = shared_address(&shared.q_full[i]);
    arrive_expect(full, kBox);
    tma_load(shared_address(shared.q) + i * kBox, q, Box(i * 64, first_row), full);
  }
  __device__ void wait_empty(int i) { wait(shared_address(&shared.empty[i]), phase ^ 1); }

  /// A stage of this turn of the ring, of `bytes`: nothing is copied where there are none.
  template <class Copy>
  __device__ void stage(int i, int bytes, Copy&& copy) {
    const std::uint32_t full = shared_address(&shared.full[i]);
    if (bytes > 0) {
      arrive_expect(full, bytes);
      copy(shared_address(shared.ring) + i * kStage + rank * kBox, full);
    } else {
      arrive(full);
    }
  }
  /// A turn with a tile's keys, and with queries from query_row on where that is not negative.
  __device__ void load_keys(int key, bool half, int query_row) {
#pragma unroll 1
    for (int i = 0; i < kSteps; ++i) {
      wait_empty(i);
      stage(i, half ? kBox : kStage, [&](std::uint32_t to, std::uint32_t full) {
        if (rank == 0 || !half) tma_load_multicast(to, k, Box(i * 64, key + rank * 64), full, kAll);
      });
      if (query_row >= 0) load_queries(i, query_row);
    }
    phase ^= 1;
  }
  /// The same with the values of the tile before.
  __device__ void load_values(int query_row) {
#pragma unroll 1
    for (int i = 0; i < kSteps; ++i) {
      wait_empty(i);
      stage(i, i < value_steps ? kStage : 0, [&](std::uint32_t to, std::uint32_t full) {
        tma_load_multicast(to, v, Box(0, value_key + i * 16, rank * 4), full, kAll);
      });
      if (query_row >= 0) load_queries(i, query_row);
    }
    phase ^= 1;
  }

  __device__ void run() {
    bool early = false;  // the item's queries were loaded with the values of the item before
    Item item = next_item();
    while (item.first_row >= 0) {
      for (int tile = 0; tile < item.count; ++tile) {
        if (tile == max(item.count - 2, 0)) shared.tickets.want(rank);
        const int key = item.begin + tile * kKeys;
        load_keys(key, item.half(tile), tile == 0 && !early ? item.first_row : -1);
        const bool last = tile == item.count - 1;
        early = last && value_steps > 0 && item_is_there();
        if (value_steps > 0) load_values(early ? shared.item[at.slot].first_row : -1);
        value_key = key, value_steps = last ? item.last_steps : kSteps;
      }
      item = next_item();
    }
    if (value_steps > 0) load_values(-1);
  }
};

}  // namespace lapidary::attention512::forward
