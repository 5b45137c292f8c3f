// How many blocks a persistent kernel needs.
#pragma once
#include <cuda_runtime.h>

#include "kernels/cuda/check.h"

namespace lapidary {

/// Streaming multiprocessors of this process's GPU.
inline int processors() {
  static const int count = [] {
    int device = 0, found = 0;
    cuda_ok(cudaGetDevice(&device), "asking for the device");
    cuda_ok(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device),
            "counting multiprocessors");
    return found;
  }();
  return count;
}

}  // namespace lapidary
