// Small float32 products against the order of summation that they promise, bit for bit.
#include "kernels/cpu/chain_gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace lapidary {
namespace {

struct Shape {
  std::int64_t m, n, k;
};

std::vector<float> random_matrix(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& x : out) x = normal(random);
  return out;
}

/// Chains of 384 terms, the last two of equal length.
float promised(const float* a, std::int64_t a_term, const float* b, std::int64_t b_term, std::int64_t k) {
  float total = 0;
  for (std::int64_t begin = 0; begin < k;) {
    const std::int64_t left = k - begin;
    const std::int64_t terms = left >= 768 ? 384 : left > 384 ? (left + 1) / 2 : left;
    float sum = 0;
    for (std::int64_t t = begin; t < begin + terms; ++t) sum = std::fma(a[t * a_term], b[t * b_term], sum);
    total += sum;
    begin += terms;
  }
  return total;
}

TEST(ChainGemm, SumsInThePromisedOrder) {
  for (const Shape s :
       {Shape{1, 1, 1}, Shape{4, 16, 3}, Shape{5, 17, 40}, Shape{7, 15, 384}, Shape{9, 33, 385},
        Shape{3, 50, 767}, Shape{6, 20, 768}, Shape{2, 31, 1003}, Shape{130, 70, 64}}) {
    const std::vector<float> a = random_matrix(s.m * s.k, 1), b = random_matrix(s.n * s.k, 2),
                             before = random_matrix(s.m * s.n, 3);
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const float beta : {0.0f, 1.0f}) {
          std::vector<float> c = before;
          chain_gemm(ta, tb, s.m, s.n, s.k, 0.5f, a.data(), ta ? s.m : s.k, b.data(), tb ? s.k : s.n, beta,
                     c.data(), s.n);
          for (std::int64_t i = 0; i < s.m; ++i)
            for (std::int64_t j = 0; j < s.n; ++j) {
              const float sum = promised(a.data() + (ta ? i : i * s.k), ta ? s.m : 1,
                                         b.data() + (tb ? j * s.k : j), tb ? 1 : s.n, s.k);
              const auto at = static_cast<std::size_t>(i * s.n + j);
              ASSERT_EQ(c[at], beta == 0 ? 0.5f * sum : 0.5f * sum + before[at])
                  << s.m << ' ' << s.n << ' ' << s.k << ' ' << ta << tb << ' ' << beta << " at " << i << ' '
                  << j;
            }
        }
  }
}

TEST(ChainGemm, DoesNotReadTheResultThatItReplaces) {
  const std::vector<float> a = random_matrix(6, 1), b = random_matrix(6, 2);
  std::vector<float> c(4, NAN);
  chain_gemm(false, true, 2, 2, 3, 1, a.data(), 3, b.data(), 3, 0, c.data(), 2);
  for (const float x : c) EXPECT_FALSE(std::isnan(x));
}

}  // namespace
}  // namespace lapidary
