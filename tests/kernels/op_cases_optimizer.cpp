// The optimizer step, the gradient norm, and the elementwise operations.
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/kernels/op_cases.h"

namespace lapidary {

namespace {

constexpr double kLr = 0.01, kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kDecay = 0.1;
constexpr std::int64_t kStep = 3;

OpCase adamw_case(std::int64_t n) {
  OpCase c;
  c.name = "AdamW." + std::to_string(n);
  c.given = {{"param", random_values(n, 1)},
             {"m", random_values(n, 2, 0.1)},
             {"v", random_values(n, 3, 0.1)},
             {"grad", random_values(n, 4)},
             {"grad_factor", {0.5}}};
  for (double& x : c.given["v"]) x = x * x + 1e-4;
  c.reference = [](const Arrays& in) {
    Arrays out{{"param'", {}}, {"m'", {}}, {"v'", {}}};
    for (std::size_t i = 0; i < in.at("param").size(); ++i) {
      const double g = in.at("grad")[i] * in.at("grad_factor")[0];
      const double m = kBeta1 * in.at("m")[i] + (1 - kBeta1) * g,
                   v = kBeta2 * in.at("v")[i] + (1 - kBeta2) * g * g;
      const double m_hat = m / (1 - std::pow(kBeta1, kStep)), v_hat = v / (1 - std::pow(kBeta2, kStep));
      const double decayed = in.at("param")[i] * (1 - kLr * kDecay);
      out["param'"].push_back(decayed - kLr * m_hat / (std::sqrt(v_hat) + kEps));
      out["m'"].push_back(m);
      out["v'"].push_back(v);
    }
    return out;
  };
  c.run = [=](OpRun& r) {
    AdamW op{};
    op.param = r.in_out("param", {n});
    op.m = r.in_out("m", {n});
    op.v = r.in_out("v", {n});
    op.grad = r.in("grad", {n});
    op.grad_factor = r.in_wide("grad_factor", {1});
    op.lr = kLr;
    op.beta1 = kBeta1;
    op.beta2 = kBeta2;
    op.eps = kEps;
    op.weight_decay = kDecay;
    op.step = kStep;
    op.seed = 7;
    op.first_index = 5;
    r(op);
  };
  // Stochastic rounding may take the farther neighbour: two units.
  c.bounds = {{"param", {2, 16}}, {"m", {2, 16}}, {"v", {2, 16}}};
  if (n == 0) c.ignores_nan = {"grad_factor"};
  return c;
}

OpCase squared_norm_case(std::int64_t n) {
  OpCase c;
  c.name = "SquaredNorm." + std::to_string(n);
  c.given = {{"x", random_values(n, 1)}, {"sum", {2.5}}};
  c.exact = {"sum"};
  c.reference = [](const Arrays& in) {
    long double sum = in.at("sum")[0];
    for (const double x : in.at("x")) sum += static_cast<long double>(x) * x;
    return Arrays{{"sum'", {static_cast<double>(sum)}}};
  };
  c.run = [=](OpRun& r) { r(SquaredNorm{r.in("x", {n}), r.in_out_as("sum", DType::f64, {1})}); };
  c.bounds["sum"] = {0, 4};
  c.any_width = {"x"};
  return c;
}

OpCase clip_case(double sum, double max_norm, double norm, double factor) {
  OpCase c;
  c.name = "ClipFactor.sum" + std::to_string(sum) + "max" + std::to_string(max_norm);
  c.given = {{"sums", {0.25 * sum, 0.75 * sum}}};
  c.exact = {"sums"};
  c.reference = [=](const Arrays&) { return Arrays{{"norm", {norm}}, {"factor", {factor}}}; };
  c.run = [=](OpRun& r) {
    r(ClipFactor{r.in_as("sums", DType::f64, {2}), max_norm, r.out_as("norm", DType::f64, {1}),
                 r.out_wide("factor", {1})});
  };
  c.bounds = {{"norm", {0, 1}}, {"factor", {0, 1}}};
  c.any_width = {"sums"};
  return c;
}

OpCase fill_case(std::int64_t rows, std::int64_t n, double value) {
  OpCase c;
  c.name = "Fill." + std::to_string(rows) + "x" + std::to_string(n);
  c.reference = [=](const Arrays&) {
    return Arrays{{"x", Values(static_cast<std::size_t>(rows * n), value)}};
  };
  c.run = [=](OpRun& r) { r(Fill{r.out_rows("x", {rows, n}), value}); };
  c.any_width = c.any_type = {"x"};
  return c;
}

OpCase copy_case(std::int64_t rows, std::int64_t n, bool widen) {
  OpCase c;
  c.name = "Copy." + std::to_string(rows) + "x" + std::to_string(n) + (widen ? "_to_f64" : "_from_f64");
  c.given["in"] = random_values(rows * n, 1);
  if (!widen) c.exact = {"in"};
  c.reference = [](const Arrays& in) { return Arrays{{"out", in.at("in")}}; };
  c.run = [=](OpRun& r) {
    const DType wide = r.stream().device() == Device::cpu ? DType::f64 : DType::f32;
    const Tensor in = widen ? r.in_rows("in", {rows, n}) : r.in_as("in", wide, {rows, n});
    r(Copy{in, widen ? r.out_as("out", wide, {rows, n}) : r.out_rows("out", {rows, n})});
  };
  c.bounds["out"] = widen ? Bound{0, 0} : Bound{1, 1};
  c.any_type = {"in", "out"};
  return c;
}

OpCase add_case(std::int64_t rows, std::int64_t n, bool wide_out) {
  OpCase c;
  c.name = "Add." + std::to_string(rows) + "x" + std::to_string(n) + (wide_out ? "_wide" : "");
  c.given = {{"in", random_values(rows * n, 1)}, {"out", random_values(rows * n, 2)}};
  c.reference = [](const Arrays& in) {
    Values out = in.at("out");
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += in.at("in")[i];
    return Arrays{{"out'", out}};
  };
  c.run = [=](OpRun& r) {
    const Tensor in = r.in_rows("in", {rows, n});
    r(Add{in, wide_out ? r.in_out_as("out", r.wide(), {rows, n}) : r.in_out_rows("out", {rows, n})});
  };
  c.bounds["out"] = {wide_out ? 0.0 : 1.0, 1};
  return c;
}

OpCase rank_sum_case(std::int64_t others, std::int64_t rank, std::int64_t n, bool accumulate) {
  OpCase c;
  c.name = "RankSum." + std::to_string(others) + "x" + std::to_string(n) + "_rank" + std::to_string(rank) +
           (accumulate ? "_add" : "");
  c.given = {{"own", random_values(n, 1)}, {"others", random_values(others * n, 2)}};
  if (accumulate) c.given["out"] = random_values(n, 3);
  const std::string result = accumulate ? "out'" : "out";
  c.reference = [=](const Arrays& in) {
    Values out = accumulate ? in.at("out") : Values(static_cast<std::size_t>(n));
    for (std::size_t j = 0; j < out.size(); ++j) {
      out[j] += in.at("own")[j];
      for (std::size_t i = 0; i < static_cast<std::size_t>(others); ++i)
        out[j] += in.at("others")[i * static_cast<std::size_t>(n) + j];
    }
    long double squares = 0;
    for (const double x : out) squares += static_cast<long double>(x) * x;
    return Arrays{{result, out}, {"squares", {static_cast<double>(squares)}}};
  };
  c.run = [=](OpRun& r) {
    const Tensor own = r.in("own", {n}), parts = r.in("others", {others, n});
    r(RankSum{own, parts, rank, accumulate, accumulate ? r.in_out("out", {n}) : r.out("out", {n}),
              r.out_as("squares", DType::f64, {1})});
  };
  // Parts of both signs: the rounding is that of the largest partial sum. Squares double it.
  c.bounds = {{"out", {1, 8}}, {"squares", {4, 32}}};
  c.optional = {"squares"};
  return c;
}

/// Philox as its paper writes it: two multiplications and a key that grows, ten times.
std::array<std::uint32_t, 4> naive_philox(std::array<std::uint32_t, 4> x, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ull * x[0], p1 = 0xCD9E8D57ull * x[2];
    x = {static_cast<std::uint32_t>(p1 >> 32) ^ x[1] ^ key[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ x[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return x;
}

OpCase normal_case(std::int64_t n, std::uint64_t seed, std::uint64_t stream, std::int64_t first) {
  OpCase c;
  c.name = "FillNormal." + std::to_string(n) + "from" + std::to_string(first);
  c.reference = [=](const Arrays&) {
    Values out;
    for (std::int64_t i = first; i < first + n; ++i) {
      const auto pair = static_cast<std::uint64_t>(i / 2);
      const auto w =
          naive_philox({static_cast<std::uint32_t>(pair), static_cast<std::uint32_t>(pair >> 32),
                        static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)},
                       {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
      const double u1 = (static_cast<double>(w[1]) * 0x1p21 + static_cast<double>(w[0] >> 11) + 1) * 0x1p-53;
      const double u2 = (static_cast<double>(w[3]) * 0x1p21 + static_cast<double>(w[2] >> 11)) * 0x1p-53;
      const double angle = 2 * std::numbers::pi * u2;
      out.push_back(0.5 + 3 * std::sqrt(-2 * std::log(u1)) * (i % 2 ? std::sin(angle) : std::cos(angle)));
    }
    return Arrays{{"out", out}};
  };
  c.run = [=](OpRun& r) { r(FillNormal{r.out("out", {n}), 0.5, 3.0, seed, stream, first}); };
  c.bounds["out"] = {1, 4};
  c.any_width = {"out"};
  return c;
}

}  // namespace

std::vector<OpCase> optimizer_cases() {
  std::vector<OpCase> out;
  for (const std::int64_t n : {0, 1, 5, 511, 513, 5000}) out.push_back(adamw_case(n));
  for (const std::int64_t n : {0, 1, 63, 65, 1000, 70000}) out.push_back(squared_norm_case(n));
  const double infinity = std::numeric_limits<double>::infinity();
  for (OpCase& c :
       std::vector<OpCase>{clip_case(4.0, 1.0, 2.0, 1.0 / (2.0 + 1e-6)), clip_case(4.0, 3.0, 2.0, 1.0),
                           clip_case(4.0, 0.0, 2.0, 1.0), clip_case(0.0, 1.0, 0.0, 1.0),
                           clip_case(infinity, 1.0, infinity, 0.0), clip_case(NAN, 0.0, NAN, 0.0)})
    out.push_back(std::move(c));
  return out;
}

std::vector<OpCase> elementwise_cases() {
  std::vector<OpCase> out;
  for (const auto& [rows, n] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {3, 5}, {0, 4}, {4, 0}, {3, 9000}, {200, 101}}) {
    out.push_back(fill_case(rows, n, 1.25));
    for (const bool wide : {false, true}) {
      out.push_back(copy_case(rows, n, wide));
      out.push_back(add_case(rows, n, wide));
    }
  }
  for (const bool accumulate : {false, true}) {
    out.push_back(rank_sum_case(1, 0, 1, accumulate));
    out.push_back(rank_sum_case(1, 1, 20000, accumulate));
    out.push_back(rank_sum_case(3, 2, 1003, accumulate));
    out.push_back(rank_sum_case(7, 7, 64, accumulate));
    out.push_back(rank_sum_case(2, 1, 0, accumulate));
  }
  out.push_back(normal_case(0, 1, 2, 0));
  out.push_back(normal_case(1, 1, 2, 3));
  out.push_back(normal_case(37, 0x123456789abcdefull, 5, 1ll << 33));
  out.push_back(normal_case(5000, 3, 1ull << 40, 17));
  return out;
}

std::vector<OpCase> all_op_cases() {
  std::vector<OpCase> out;
  for (auto* family : {matmul_cases, norm_cases, mlp_cases, rope_cases, attention_cases, embedding_cases,
                       feature_cases, loss_cases, optimizer_cases, elementwise_cases}) {
    for (OpCase& c : family()) out.push_back(std::move(c));
  }
  return out;
}

}  // namespace lapidary
