// Attention as chunks of cuBLASLt products (attention.cu): every size, in float32 and in bf16.
#pragma once
#include "kernels/ops.h"

namespace lapidary {

/// Scratch: forward_score_bytes and backward_scratch of kernels/cuda/attention_plan.h.
void attention_chunked(Stream& stream, const Attention& op);
void attention_backward_chunked(Stream& stream, const AttentionBackward& op);

}  // namespace lapidary
