// Attention with heads of 256 components on Hopper, bf16: own kernels (attention256_*.cu). The arguments are
// those of the operations in kernels/ops.h as plain pointers, so that the kernels can be built and timed
// alone.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_plan.h"

namespace lapidary {

struct Attention256Forward {
  AttentionSizes sizes;   ///< dim is 256
  const void *q, *k, *v;  ///< bf16 [N, H, 256], [N, KV, 256] twice; 16-byte aligned
  const std::int32_t *lo, *hi;
  const std::int32_t *host_lo, *host_hi;  ///< the same in host memory; may be null
  void* out;                              ///< bf16 [N, H, 256]
  float* lse;                             ///< [H, N]
  void* scratch;                          ///< kAttention256Scratch bytes
};

struct Attention256Backward {
  AttentionSizes sizes;  ///< dim is 256
  const void *d_out, *q, *k, *v, *out;
  const std::int32_t *lo, *hi;
  const float* lse;
  const std::int32_t *host_lo, *host_hi;  ///< may be null: then nothing is kept for d_q
  void *d_q, *d_k, *d_v;
  void* scratch;  ///< of attention256_backward_scratch
};

void attention256_forward(const Attention256Forward& call, cudaStream_t stream);
void attention256_backward(const Attention256Backward& call, cudaStream_t stream);

}  // namespace lapidary
