#include "kernels/cuda/work_counter.h"

#include "kernels/cuda/dependent_launch.h"
#include "kernels/cuda/hopper.cuh"

namespace lapidary {

namespace {

__global__ void reset_kernel(int* counter) {
  hopper::follow_previous();
  *counter = 0;
}

}  // namespace

void reset_work_counter(const char* op, int* counter, cudaStream_t stream) {
  launch_dependent(op, reset_kernel, 1, 1, 0, stream, counter);
}

}  // namespace lapidary
