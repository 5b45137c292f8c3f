// Launches of kernels that begin while the one before them in their stream ends.
#pragma once
#include <cuda_runtime.h>

#include "kernels/cuda/check.h"

namespace lapidary {

/// Starts a kernel whose blocks come as soon as all of the kernel before have called launch_dependents or
/// ended. Before it reads or overwrites what that one uses it calls wait_for_previous
/// (kernels/cuda/hopper.cuh).
template <class... Parameters, class... Arguments>
void launch_dependent(const char* op, void (*kernel)(Parameters...), dim3 blocks, int threads,
                      std::size_t shared, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute, config.numAttrs = 1;
  cuda_ok(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), op);
}

}  // namespace lapidary
