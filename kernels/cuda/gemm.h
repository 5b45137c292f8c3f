// Matrix products through cuBLASLt: one description of a (batched) row-major product, one call.
#pragma once
#include <cstdint>

#include "kernels/device.h"

namespace lapidary {

/// A row-major matrix in memory, or a batch of them.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::bf16;
  std::int64_t row_stride = 0;    ///< elements from row to row
  std::int64_t batch_stride = 0;  ///< elements from matrix to matrix
};

/// c [m, n] = alpha op(a) op(b) + beta c. Accumulates in float32; float32 operands are never rounded to TF32.
struct Gemm {
  MatrixView a, b, c;
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  int batch = 1;
  float alpha = 1.0f, beta = 0.0f;
};

void gemm(Stream& stream, const Gemm& product);

}  // namespace lapidary
