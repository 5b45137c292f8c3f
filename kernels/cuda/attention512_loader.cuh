// The loading warp of the backward for head dimension 512: takes tasks, waits for what they read, and brings
// it into the ring that the computing warpgroups empty.
#pragma once
#include "kernels/cuda/attention512_tasks.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary::attention512 {

using namespace hopper;

constexpr int kStages = 4;
constexpr int kStageA = kTile * 64 * 2, kStageB = kKeyTile * 64 * 2, kStage = kStageA + kStageB;

/// Numbers from a counter in global memory, each for a whole cluster: its first CTA takes them and tells the
/// others.
struct TicketBox {
  int ticket[2];
  alignas(8) std::uint64_t full[2], empty[2];

  __device__ void init() {
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&full[i]), 1);
      barrier_init(shared_address(&empty[i]), kCtas);
    }
  }
};
struct Tickets {
  TicketBox& box;
  int* counter;
  const int rank, lane;
  Cursor<2> taken, given;

  /// Sends for the cluster's next ticket; at most two may be on their way.
  __device__ void fetch() {
    if (rank != 0 || lane != 0) return;
    wait_cluster(shared_address(&box.empty[given.slot]), given.phase ^ 1);
    const int ticket = atomicAdd(counter, 1);
    for (std::uint32_t r = 0; r < kCtas; ++r) {
      store_at(shared_address(&box.ticket[given.slot]), r, ticket);
      arrive_release_at(shared_address(&box.full[given.slot]), r);
    }
    given.next();
  }

  /// The next ticket, for a whole warp.
  __device__ int take() {
    wait_cluster(shared_address(&box.full[taken.slot]), taken.phase);
    const int ticket = *static_cast<volatile int*>(&box.ticket[taken.slot]);
    __syncwarp();
    if (lane == 0) arrive_release_at(shared_address(&box.empty[taken.slot]), 0);
    taken.next();
    return ticket;
  }
};

struct Shared {
  alignas(1024) std::byte ring[kStages][kStage];
  alignas(1024) std::byte staging[2][kPanel];  ///< by warpgroup: panels on their way out
  Task task[2];
  TicketBox tickets;
  alignas(8) std::uint64_t full[kStages], empty[kStages], task_full[2], task_empty[2];
};

/// The operands as TMA sees them. Suffix 2: rows of 64 columns; 3: blocks of 64 columns of 64 rows.
struct Maps {
  CUtensorMap q2, d_out2, k2, v2, q3, d_out3, k3;
};

/// The loading warp. Every lane takes part in decoding; lane 0 issues.
struct Loader {
  const Maps& maps;
  const Problem& z;
  Shared& shared;
  const int rank, lane;
  Tickets tickets;
  Cursor<kStages> stage;
  Cursor<2> task;

  __device__ Loader(const Maps& m, const Problem& problem, Shared& memory)
      : maps(m),
        z(problem),
        shared(memory),
        rank(static_cast<int>(cluster_rank())),
        lane(static_cast<int>(threadIdx.x) % 32),
        tickets{memory.tickets, problem.counters.ticket, rank, lane, {}, {}} {}

  __device__ void post(const Task& t) {
    if (lane == 0) {
      wait(shared_address(&shared.task_empty[task.slot]), task.phase ^ 1);
      shared.task[task.slot] = t;
      arrive(shared_address(&shared.task_full[task.slot]));
    }
    task.next();
  }

  /// What step `s` of a task reads: this CTA's part of the first operand, and its half of the second for
  /// both.
  __device__ void load_step(const Task& t, int s, std::uint32_t a, std::uint32_t b, std::uint32_t full) {
    constexpr std::uint16_t kAll = (1 << kCtas) - 1;
    const std::uint32_t half = b + rank * (kStageB / kCtas);
    if (t.kind == Kind::scores) {
      const bool second = s >= kDim / 64;  // d_out v^T after q k^T
      const int column = s % (kDim / 64) * 64;
      tma_load(a, second ? maps.d_out2 : maps.q2, Box(column, t.row), full);
      tma_load_multicast(half, second ? maps.v2 : maps.k2, Box(column, t.key + rank * (kKeyTile / kCtas)),
                         full, kAll);
    } else if (t.kind == Kind::d_q) {
      const int panel = t.first_step + s;
      bulk_load(a, z.tile(t.slot, true, panel, t.box), kStageA, full);
      tma_load_multicast(half, maps.k3, Box(0, t.key + panel * 64, t.half * 4 + rank * 2), full, kAll);
    } else {
      const int box = t.first_step + s;
      for (int i = 0; i < 2; ++i)
        bulk_load(a + i * kPanel, z.tile(t.slot, t.kind == Kind::d_k, t.panel + i, box), kPanel, full);
      tma_load_multicast(half, t.kind == Kind::d_k ? maps.q3 : maps.d_out3,
                         Box(0, t.row + box * 64, t.half * 4 + rank * 2), full, kAll);
    }
  }

  __device__ void load_task(const Task& t) {
    // The next ticket is taken late: one that waits here keeps others waiting.
    const int fetch_at = max(t.steps - kStages, 0);
    if (t.steps == 0) tickets.fetch();
    if (lane == 0) {
      fence_async();  // what other CTAs wrote, and this thread has seen, before TMA reads it
      for (int s = 0; s < t.steps; ++s) {
        if (s == fetch_at) tickets.fetch();
        wait(shared_address(&shared.empty[stage.slot]), stage.phase ^ 1);
        const std::uint32_t full = shared_address(&shared.full[stage.slot]),
                            a = shared_address(shared.ring[stage.slot]);
        arrive_expect(full, kStage);
        load_step(t, s, a, a + kStageA, full);
        stage.next();
      }
    }
    __syncwarp();
  }

  __device__ void run() {
    Walk walk(z);
    tickets.fetch();
    while (walk.seek(tickets.take())) {
      Task t = walk.task(rank, lane);
      if (t.kind == Kind::nothing) {
        if (rank == 0 && lane == 0) add_relaxed(z.counters.scores_done + t.block, kScoreSignals);
        tickets.fetch();
        continue;
      }
      if (lane == 0) walk.wait_for_inputs(t);
      __syncwarp();
      post(t);
      load_task(t);
    }
    Task end{};
    end.kind = Kind::end;
    post(end);
  }
};

}  // namespace lapidary::attention512
