#include "kernels/cpu/chain_gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/element.h"

namespace lapidary {

namespace {

constexpr std::int64_t kChain = 384;  // terms; a rest of up to two chains is cut in halves

std::int64_t chain_length(std::int64_t left) {
  if (left >= 2 * kChain) return kChain;
  return left > kChain ? (left + 1) / 2 : left;
}

/// How the sums of a chain are computed on this processor: `rows` x `width` of them at a time, in registers.
struct Kernel {
  int rows, width;
  /// out [rows, width] = or += a [terms, rows]^T b [terms, width]
  void (*chain)(const float* a, const float* b, std::int64_t terms, bool add, float* out);
};
constexpr int kMostSums = 12 * 32;

template <int Rows, int Width>
void chain(const float* a, const float* b, std::int64_t terms, bool add, float* out) {
  float sum[Rows * Width] = {};
  for (std::int64_t k = 0; k < terms; ++k)
    for (int r = 0; r < Rows; ++r)
      for (int l = 0; l < Width; ++l)
        sum[r * Width + l] = std::fma(a[k * Rows + r], b[k * Width + l], sum[r * Width + l]);
  for (int e = 0; e < Rows * Width; ++e) out[e] = add ? out[e] + sum[e] : sum[e];
}

#if defined(__x86_64__)
// The same bits with the processor's instructions; the sums fill its registers.
[[gnu::target("avx2,fma")]] void chain_avx2(const float* a, const float* b, std::int64_t terms, bool add,
                                            float* out) {
  constexpr int kRows = 4, kVector = 8, kVectors = 3;
  __m256 sum[kRows][kVectors];
  for (auto& row : sum)
    for (__m256& part : row) part = _mm256_setzero_ps();
  for (std::int64_t k = 0; k < terms; ++k, a += kRows, b += kVectors * kVector) {
    const __m256 right[] = {_mm256_loadu_ps(b), _mm256_loadu_ps(b + kVector),
                            _mm256_loadu_ps(b + 2 * kVector)};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256 left = _mm256_broadcast_ss(a + r);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm256_fmadd_ps(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (const auto& row : sum)
#pragma GCC unroll 3
    for (const __m256 part : row) {
      _mm256_storeu_ps(out, add ? _mm256_add_ps(_mm256_loadu_ps(out), part) : part);
      out += kVector;
    }
}

[[gnu::target("avx512f")]] void chain_avx512(const float* a, const float* b, std::int64_t terms, bool add,
                                             float* out) {
  constexpr int kRows = 12, kVector = 16;
  __m512 sum[kRows][2];
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
  for (std::int64_t k = 0; k < terms; ++k, a += kRows, b += 2 * kVector) {
    const __m512 low = _mm512_loadu_ps(b), high = _mm512_loadu_ps(b + kVector);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512 left = _mm512_set1_ps(a[r]);
      sum[r][0] = _mm512_fmadd_ps(left, low, sum[r][0]);
      sum[r][1] = _mm512_fmadd_ps(left, high, sum[r][1]);
    }
  }
#pragma GCC unroll 12
  for (const auto& row : sum)
#pragma GCC unroll 2
    for (const __m512 part : row) {
      _mm512_storeu_ps(out, add ? _mm512_add_ps(_mm512_loadu_ps(out), part) : part);
      out += kVector;
    }
}
#endif

Kernel best_kernel() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {12, 32, chain_avx512};
  if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")) return {4, 24, chain_avx2};
#endif
  return {4, 8, chain<4, 8>};
}

/// A matrix element by element: `step` from line to line, `term` along the sums; one of both is 1.
struct Lines {
  const float* data;
  std::int64_t count, step, term;
};

constexpr int kSquare = 4;  // divides every kernel's rows and width

/// to [k][width], columns [0, kSquare) = the transpose of `lines` lines of k, more as zeros.
void turn(const float* from, std::int64_t step, int lines, std::int64_t k, float* to, int width) {
  using Four = float __attribute__((vector_size(16)));
  std::int64_t t = 0;
  if (lines == kSquare) {
    const auto four = [&](int line) {
      Four out;
      std::memcpy(&out, from + line * step + t, sizeof out);
      return out;
    };
    for (; t + kSquare <= k; t += kSquare) {
      const Four a = four(0), b = four(1), c = four(2), d = four(3);
      const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5),
                 cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const Four turned[] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                             __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                             __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                             __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
      for (int row = 0; row < kSquare; ++row) std::memcpy(to + (t + row) * width, &turned[row], sizeof(Four));
    }
  }
  for (; t < k; ++t)
    for (int l = 0; l < kSquare; ++l) to[t * width + l] = l < lines ? from[l * step + t] : 0.0f;
}

/// `lines` in panels of `width` lines, [panel][k][width], the last filled up with zeros.
void pack(const Lines& lines, std::int64_t k, int width, std::vector<float>& to) {
  const std::int64_t panels = (lines.count + width - 1) / width;
  to.resize(static_cast<std::size_t>(panels * k * width));
  float* packed = to.data();
#pragma omp parallel for schedule(static) if (panels * k * width >= kParallelElements)
  for (std::int64_t p = 0; p < panels; ++p) {
    const std::int64_t first = p * width;
    const int valid = static_cast<int>(std::min<std::int64_t>(width, lines.count - first));
    float* panel = packed + first * k;
    const float* from = lines.data + first * lines.step;
    if (lines.term != 1) {
      for (std::int64_t t = 0; t < k; ++t, from += lines.term, panel += width)
        std::fill(std::copy_n(from, valid, panel), panel + width, 0.0f);
    } else {
      for (int l = 0; l < width; l += kSquare)
        turn(from + l * lines.step, lines.step, std::clamp(valid - l, 0, kSquare), k, panel + l, width);
    }
  }
}

struct Product {
  std::int64_t m, n, k;
  float alpha, beta;
  float* c;
  std::int64_t ldc;
};

/// Rows from i on and columns from j on, as many as the kernel sums at once and c has.
void multiply_tile(const Product& p, const Kernel& kernel, std::int64_t i, std::int64_t j, const float* a,
                   const float* b) {
  float total[kMostSums];
  for (std::int64_t begin = 0; begin < p.k;) {
    const std::int64_t terms = chain_length(p.k - begin);
    kernel.chain(a + begin * kernel.rows, b + begin * kernel.width, terms, begin > 0, total);
    begin += terms;
  }
  const std::int64_t rows = std::min<std::int64_t>(kernel.rows, p.m - i);
  const std::int64_t width = std::min<std::int64_t>(kernel.width, p.n - j);
  for (std::int64_t r = 0; r < rows; ++r) {
    float* to = p.c + (i + r) * p.ldc + j;
    const float* from = total + r * kernel.width;
    if (p.beta == 0) {
      for (std::int64_t l = 0; l < width; ++l) to[l] = p.alpha * from[l];
    } else {
      for (std::int64_t l = 0; l < width; ++l) to[l] = p.alpha * from[l] + p.beta * to[l];
    }
  }
}

}  // namespace

void chain_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
                float* c, std::int64_t ldc) {
  static const Kernel kernel = best_kernel();
  thread_local std::vector<float> packed_a, packed_b;
  pack({a, m, transpose_a ? 1 : lda, transpose_a ? lda : 1}, k, kernel.rows, packed_a);
  pack({b, n, transpose_b ? ldb : 1, transpose_b ? 1 : ldb}, k, kernel.width, packed_b);
  const Product product{.m = m, .n = n, .k = k, .alpha = alpha, .beta = beta, .c = c, .ldc = ldc};
  // The caller's: inside the loop they would be each thread's own.
  const float *rows = packed_a.data(), *columns = packed_b.data();
  const std::int64_t blocks = (m + kernel.rows - 1) / kernel.rows;
  const std::int64_t panels = (n + kernel.width - 1) / kernel.width;
#pragma omp parallel for schedule(static) if (m * n * k >= 16 * kParallelElements)
  for (std::int64_t tile = 0; tile < blocks * panels; ++tile) {  // a panel of b stays in the cache
    const std::int64_t i = tile % blocks * kernel.rows, j = tile / blocks * kernel.width;
    multiply_tile(product, kernel, i, j, rows + i * k, columns + j * k);
  }
}

}  // namespace lapidary
