// Matrix products on the CPU. blas_gemm() is OpenBLAS's own interface for pointers; gemm() adds what the
// operations need beyond it: bfloat16 operands, results in another type, empty matrices.
#pragma once
#include <cstdint>

#include "kernels/tensor.h"

namespace lapidary {

/// c [m, n] = alpha op(a) op(b) + beta c, row-major; ld*: elements from row to row. With beta 0, c is not
/// read. Uses all threads, or only the caller's inside a parallel region. Small float products are summed in
/// a fixed order (chain_gemm.h).
void blas_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
               double alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb, double beta,
               float* c, std::int64_t ldc);
void blas_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
               double alpha, const double* a, std::int64_t lda, const double* b, std::int64_t ldb,
               double beta, double* c, std::int64_t ldc);

/// c = alpha op(a) op(b) (+ c if accumulate) for matrices of any floating-point types with rows of any
/// stride. Computed in float, or in double if a or b is f64; rounded once to c's type. Call outside parallel
/// regions.
void gemm(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& c,
          bool accumulate, double alpha = 1.0);

}  // namespace lapidary
