// MatMul: OpenBLAS where the types are its own; otherwise tile by tile through float buffers of bounded size.
#include <cblas.h>

#include <limits>
#include <vector>

#include "kernels/cpu/chain_gemm.h"
#include "kernels/cpu/check_blas.h"
#include "kernels/cpu/element.h"
#include "kernels/cpu/gemm.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

// Tiles of products that are not BLAS's own types: large enough that converting a tile (each element of a is
// converted once per kTileN columns of c) stays a few per cent of multiplying it.
constexpr std::int64_t kTileM = 1024, kTileN = 1024, kTileK = 256;

blasint blas_int(std::int64_t n) {
  require(n <= std::numeric_limits<blasint>::max(), "MatMul: dimension {} is beyond what BLAS can index", n);
  return static_cast<blasint>(n);
}

CBLAS_TRANSPOSE blas_op(bool transpose) {
  return transpose ? CblasTrans : CblasNoTrans;
}

/// Grows the calling thread's buffer number `slot` to `count` numbers; bounded by the tile sizes.
template <class F>
F* tile_buffer(int slot, std::int64_t count) {
  thread_local std::vector<F> buffers[3];
  std::vector<F>& buffer = buffers[slot];
  if (buffer.size() < static_cast<std::size_t>(count)) buffer.resize(static_cast<std::size_t>(count));
  return buffer.data();
}

template <class F>
struct Block {
  const F* data;
  std::int64_t ld;
};

/// Rows [r0, r0 + rows), columns [c0, c0 + cols) of t as F: in place where t is F already, else converted.
template <class F>
Block<F> block_of(const Tensor& t, std::int64_t r0, std::int64_t rows, std::int64_t c0, std::int64_t cols,
                  int slot) {
  if (t.dtype() == DTypeOf<F>::value) return {row<F>(t, r0) + c0, t.row_stride()};
  F* buffer = tile_buffer<F>(slot, rows * cols);
  with_float_type(t.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static) if (rows * cols >= kParallelElements)
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* from = row<T>(t, r0 + i) + c0;
      F* to = buffer + i * cols;
      for (std::int64_t j = 0; j < cols; ++j) to[j] = static_cast<F>(load(from[j]));
    }
  });
  return {buffer, cols};
}

/// Rows [r0, ..), columns [c0, ..) of c = tile, or += tile.
template <class F>
void store_tile(const Tensor& c, std::int64_t r0, std::int64_t rows, std::int64_t c0, std::int64_t cols,
                const F* tile, bool accumulate) {
  with_float_type(c.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static) if (rows * cols >= kParallelElements)
    for (std::int64_t i = 0; i < rows; ++i) {
      const F* from = tile + i * cols;
      T* to = row<T>(c, r0 + i) + c0;
      for (std::int64_t j = 0; j < cols; ++j)
        to[j] = round_to<T>(accumulate ? load(to[j]) + from[j] : from[j]);
    }
  });
}

template <class F>
void tiled_gemm(const Tensor& a, bool ta, const Tensor& b, bool tb, const Tensor& c, bool accumulate,
                double alpha, std::int64_t k) {
  const std::int64_t m = c.size(0), n = c.size(1);
  const bool direct = c.dtype() == DTypeOf<F>::value;
  for (std::int64_t n0 = 0; n0 < n; n0 += kTileN) {
    const std::int64_t nb = std::min(kTileN, n - n0);
    for (std::int64_t m0 = 0; m0 < m; m0 += kTileM) {
      const std::int64_t mb = std::min(kTileM, m - m0);
      F* tile = direct ? row<F>(c, m0) + n0 : tile_buffer<F>(2, mb * nb);
      const std::int64_t ld = direct ? std::max(c.row_stride(), nb) : nb;
      for (std::int64_t k0 = 0; k0 < k; k0 += kTileK) {
        const std::int64_t kb = std::min(kTileK, k - k0);
        const Block<F> left = ta ? block_of<F>(a, k0, kb, m0, mb, 0) : block_of<F>(a, m0, mb, k0, kb, 0);
        const Block<F> right = tb ? block_of<F>(b, n0, nb, k0, kb, 1) : block_of<F>(b, k0, kb, n0, nb, 1);
        const bool add = k0 > 0 || (direct && accumulate);
        blas_gemm(ta, tb, mb, nb, kb, alpha, left.data, left.ld, right.data, right.ld, add ? 1.0 : 0.0, tile,
                  ld);
      }
      if (!direct) store_tile(c, m0, mb, n0, nb, tile, accumulate);
    }
  }
}

template <class F>
void typed_gemm(const Tensor& a, bool ta, const Tensor& b, bool tb, const Tensor& c, bool accumulate,
                double alpha, std::int64_t k) {
  constexpr DType kType = DTypeOf<F>::value;
  if (a.dtype() == kType && b.dtype() == kType && c.dtype() == kType) {
    blas_gemm(ta, tb, c.size(0), c.size(1), k, alpha, a.as<F>(), a.row_stride(), b.as<F>(), b.row_stride(),
              accumulate ? 1.0 : 0.0, c.as<F>(), c.row_stride());
  } else {
    tiled_gemm<F>(a, ta, b, tb, c, accumulate, alpha, k);
  }
}

void clear(const Tensor& c) {
  with_float_type(c.dtype(), [&]<class T>() {
    for (std::int64_t i = 0; i < c.size(0); ++i) std::fill_n(row<T>(c, i), c.size(1), T{});
  });
}

}  // namespace

void blas_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
               double alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb, double beta,
               float* c, std::int64_t ldc) {
  if (static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) < kChainLimit)
    return chain_gemm(transpose_a, transpose_b, m, n, k, static_cast<float>(alpha), a, lda, b, ldb,
                      static_cast<float>(beta), c, ldc);
  cblas_sgemm(CblasRowMajor, blas_op(transpose_a), blas_op(transpose_b), blas_int(m), blas_int(n),
              blas_int(k), static_cast<float>(alpha), a, blas_int(lda), b, blas_int(ldb),
              static_cast<float>(beta), c, blas_int(ldc));
}

void blas_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
               double alpha, const double* a, std::int64_t lda, const double* b, std::int64_t ldb,
               double beta, double* c, std::int64_t ldc) {
  cblas_dgemm(CblasRowMajor, blas_op(transpose_a), blas_op(transpose_b), blas_int(m), blas_int(n),
              blas_int(k), alpha, a, blas_int(lda), b, blas_int(ldb), beta, c, blas_int(ldc));
}

void gemm(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& c,
          bool accumulate, double alpha) {
  if (c.numel() == 0) return;
  const std::int64_t k = a.size(transpose_a ? 0 : 1);
  if (k == 0) {
    if (!accumulate) clear(c);
  } else if (a.dtype() == DType::f64 || b.dtype() == DType::f64) {
    typed_gemm<double>(a, transpose_a, b, transpose_b, c, accumulate, alpha, k);
  } else {
    typed_gemm<float>(a, transpose_a, b, transpose_b, c, accumulate, alpha, k);
  }
}

void MatMul::cpu(Stream&) const {
  check(*this);
  gemm(a, transpose_a, b, transpose_b, c, accumulate, alpha);
}

void check_blas() {
  constexpr std::int64_t kSize = 64;
  std::vector<float> a(kSize * kSize), b(kSize * kSize), c(kSize * kSize);
  for (std::size_t i = 0; i < a.size(); ++i) {
    a[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50);
    b[i] = static_cast<float>(static_cast<int>(i * 53 % 89) - 44);
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1.0f, a.data(), kSize, b.data(),
              kSize, 0.0f, c.data(), kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    for (std::size_t j = 0; j < kSize; ++j) {
      float expected = 0;  // integers below 2^24: exact in any order
      for (std::size_t k = 0; k < kSize; ++k) expected += a[i * kSize + k] * b[j * kSize + k];
      if (c[i * kSize + j] != expected)
        throw Error(
            fmt::format("the BLAS library ({}) multiplies wrongly: element [{}, {}] of a 64 x 64 product "
                        "is {}, expected {}; choose another processor type with OPENBLAS_CORETYPE or "
                        "another build of OpenBLAS",
                        openblas_get_config(), i, j, c[i * kSize + j], expected),
            ExitCode::hardware);
    }
  }
}

}  // namespace lapidary
