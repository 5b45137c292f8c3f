// Float32 matrix products with a fixed order of summation.
#pragma once
#include <cstdint>

namespace lapidary {

/// Products with fewer multiply-adds than this are summed by chain_gemm: 0.8 to 1 times as fast as OpenBLAS
/// where that knows the processor, several times faster where it does not and falls back to SSE. Larger ones
/// go to OpenBLAS, whose packing does not grow with the matrices.
inline constexpr double kChainLimit = 4294967296.0;

/// c [m, n] = alpha op(a) op(b) + beta c, as blas_gemm. Every element is one chain of fused multiply-adds
/// over k, cut only every 384 terms: how the BLAS library behind PyTorch sums on processors of today, and the
/// same bits on every processor. Small random models multiply the rounding of a product a thousandfold on the
/// way to their gradients, so that another order, even a more exact one, would hide what a comparison with
/// the reference is to show.
void chain_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
                float* c, std::int64_t ldc);

}  // namespace lapidary
