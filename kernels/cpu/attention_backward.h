// Scratch of the CPU's attention backward.
#pragma once
#include <cstddef>

#include "kernels/ops.h"

namespace lapidary {

/// Bytes: gradients of k and v in computing precision, once per team of query heads (at most four per key
/// head).
std::size_t attention_backward_scratch(const AttentionBackward& op);

}  // namespace lapidary
