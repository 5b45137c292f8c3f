// What the kernels for head dimension 512 share.
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

}  // namespace lapidary::attention512
