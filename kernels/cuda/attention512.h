// Attention with head dimension 512 and one key head in bf16: kernels of their own (docs/attention512.md).
#pragma once
#include "kernels/cuda/attention512_plan.h"
#include "kernels/ops.h"

namespace lapidary {

/// Both take the ops whose sizes satisfy attention512_applies, after check().
void attention512_forward(Stream& stream, const Attention& op);
void attention512_backward(Stream& stream, const AttentionBackward& op);

}  // namespace lapidary
