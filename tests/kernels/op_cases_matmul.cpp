// Matrix products: the four transpositions, accumulation, alpha, empty dimensions, sizes beyond a tile.
#include "tests/kernels/op_cases.h"

namespace lapidary {

namespace {

struct Product {
  std::int64_t m, n, k;
  bool ta = false, tb = false, accumulate = false;
  double alpha = 1.0;
  bool wide_result = false;  ///< float32 from bf16
};

Values naive_product(const Product& p, const Arrays& in) {
  const Values &a = in.at("a"), &b = in.at("b");
  Values c = p.accumulate ? in.at("c") : Values(static_cast<std::size_t>(p.m * p.n), 0.0);
  for (std::int64_t i = 0; i < p.m; ++i) {
    for (std::int64_t j = 0; j < p.n; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < p.k; ++k)
        sum += a[static_cast<std::size_t>(p.ta ? k * p.m + i : i * p.k + k)] *
               b[static_cast<std::size_t>(p.tb ? j * p.k + k : k * p.n + j)];
      c[static_cast<std::size_t>(i * p.n + j)] += p.alpha * sum;
    }
  }
  return c;
}

OpCase product_case(const Product& p) {
  OpCase c;
  c.name = "MatMul." + std::to_string(p.m) + "x" + std::to_string(p.n) + "x" + std::to_string(p.k) +
           (p.ta ? "_ta" : "") + (p.tb ? "_tb" : "") + (p.accumulate ? "_acc" : "") +
           (p.wide_result ? "_wide" : "");
  c.given["a"] = random_values(p.m * p.k, 1);
  c.given["b"] = random_values(p.n * p.k, 2);
  if (p.accumulate) c.given["c"] = random_values(p.m * p.n, 3);
  c.reference = [p](const Arrays& in) { return Arrays{{p.accumulate ? "c'" : "c", naive_product(p, in)}}; };
  c.run = [p](OpRun& r) {
    const Tensor a = p.ta ? r.in_rows("a", {p.k, p.m}) : r.in_rows("a", {p.m, p.k});
    const Tensor b = p.tb ? r.in_rows("b", {p.n, p.k}) : r.in_rows("b", {p.k, p.n});
    const Tensor result = p.wide_result  ? r.out_wide("c", {p.m, p.n})
                          : p.accumulate ? r.in_out_rows("c", {p.m, p.n})
                                         : r.out_rows("c", {p.m, p.n});
    r(MatMul{a, b, result, p.ta, p.tb, p.accumulate, p.alpha});
  };
  if (p.wide_result) c.bounds["c"] = {0, 32};
  if (p.m * p.n == 0 || p.k == 0) c.ignores_nan = {"a", "b"};
  c.same_bits_on_any_threads = false;
  return c;
}

}  // namespace

std::vector<OpCase> matmul_cases() {
  std::vector<OpCase> out;
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const bool accumulate : {false, true})
        out.push_back(product_case({13, 7, 29, ta, tb, accumulate, accumulate ? -0.5 : 1.0}));
  for (const Product& p :
       {Product{1, 1, 1}, Product{1, 70, 3, false, true}, Product{65, 1, 129, true}, Product{0, 5, 3},
        Product{5, 0, 3}, Product{5, 3, 0}, Product{5, 3, 0, true, true, true},
        Product{17, 9, 33, false, true, false, 1.0, true},
        Product{130, 67, 300, false, true, false, 1.0, true}, Product{1030, 40, 5, true, false, true},
        Product{33, 1026, 270, false, true}})
    out.push_back(product_case(p));
  return out;
}

}  // namespace lapidary
