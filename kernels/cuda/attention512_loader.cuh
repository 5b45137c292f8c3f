// The loading warpgroup of the backward for head dimension 512. A warp that schedules takes tasks, finds out
// what they read and waits until it is there; a thread that loads brings it into the ring that the computing
// warpgroups empty.
#pragma once
#include "kernels/cuda/attention512_statistics.cuh"
#include "kernels/cuda/attention512_tasks.cuh"
#include "kernels/cuda/attention512_tickets.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary::attention512 {

using namespace hopper;

constexpr int kStages = 4;
constexpr int kStageA = kTile * 64 * 2, kStageB = kKeyTile * 64 * 2, kStage = kStageA + kStageB;
constexpr int kConsumerWarps = 8;
/// Steps before the end of a task when the loader wants the next: as long as taking and decoding one takes.
constexpr int kWantedAhead = 7;

struct Shared {
  alignas(1024) std::byte ring[kStages][kStage];
  alignas(1024) std::byte staging[2][kPanel];  ///< by warpgroup: panels on their way out
  StatisticsBuffers statistics;
  Task task[2];
  TicketBox tickets;
  alignas(8) std::uint64_t full[kStages], empty[kStages], task_full[2], task_empty[2], task_done[2];

  __device__ void init() {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared_address(&full[i]), 1);
      barrier_init(shared_address(&empty[i]), 2 * kCtas);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&task_full[i]), 1);
      barrier_init(shared_address(&task_empty[i]), kConsumerWarps + 2);
      barrier_init(shared_address(&task_done[i]), kConsumerWarps);
    }
    tickets.init();
    statistics.init();
    fence_barrier_init();
  }
};

/// The operands as TMA sees them. Suffix 2: rows of 64 columns; 3: blocks of 64 columns of 64 rows.
struct Maps {
  CUtensorMap q2, d_out2, k2, v2, q3, d_out3, k3;
  CUtensorMap out_rows, d_out_rows;  ///< for statistics
};

/// The scheduling warp. Every lane takes part in decoding.
struct Scheduler {
  const Problem& z;
  Shared& shared;
  const int rank, lane;
  Tickets tickets;
  Cursor<2> task;

  __device__ Scheduler(const Problem& problem, Shared& memory)
      : z(problem),
        shared(memory),
        rank(static_cast<int>(cluster_rank())),
        lane(static_cast<int>(threadIdx.x) % 32),
        tickets{memory.tickets, problem.counters.ticket, rank, lane} {}

  __device__ void post(const Task& t) {
    if (lane == 0) {
      wait(shared_address(&shared.task_empty[task.slot]), task.phase ^ 1);
      shared.task[task.slot] = t;
      arrive(shared_address(&shared.task_full[task.slot]));
    }
    task.next();
    __syncwarp();
  }

  __device__ void run() {
    Walk walk(z);
    tickets.fetch();
    while (walk.seek(tickets.take())) {
      const Task t = walk.task(rank, lane);
      if (t.kind == Kind::nothing) {
        if (rank == 0 && lane == 0) add_relaxed(z.counters.scores_done + t.block, kCtas);
        tickets.fetch();
        continue;
      }
      if (lane == 0) walk.wait_for_inputs(t);
      __syncwarp();
      post(t);
      tickets.fetch_when_wanted();
    }
    Task end{};
    end.kind = Kind::end;
    post(end);
  }
};

/// A thread that tells the other CTAs what the computing warps have stored: they would have to wait for their
/// stores before.
struct Teller {
  const Problem& z;
  Shared& shared;
  Cursor<2> task;

  __device__ void run() {
    for (;; task.next()) {
      wait(shared_address(&shared.task_full[task.slot]), task.phase);
      const Task& t = shared.task[task.slot];
      if (t.kind == Kind::end) return;
      wait(shared_address(&shared.task_done[task.slot]), task.phase);
      fence_gpu();
      if (t.kind == Kind::scores) {
        add_relaxed(z.counters.scores_done + t.block, 1);
      } else {
        for (const Part& part : t.part)
          if (part.valid) store_relaxed(z.counters.flag(t.kind, part.unit), t.set);
        add_relaxed(z.counters.products_done + t.block, 1);
      }
      arrive(shared_address(&shared.task_empty[task.slot]));
    }
  }
};

/// The loading thread.
struct Loader {
  const Maps& maps;
  const Problem& z;
  Shared& shared;
  const int rank;
  Cursor<kStages> stage;
  Cursor<2> task;

  __device__ Loader(const Maps& m, const Problem& problem, Shared& memory)
      : maps(m), z(problem), shared(memory), rank(static_cast<int>(cluster_rank())) {}

  /// What step `s` of a task reads: this CTA's part of the first operand, and its half of the second for
  /// both. Of few keys, the first CTA brings all.
  __device__ void load_step(const Task& t, int s, std::uint32_t a, std::uint32_t b, std::uint32_t full) {
    constexpr std::uint16_t kAll = (1 << kCtas) - 1;
    constexpr int kHalf = kStageB / kCtas;
    const std::uint32_t half = b + rank * kHalf;
    if (t.kind == Kind::scores) {
      const bool second = s >= kDim / 64, wide = t.panels > kPanels / kCtas;  // d_out v^T after q k^T
      const int column = s % (kDim / 64) * 64;
      arrive_expect(full, kStageA + (wide ? kStageB : kHalf));
      tma_load(a, second ? maps.d_out2 : maps.q2, Box(column, t.row), full);
      if (wide || rank == 0)
        tma_load_multicast(half, second ? maps.v2 : maps.k2, Box(column, t.key + rank * (kKeyTile / kCtas)),
                           full, kAll);
    } else if (t.kind == Kind::d_q) {
      const int panel = t.first_step + s;
      arrive_expect(full, kStage);
      bulk_load(a, z.tile(t.slot, true, panel, t.box), kStageA, full);
      tma_load_multicast(half, maps.k3, Box(0, t.key + panel * 64, t.half * 4 + rank * 2), full, kAll);
    } else {
      const int box = t.first_step + s;
      const bool reads[2] = {s >= t.part[0].from && s < t.part[0].to,
                             s >= t.part[1].from && s < t.part[1].to};
      arrive_expect(full, kStageB + (reads[0] ? kPanel : 0) + (reads[1] ? kPanel : 0));
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (reads[i])
          bulk_load(a + i * kPanel, z.tile(t.slot, t.kind == Kind::d_k, t.part[i].panel, box), kPanel, full);
      tma_load_multicast(half, t.kind == Kind::d_k ? maps.q3 : maps.d_out3,
                         Box(0, t.row + box * 64, t.half * 4 + rank * 2), full, kAll);
    }
  }

  __device__ void load_task(const Task& t) {
    const int want_at = max(t.steps - kWantedAhead, 0);
    if (t.steps == 0) shared.tickets.want(rank);
    for (int s = 0; s < t.steps; ++s) {
      if (s == want_at) shared.tickets.want(rank);
      wait(shared_address(&shared.empty[stage.slot]), stage.phase ^ 1);
      const std::uint32_t full = shared_address(&shared.full[stage.slot]),
                          a = shared_address(shared.ring[stage.slot]);
      load_step(t, s, a, a + kStageA, full);
      stage.next();
    }
  }

  __device__ void run() {
    for (;;) {
      wait(shared_address(&shared.task_full[task.slot]), task.phase);
      const Task t = shared.task[task.slot];
      arrive(shared_address(&shared.task_empty[task.slot]));
      task.next();
      if (t.kind == Kind::end) return;
      fence_async();  // what other CTAs wrote, and the scheduler has seen, before TMA reads it
      load_task(t);
    }
  }
};

}  // namespace lapidary::attention512
