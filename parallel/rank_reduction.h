// Sums and maxima over ranks in rank order: what makes every reduction give the same bits on every rank and
// in every run.
#pragma once
#include <cstdint>

#include "kernels/dtype.h"
#include "parallel/communicator.h"

namespace lapidary {

/// Throws Error unless tensors of this type can be reduced (f32, bf16, f64, i32, i64).
void check_reducible(DType dtype, const char* operation);

/// out[i] = in[0][i] + in[1][i] + .. (or their maximum, NaN if any is NaN) for i < count; in[r] begins
/// r * count elements behind in. bf16 is summed in float32 and rounded once. out lies outside in.
void reduce_ranks(const void* in, int ranks, std::int64_t count, DType dtype, Reduction reduction, void* out);

}  // namespace lapidary
