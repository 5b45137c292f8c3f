#include "kernels/cpu/chain_gemm.h"

#include <algorithm>
#include <cmath>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/element.h"

namespace lapidary {

namespace {

constexpr std::int64_t kChain = 384;   // terms; a rest of up to two chains is cut in halves
constexpr int kRows = 4, kWidth = 16;  // of c at a time: their sums stay in registers

struct Product {
  std::int64_t m, n, k;
  float alpha;
  const float* a;
  std::int64_t a_row, a_term;  ///< from element to element of a
  const float* b;              ///< [k, n]
  std::int64_t ldb;
  float beta;
  float* c;
  std::int64_t ldc;
};

std::int64_t chain_length(std::int64_t left) {
  if (left >= 2 * kChain) return kChain;
  return left > kChain ? (left + 1) / 2 : left;
}

/// What one register tile of c needs.
struct Tile {
  const float* a;              ///< its first row, first term of the chain
  std::int64_t a_row, a_term;  ///< as in Product
  const float* b;              ///< its first column, first term; kWidth columns can be read
  std::int64_t ldb, terms;
};

/// out [Rows, kWidth] = the sums of a chain.
template <int Rows>
void chain(const Tile& t, float* out) {
  std::fill_n(out, Rows * kWidth, 0.0f);
  for (std::int64_t k = 0; k < t.terms; ++k)
    for (int r = 0; r < Rows; ++r)
      for (int l = 0; l < kWidth; ++l)
        out[r * kWidth + l] =
            std::fma(t.a[r * t.a_row + k * t.a_term], t.b[k * t.ldb + l], out[r * kWidth + l]);
}

#if defined(__x86_64__)
/// The same bits with the processor's instruction.
template <int Rows>
[[gnu::target("avx2,fma")]] void chain_in_registers(const Tile& t, float* out) {
  __m256 sum[Rows][2];
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_ps();
  for (std::int64_t k = 0; k < t.terms; ++k) {
    const __m256 low = _mm256_loadu_ps(t.b + k * t.ldb), high = _mm256_loadu_ps(t.b + k * t.ldb + 8);
    for (int r = 0; r < Rows; ++r) {
      const __m256 left = _mm256_broadcast_ss(t.a + r * t.a_row + k * t.a_term);
      sum[r][0] = _mm256_fmadd_ps(left, low, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(left, high, sum[r][1]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    _mm256_storeu_ps(out + r * kWidth, sum[r][0]);
    _mm256_storeu_ps(out + r * kWidth + 8, sum[r][1]);
  }
}
const bool kHasFma = __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
#endif

template <int Rows>
void best_chain(const Tile& t, float* out) {
#if defined(__x86_64__)
  if (kHasFma) return chain_in_registers<Rows>(t, out);
#endif
  chain<Rows>(t, out);
}

/// Rows [i, i + Rows) and `width` columns from j on, whose part of b is given.
template <int Rows>
void multiply_tile(const Product& p, std::int64_t i, std::int64_t j, int width, const float* b,
                   std::int64_t ldb) {
  float total[Rows * kWidth] = {}, sum[Rows * kWidth];
  for (std::int64_t begin = 0; begin < p.k;) {
    const std::int64_t terms = chain_length(p.k - begin);
    const float* a = p.a + i * p.a_row + begin * p.a_term;
    best_chain<Rows>({a, p.a_row, p.a_term, b + begin * ldb, ldb, terms}, sum);
    for (int e = 0; e < Rows * kWidth; ++e) total[e] += sum[e];
    begin += terms;
  }
  for (int r = 0; r < Rows; ++r) {
    float* to = p.c + (i + r) * p.ldc + j;
    for (int l = 0; l < width; ++l) {
      const float value = p.alpha * total[r * kWidth + l];
      to[l] = p.beta == 0 ? value : value + p.beta * to[l];
    }
  }
}

/// Rows [i, i + Rows). `rest` is b's last n % kWidth columns, filled up to kWidth.
template <int Rows>
void multiply_rows(const Product& p, std::int64_t i, const float* rest) {
  std::int64_t j = 0;
  for (; j + kWidth <= p.n; j += kWidth) multiply_tile<Rows>(p, i, j, kWidth, p.b + j, p.ldb);
  if (j < p.n) multiply_tile<Rows>(p, i, j, static_cast<int>(p.n - j), rest, kWidth);
}

}  // namespace

void chain_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
                float* c, std::int64_t ldc) {
  thread_local std::vector<float> turned;
  if (transpose_b) {
    turned.resize(static_cast<std::size_t>(n * k));
    for (std::int64_t t = 0; t < k; ++t)
      for (std::int64_t j = 0; j < n; ++j) turned[static_cast<std::size_t>(t * n + j)] = b[j * ldb + t];
    b = turned.data();
    ldb = n;
  }
  const std::int64_t left = n % kWidth;
  thread_local std::vector<float> rest;
  rest.assign(static_cast<std::size_t>(left > 0 ? k * kWidth : 0), 0.0f);
  for (std::int64_t t = 0; t < k && left > 0; ++t)
    std::copy_n(b + t * ldb + n - left, left, rest.data() + t * kWidth);
  const Product p{.m = m,
                  .n = n,
                  .k = k,
                  .alpha = alpha,
                  .a = a,
                  .a_row = transpose_a ? 1 : lda,
                  .a_term = transpose_a ? lda : 1,
                  .b = b,
                  .ldb = ldb,
                  .beta = beta,
                  .c = c,
                  .ldc = ldc};
  const float* last_columns = rest.data();  // the caller's: inside the loop it would be each thread's own
#pragma omp parallel for schedule(static) if (m * n * k >= 16 * kParallelElements)
  for (std::int64_t i = 0; i < m; i += kRows) {
    if (i + kRows <= m) {
      multiply_rows<kRows>(p, i, last_columns);
    } else {
      for (std::int64_t row = i; row < m; ++row) multiply_rows<1>(p, row, last_columns);
    }
  }
}

}  // namespace lapidary
