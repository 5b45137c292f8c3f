// A counter in device memory from which the blocks of a persistent kernel take their items.
#pragma once
#include <cuda_runtime.h>

namespace lapidary {

/// Sets it to 0, in a kernel of its own: what follows may be a dependent launch, whose blocks come without a
/// gap, as they would not behind a memset. `op` names the operation in an Error.
void reset_work_counter(const char* op, int* counter, cudaStream_t stream);

}  // namespace lapidary
