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
constexpr int kTaskSlots = 3;  ///< tasks that are under way in a CTA, from scheduling on to telling
/// Steps before the end of a task when the loader wants the next. Of tasks that have no more the next is
/// taken at once.
constexpr int kWantedAhead = 5;

struct Shared {
  alignas(1024) std::byte ring[kStages][kStage];
  alignas(1024) std::byte staging[2][kPanel];  ///< by warpgroup: panels on their way out
  StatisticsBuffers statistics;
  Task task[kTaskSlots];
  TicketBox tickets;
  alignas(8) std::uint64_t full[kStages], empty[kStages];
  std::uint64_t task_full[kTaskSlots], task_empty[kTaskSlots], task_done[kTaskSlots];

  __device__ void init() {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared_address(&full[i]), 1);
      barrier_init(shared_address(&empty[i]), 2 * kCtas);
    }
    for (int i = 0; i < kTaskSlots; ++i) {
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

/// The scheduling warp.
struct Scheduler {
  const Problem& z;
  Shared& shared;
  const int rank, lane;
  Tickets tickets;
  Cursor<kTaskSlots> task;

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
    const int tasks = *z.counters.tasks;
    tickets.fetch();
    for (int ticket; (ticket = tickets.take()) < tasks;) {
      const Task t = z.task(ticket);
      const bool soon = t.steps() <= kWantedAhead;
      if (soon) tickets.send();
      if (t.kind == Kind::nothing) {
        if (rank == 0 && lane == 0) add_relaxed(z.counters.scores_done + t.block, kCtas);
      } else {
        if (lane == 0) z.wait_for_inputs(t);
        __syncwarp();
        post(t);
      }
      if (!soon) {
        tickets.wait_for_wish();
        tickets.send();
      }
      tickets.deliver();
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
  const int rank;
  Cursor<kTaskSlots> task;

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
        for (int group = 0; group < 2; ++group) {
          const Part part(z, t, rank, group);
          if (part.valid) store_relaxed(z.counters.flag(t.kind, part.unit), part.set);
        }
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
  Cursor<kTaskSlots> task;

  __device__ Loader(const Maps& m, const Problem& problem, Shared& memory)
      : maps(m), z(problem), shared(memory), rank(static_cast<int>(cluster_rank())) {}

  /// What step `s` of a task reads: this CTA's part of the first operand, and its half of the second for
  /// both. Of few keys, the first CTA brings all.
  __device__ void load_step(const Task& t, int s, std::uint32_t a, std::uint32_t b, std::uint32_t full) {
    constexpr std::uint16_t kAll = (1 << kCtas) - 1;
    constexpr int kHalf = kStageB / kCtas;
    const std::uint32_t half = b + rank * kHalf;
    if (t.kind == Kind::scores) {
      const bool second = s >= kDim / 64,
                 wide = t.to[0] - t.from[0] > kPanels / kCtas;  // d_out v^T after q k^T
      const int column = s % (kDim / 64) * 64, key = t.key + t.from[0] * 64;
      arrive_expect(full, kStageA + (wide ? kStageB : kHalf));
      tma_load(a, second ? maps.d_out2 : maps.q2, Box(column, t.row(rank)), full);
      if (wide || rank == 0)
        tma_load_multicast(half, second ? maps.v2 : maps.k2, Box(column, key + rank * (kKeyTile / kCtas)),
                           full, kAll);
    } else if (t.kind == Kind::d_q) {
      const int panel = t.first_step() + s;
      arrive_expect(full, kStage);
      bulk_load(a, z.tile(t.slot, true, panel, t.box(rank)), kStageA, full);
      tma_load_multicast(half, maps.k3, Box(0, t.key + panel * 64, t.half * 4 + rank * 2), full, kAll);
    } else {
      const int box = t.first_step() + s;
      bool reads[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int panel = Task::panel(rank, i);
        reads[i] = box >= t.from[panel] && box < t.to[panel];
      }
      arrive_expect(full, kStageB + (reads[0] ? kPanel : 0) + (reads[1] ? kPanel : 0));
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (reads[i])
          bulk_load(a + i * kPanel,
                    z.tile(t.slot, t.kind == Kind::d_k, t.place * kPanels + Task::panel(rank, i), box),
                    kPanel, full);
      tma_load_multicast(half, t.kind == Kind::d_k ? maps.q3 : maps.d_out3,
                         Box(0, t.chunk_row + box * 64, t.half * 4 + rank * 2), full, kAll);
    }
  }

  __device__ void load_task(const Task& t) {
    const int steps = t.steps();
    for (int s = 0; s < steps; ++s) {
      if (s == steps - kWantedAhead - 1) shared.tickets.want(rank);
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
