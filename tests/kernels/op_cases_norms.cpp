// RMSNorm, the fused end of a half layer, LayerNorm.
#include <cmath>

#include "tests/kernels/op_cases.h"

namespace lapidary {

namespace {

struct Normed {
  Values y, rstd;
};

/// Rows of x over their root mean square, times weight where given.
Normed naive_rms(const Values& x, const Values* weight, std::size_t rows, std::size_t n, double eps) {
  Normed out{Values(rows * n), Values(rows)};
  for (std::size_t i = 0; i < rows; ++i) {
    long double square = 0;
    for (std::size_t j = 0; j < n; ++j) square += static_cast<long double>(x[i * n + j]) * x[i * n + j];
    out.rstd[i] = std::pow(static_cast<double>(square / n) + eps, -0.5);
    for (std::size_t j = 0; j < n; ++j)
      out.y[i * n + j] = x[i * n + j] * out.rstd[i] * (weight ? (*weight)[j] : 1.0);
  }
  return out;
}

std::string size_name(std::int64_t rows, std::int64_t n) {
  return std::to_string(rows) + "x" + std::to_string(n);
}

OpCase rms_case(std::int64_t rows, std::int64_t n, bool weight) {
  OpCase c;
  c.name = "RmsNorm." + size_name(rows, n) + (weight ? "_weight" : "");
  c.given["x"] = random_values(rows * n, 1);
  if (weight) c.given["weight"] = random_values(n, 2, 0.3, 1.0);
  c.reference = [=](const Arrays& in) {
    const Normed r = naive_rms(in.at("x"), weight ? &in.at("weight") : nullptr,
                               static_cast<std::size_t>(rows), static_cast<std::size_t>(n), 1e-6);
    return Arrays{{"y", r.y}, {"rstd", r.rstd}};
  };
  c.run = [=](OpRun& r) {
    r(RmsNorm{r.in_rows("x", {rows, n}), r.maybe_in("weight", {n}), r.out_rows("y", {rows, n}),
              r.out_wide("rstd", {rows})});
  };
  c.bounds["rstd"] = {0, 8};
  c.optional = {"weight"};
  if (rows == 0) c.ignores_nan = {"weight"};
  return c;
}

OpCase rms_backward_case(std::int64_t rows, std::int64_t n, bool weight, bool add) {
  OpCase c = rms_case(rows, n, weight);
  c.name = "RmsNormBackward." + size_name(rows, n) + (weight ? "_weight" : "") + (add ? "_add" : "");
  c.given["dy"] = random_values(rows * n, 4);
  if (add) c.given["dx"] = random_values(rows * n, 5);
  c.run = [=](OpRun& r) {
    const Tensor dy = r.in_rows("dy", {rows, n}), x = r.in_rows("x", {rows, n});
    const Tensor rstd = r.in_wide("rstd", {rows}), w = r.maybe_in("weight", {n});
    const Tensor dx = add ? r.in_out_rows("dx", {rows, n}) : r.out_rows("dx", {rows, n});
    r(RmsNormBackward{dy, x, rstd, w, dx, add, weight ? r.accumulator("d_weight", {n}) : Tensor()});
  };
  c.gradients = Gradients{{{"dy", "y"}}, {{"dx", "x"}}, {}, {}};
  if (weight) {
    c.gradients->results["d_weight"] = "weight";
    c.gradients->accumulated = {"d_weight"};
  }
  if (add) {
    c.gradients->added_to["dx"] = "dx";
  } else {
    c.aliases["dx"] = "dy";
    c.optional.insert("dx");
  }
  c.optional.insert("d_weight");
  if (rows == 0) c.ignores_nan = {"weight"};
  return c;
}

struct HalfLayer {
  std::int64_t rows, n;
  bool scale, next;
  std::string name() const { return size_name(rows, n) + (scale ? "_scale" : "") + (next ? "_next" : ""); }
};

Arrays naive_half_layer(const HalfLayer& h, const Arrays& in) {
  const auto rows = static_cast<std::size_t>(h.rows), n = static_cast<std::size_t>(h.n);
  const Normed branch = naive_rms(in.at("branch"), &in.at("branch_weight"), rows, n, 1e-6);
  Values out(rows * n);
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = (in.at("residual")[i] + branch.y[i]) * (h.scale ? in.at("scale")[0] : 1.0);
  Arrays result{{"out", out}, {"branch_rstd", branch.rstd}};
  if (h.next) {
    const Normed next = naive_rms(out, &in.at("next_weight"), rows, n, 1e-6);
    result["next"] = next.y;
    result["next_rstd"] = next.rstd;
  }
  return result;
}

OpCase half_layer_case(const HalfLayer& h) {
  OpCase c;
  c.name = "ResidualNorm." + h.name();
  c.given["residual"] = random_values(h.rows * h.n, 1);
  c.given["branch"] = random_values(h.rows * h.n, 2, 3.0);
  c.given["branch_weight"] = random_values(h.n, 3, 0.3, 1.0);
  if (h.scale) c.given["scale"] = {0.7};
  if (h.next) c.given["next_weight"] = random_values(h.n, 4, 0.3, 1.0);
  c.reference = [h](const Arrays& in) { return naive_half_layer(h, in); };
  c.run = [h](OpRun& r) {
    ResidualNorm op{};
    op.residual = r.in("residual", {h.rows, h.n});
    op.branch = r.in("branch", {h.rows, h.n});
    op.branch_weight = r.in("branch_weight", {h.n});
    op.scale = r.maybe_in("scale", {1});
    op.next_weight = r.maybe_in("next_weight", {h.n});
    op.out = r.out("out", {h.rows, h.n});
    op.branch_rstd = r.out_wide("branch_rstd", {h.rows});
    if (h.next) op.next = r.out("next", {h.rows, h.n});
    if (h.next) op.next_rstd = r.out_wide("next_rstd", {h.rows});
    r(op);
  };
  c.bounds = {{"out", {3, 32}}, {"next", {6, 32}}, {"branch_rstd", {0, 8}}, {"next_rstd", {3, 32}}};
  c.aliases["out"] = "residual";
  c.optional = {"scale"};
  return c;
}

OpCase half_layer_backward_case(const HalfLayer& h) {
  OpCase c = half_layer_case(h);
  c.name = "ResidualNormBackward." + h.name();
  c.given["d_out"] = random_values(h.rows * h.n, 6);
  if (h.next) c.given["d_next"] = random_values(h.rows * h.n, 7);
  c.run = [h](OpRun& r) {
    ResidualNormBackward op{};
    op.d_out = r.in("d_out", {h.rows, h.n});
    op.d_next = r.maybe_in("d_next", {h.rows, h.n});
    if (h.next) op.out = r.in("out", {h.rows, h.n});
    op.branch = r.in("branch", {h.rows, h.n});
    op.branch_weight = r.in("branch_weight", {h.n});
    op.scale = r.maybe_in("scale", {1});
    op.next_weight = r.maybe_in("next_weight", {h.n});
    op.branch_rstd = r.in_wide("branch_rstd", {h.rows});
    if (h.next) op.next_rstd = r.in_wide("next_rstd", {h.rows});
    op.d_residual = r.out("d_residual", {h.rows, h.n});
    op.d_branch = r.out("d_branch", {h.rows, h.n});
    op.d_branch_weight = r.accumulator("d_branch_weight", {h.n});
    if (h.next) op.d_next_weight = r.accumulator("d_next_weight", {h.n});
    r(op);
  };
  c.gradients =
      Gradients{{{"d_out", "out"}},
                {{"d_residual", "residual"}, {"d_branch", "branch"}, {"d_branch_weight", "branch_weight"}},
                {"d_branch_weight", "d_next_weight"},
                {}};
  c.aliases = {{"d_residual", "d_out"}};
  if (h.next) {
    c.gradients->cotangents["d_next"] = "next";
    c.gradients->results["d_next_weight"] = "next_weight";
    c.aliases["d_branch"] = "d_next";
  }
  c.bounds = {{"d_branch", {3, 64}}, {"d_branch_weight", {3, 64}}};
  c.ignores_nan = {"residual"};
  if (!h.next) c.ignores_nan.insert("out");
  return c;
}

Arrays naive_layer_norm(std::int64_t rows_, std::int64_t n_, const Arrays& in) {
  const auto rows = static_cast<std::size_t>(rows_), n = static_cast<std::size_t>(n_);
  const Values& x = in.at("x");
  Values y(rows * n), means(rows), rstds(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    long double mean = 0, variance = 0;
    for (std::size_t j = 0; j < n; ++j) mean += x[i * n + j] / static_cast<long double>(n);
    for (std::size_t j = 0; j < n; ++j)
      variance += (x[i * n + j] - mean) * (x[i * n + j] - mean) / static_cast<long double>(n);
    means[i] = static_cast<double>(mean);
    rstds[i] = 1 / std::sqrt(static_cast<double>(variance) + 1e-5);
    for (std::size_t j = 0; j < n; ++j)
      y[i * n + j] = (x[i * n + j] - means[i]) * rstds[i] * in.at("weight")[j] + in.at("bias")[j];
  }
  return {{"y", y}, {"mean", means}, {"rstd", rstds}};
}

OpCase layer_norm_case(std::int64_t rows, std::int64_t n) {
  OpCase c;
  c.name = "LayerNorm." + size_name(rows, n);
  c.given["x"] = random_values(rows * n, 1, 1.0, 0.5);
  c.given["weight"] = random_values(n, 2, 0.3, 1.0);
  c.given["bias"] = random_values(n, 3);
  c.reference = [=](const Arrays& in) { return naive_layer_norm(rows, n, in); };
  c.run = [=](OpRun& r) {
    r(LayerNorm{r.in("x", {rows, n}), r.in("weight", {n}), r.in("bias", {n}), r.out("y", {rows, n}),
                r.out_wide("mean", {rows}), r.out_wide("rstd", {rows})});
  };
  c.bounds = {{"mean", {0, 8}}, {"rstd", {0, 16}}};
  c.aliases["y"] = "x";
  if (rows == 0) c.ignores_nan = {"weight", "bias"};
  return c;
}

OpCase layer_norm_backward_case(std::int64_t rows, std::int64_t n) {
  OpCase c = layer_norm_case(rows, n);
  c.name = "LayerNormBackward." + size_name(rows, n);
  c.given["dy"] = random_values(rows * n, 5);
  c.run = [=](OpRun& r) {
    LayerNormBackward op{};
    op.dy = r.in("dy", {rows, n});
    op.x = r.in("x", {rows, n});
    op.mean = r.in_wide("mean", {rows});
    op.rstd = r.in_wide("rstd", {rows});
    op.weight = r.in("weight", {n});
    op.dx = r.out("dx", {rows, n});
    op.d_weight = r.accumulator("d_weight", {n});
    op.d_bias = r.accumulator("d_bias", {n});
    r(op);
  };
  c.gradients = Gradients{
      {{"dy", "y"}}, {{"dx", "x"}, {"d_weight", "weight"}, {"d_bias", "bias"}}, {"d_weight", "d_bias"}, {}};
  c.aliases = {{"dx", "dy"}};
  c.optional = {"dx"};
  c.ignores_nan = {"bias"};
  if (rows == 0) c.ignores_nan.insert("weight");
  return c;
}

}  // namespace

std::vector<OpCase> norm_cases() {
  std::vector<OpCase> out;
  for (const auto& [rows, n] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {3, 5}, {2, 33}, {0, 7}, {70, 300}, {1500, 64}, {150, 1032}, {6, 3840}, {3, 4000}}) {
    for (const bool weight : {false, true}) {
      out.push_back(rms_case(rows, n, weight));
      // The norm of a single number is its sign: the gradient is what rounding leaves of zero.
      if (n > 1) out.push_back(rms_backward_case(rows, n, weight, false));
    }
    if (n == 1) continue;
    out.push_back(layer_norm_case(rows, n));
    out.push_back(layer_norm_backward_case(rows, n));
  }
  out.push_back(rms_backward_case(9, 17, true, true));
  out.push_back(rms_backward_case(1500, 64, true, true));
  for (const HalfLayer& h :
       {HalfLayer{1, 3, true, true}, HalfLayer{5, 7, false, false}, HalfLayer{5, 7, true, false},
        HalfLayer{5, 7, false, true}, HalfLayer{9, 33, true, true}, HalfLayer{70, 300, true, true},
        HalfLayer{1500, 64, true, true}, HalfLayer{1500, 64, true, false}, HalfLayer{150, 1032, false, true},
        HalfLayer{6, 3840, false, true}, HalfLayer{3, 4000, false, true}}) {
    out.push_back(half_layer_case(h));
    out.push_back(half_layer_backward_case(h));
  }
  return out;
}

}  // namespace lapidary
