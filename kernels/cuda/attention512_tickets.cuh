// How the clusters of the kernels for head dimension 512 share out their work.
#pragma once
#include "kernels/cuda/attention512_cluster.cuh"

namespace lapidary::attention512 {

/// Two tickets on their way to this CTA; `empty` and `wanted` are used in the cluster's first CTA only.
struct TicketBox {
  int ticket[2];
  alignas(8) std::uint64_t full[2], empty[2], wanted;

  __device__ void init() {
    for (int i = 0; i < 2; ++i) {
      hopper::barrier_init(hopper::shared_address(&full[i]), 1);
      hopper::barrier_init(hopper::shared_address(&empty[i]), kCtas);
    }
    hopper::barrier_init(hopper::shared_address(&wanted), 1);
  }

  /// Asks for the next ticket: called by the thread that loads, once for each that it works on. Late, when it
  /// has little left to do: what a busy cluster has reserved the others wait for.
  __device__ void want(int rank) {
    if (rank == 0) hopper::arrive(hopper::shared_address(&wanted));
  }
};

/// A warp's hold on a counter in global memory whose numbers are each for a whole cluster: its first CTA
/// takes them and tells the other.
struct Tickets {
  TicketBox& box;
  int* counter;
  const int rank, lane;
  Cursor<2> given = {}, taken = {};
  std::uint32_t wishes = 0;
  int sent = 0;

  /// Sends for the cluster's next ticket. Nobody waits for it before deliver().
  __device__ void send() {
    if (rank == 0 && lane == 0) sent = atomicAdd(counter, 1);
  }

  /// Gives both CTAs the ticket that was sent for.
  __device__ void deliver() {
    if (rank == 0 && lane == 0) {
      hopper::wait(hopper::shared_address(&box.empty[given.slot]), given.phase ^ 1);
      for (std::uint32_t r = 0; r < kCtas; ++r) {
        hopper::store_at(hopper::shared_address(&box.ticket[given.slot]), r, sent);
        hopper::arrive_release_at(hopper::shared_address(&box.full[given.slot]), r);
      }
      given.next();
    }
    __syncwarp();
  }

  __device__ void fetch() {
    send();
    deliver();
  }

  /// Until the loading thread wants the next ticket.
  __device__ void wait_for_wish() {
    if (rank == 0 && lane == 0) hopper::wait(hopper::shared_address(&box.wanted), wishes);
    wishes ^= 1;
  }

  __device__ void fetch_when_wanted() {
    wait_for_wish();
    fetch();
  }

  __device__ int take() {
    const std::uint32_t full = hopper::shared_address(&box.full[taken.slot]);
    hopper::wait_cluster(full, taken.phase);
    const int ticket = *static_cast<volatile int*>(&box.ticket[taken.slot]);
    __syncwarp();
    if (lane == 0) hopper::arrive_at(hopper::shared_address(&box.empty[taken.slot]), 0);
    taken.next();
    return ticket;
  }
};

}  // namespace lapidary::attention512
