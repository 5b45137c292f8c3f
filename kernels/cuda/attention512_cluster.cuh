// What both kernels for head dimension 512 share: positions in rings, the tickets by which clusters take work
// from a counter, and the way results leave.
#pragma once
#include "kernels/cuda/attention512_plan.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary::attention512 {

constexpr int kDim = kAttention512Dim;
constexpr int kCtas = 2;  ///< of a cluster
constexpr float kLog2e = 1.4426950408889634f;

/// A position in a ring of `kSize`.
template <int kSize>
struct Cursor {
  int slot = 0;
  std::uint32_t phase = 0;
  __device__ void next() {
    if (++slot == kSize) slot = 0, phase ^= 1;
  }
};

/// Numbers from a counter in global memory, each for a whole cluster: its first CTA takes them and tells the
/// others.
struct TicketBox {
  int ticket[2];
  alignas(8) std::uint64_t full[2], empty[2];

  __device__ void init() {
    for (int i = 0; i < 2; ++i) {
      hopper::barrier_init(hopper::shared_address(&full[i]), 1);
      hopper::barrier_init(hopper::shared_address(&empty[i]), kCtas);
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
    hopper::wait_cluster(hopper::shared_address(&box.empty[given.slot]), given.phase ^ 1);
    const int ticket = atomicAdd(counter, 1);
    for (std::uint32_t r = 0; r < kCtas; ++r) {
      hopper::store_at(hopper::shared_address(&box.ticket[given.slot]), r, ticket);
      hopper::arrive_release_at(hopper::shared_address(&box.full[given.slot]), r);
    }
    given.next();
  }

  /// The next ticket, for a whole warp.
  __device__ int take() {
    hopper::wait_cluster(hopper::shared_address(&box.full[taken.slot]), taken.phase);
    const int ticket = *static_cast<volatile int*>(&box.ticket[taken.slot]);
    __syncwarp();
    if (lane == 0) hopper::arrive_release_at(hopper::shared_address(&box.empty[taken.slot]), 0);
    taken.next();
    return ticket;
  }
};

__device__ inline uint4 load_shared(std::uint32_t shared) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(shared)
               : "memory");
  return x;
}

/// Stores a warp's 16 rows of 256 sums, times a factor for each of the thread's two, at rows [row, row + 16)
/// and columns from `column` on of x [rows, kDim], by way of 2 KiB of shared memory that are the warp's own.
__device__ inline void store_rows(std::uint32_t panel, const float (&sum)[128], const float (&factor)[2],
                                  Bf16* x, int row, int rows, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  row += lane / 8;
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    __syncwarp();
    hopper::store_panel(panel, sum, block, factor);
    __syncwarp();
    Bf16* const to = x + static_cast<std::int64_t>(row) * kDim + column + block * 64 + lane % 8 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row + i * 4 < rows)
        *reinterpret_cast<uint4*>(to + i * 4 * kDim) =
            load_shared(panel + hopper::swizzle128(i * 512 + lane * 16));
    }
  }
}

/// Streaming multiprocessors of the current device.
inline int processors() {
  int device = 0, count = 0;
  cuda_ok(cudaGetDevice(&device), "cudaGetDevice");
  cuda_ok(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "counting SMs");
  return count;
}

}  // namespace lapidary::attention512
