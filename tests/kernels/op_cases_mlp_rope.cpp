// GeGLU, rotary tables and the preparation of q, k and v.
#include <cmath>
#include <numbers>

#include "tests/kernels/op_cases.h"

namespace lapidary {

namespace {

Values naive_geglu(std::size_t rows, std::size_t width, const Values& gate_up) {
  Values out(rows * width);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < width; ++j) {
      const double z = gate_up[i * 2 * width + j], up = gate_up[i * 2 * width + width + j];
      const double inner = std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * std::pow(z, 3));
      out[i * width + j] = 0.5 * z * (1 + std::tanh(inner)) * up;
    }
  }
  return out;
}

OpCase geglu_case(std::int64_t rows, std::int64_t width) {
  OpCase c;
  c.name = "GeGlu." + std::to_string(rows) + "x" + std::to_string(width);
  c.given["gate_up"] = random_values(rows * 2 * width, 1, 1.5);
  c.reference = [=](const Arrays& in) {
    return Arrays{{"out", naive_geglu(static_cast<std::size_t>(rows), static_cast<std::size_t>(width),
                                      in.at("gate_up"))}};
  };
  c.run = [=](OpRun& r) { r(GeGlu{r.in("gate_up", {rows, 2 * width}), r.out("out", {rows, width})}); };
  c.bounds["out"] = {2.1, 32};
  return c;
}

OpCase geglu_backward_case(std::int64_t rows, std::int64_t width) {
  OpCase c = geglu_case(rows, width);
  c.name = "GeGluBackward." + std::to_string(rows) + "x" + std::to_string(width);
  c.given["d_out"] = random_values(rows * width, 2);
  c.run = [=](OpRun& r) {
    const Tensor d_out = r.in("d_out", {rows, width}), gate_up = r.in("gate_up", {rows, 2 * width});
    r(GeGluBackward{d_out, gate_up, r.out("d_gate_up", {rows, 2 * width}), r.out("out", {rows, width})});
  };
  c.gradients = Gradients{{{"d_out", "out"}}, {{"d_gate_up", "gate_up"}}, {}, {}};
  c.bounds["d_gate_up"] = {2.1, 32};
  c.aliases = {{"d_gate_up", "gate_up"}, {"out", "d_out"}};
  c.optional = {"out"};
  return c;
}

/// Positions times powers of two: the angles are exact in float32 too.
OpCase rope_table_case(std::int64_t tokens, std::int64_t pairs) {
  OpCase c;
  c.name = "RopeTable." + std::to_string(tokens) + "x" + std::to_string(pairs);
  for (std::int64_t i = 0; i < tokens; ++i)
    c.given["positions"].push_back(static_cast<double>(i * 37 % 4096));
  for (std::int64_t j = 0; j < pairs; ++j)
    c.given["frequencies"].push_back(std::ldexp(1.0, -static_cast<int>(j)));
  c.given["positions"].resize(static_cast<std::size_t>(tokens));
  c.exact = {"positions", "frequencies"};
  c.reference = [](const Arrays& in) {
    Arrays out{{"cos", {}}, {"sin", {}}};
    for (const double position : in.at("positions")) {
      for (const double frequency : in.at("frequencies")) {
        out["cos"].push_back(std::cos(position * frequency));
        out["sin"].push_back(std::sin(position * frequency));
      }
    }
    return out;
  };
  c.run = [=](OpRun& r) {
    r(RopeTable{r.in_as("positions", DType::i32, {tokens}), r.in_as("frequencies", DType::f32, {pairs}),
                r.out_wide("cos", {tokens, pairs}), r.out_wide("sin", {tokens, pairs})});
  };
  c.bounds = {{"cos", {0, 4}}, {"sin", {0, 4}}};
  return c;
}

struct Heads {
  std::int64_t tokens, heads, kv, dim, pairs;
  bool shared;
  std::int64_t columns() const { return (heads + (shared ? 1 : 2) * kv) * dim; }
  std::string name() const {
    return std::to_string(tokens) + "x" + std::to_string(heads) + "x" + std::to_string(kv) + "x" +
           std::to_string(dim) + "p" + std::to_string(pairs) + (shared ? "_shared" : "");
  }
};

/// One head at `x`: normed, weighted, rotated by the specification's formula over the full table (cos 1, sin
/// 0 beyond the rotated pairs).
void naive_head(const Heads& s, const double* x, const double* weight, const double* cos, const double* sin,
                Values& out, Values& rstd) {
  double square = 0;
  for (std::int64_t j = 0; j < s.dim; ++j) square += x[j] * x[j];
  const double r = std::pow(square / static_cast<double>(s.dim) + 1e-6, -0.5);
  rstd.push_back(r);
  Values y(static_cast<std::size_t>(s.dim));
  for (std::int64_t j = 0; j < s.dim; ++j)
    y[static_cast<std::size_t>(j)] = x[j] * r * (weight ? weight[j] : 1.0);
  for (std::int64_t j = 0; j < s.dim; ++j) {
    const std::int64_t half = s.dim / 2, pair = j % half;
    const double co = cos && pair < s.pairs ? cos[pair] : 1.0, si = cos && pair < s.pairs ? sin[pair] : 0.0;
    const double other =
        j < half ? -y[static_cast<std::size_t>(j + half)] : y[static_cast<std::size_t>(j - half)];
    out.push_back(y[static_cast<std::size_t>(j)] * co + other * si);
  }
}

Arrays naive_qkv(const Heads& s, const Arrays& in) {
  Arrays out{{"q", {}}, {"k", {}}, {"v", {}}, {"rstd", {}}};
  for (std::int64_t i = 0; i < s.tokens; ++i) {
    const double* x = in.at("qkv").data() + i * s.columns();
    const double* cos = in.at("cos").data() + i * s.pairs;
    const double* sin = in.at("sin").data() + i * s.pairs;
    for (std::int64_t h = 0; h < s.heads; ++h)
      naive_head(s, x + h * s.dim, in.at("q_weight").data(), cos, sin, out["q"], out["rstd"]);
    for (std::int64_t h = s.heads; h < s.heads + s.kv; ++h)
      naive_head(s, x + h * s.dim, in.at("k_weight").data(), cos, sin, out["k"], out["rstd"]);
    for (std::int64_t h = s.heads; h < s.heads + s.kv; ++h)
      naive_head(s, x + (h + (s.shared ? 0 : s.kv)) * s.dim, nullptr, nullptr, nullptr, out["v"],
                 out["rstd"]);
  }
  return out;
}

OpCase qkv_case(const Heads& s) {
  OpCase c;
  c.name = "QkvNormRope." + s.name();
  c.given["qkv"] = random_values(s.tokens * s.columns(), 1, 2.0);
  c.given["q_weight"] = random_values(s.dim, 2, 0.3, 1.0);
  c.given["k_weight"] = random_values(s.dim, 3, 0.3, 1.0);
  Values &cos = c.given["cos"], &sin = c.given["sin"];
  for (const double angle : random_values(s.tokens * s.pairs, 4, 3.0)) {
    cos.push_back(std::cos(angle));
    sin.push_back(std::sin(angle));
  }
  c.exact = {"cos", "sin"};
  c.reference = [s](const Arrays& in) { return naive_qkv(s, in); };
  c.run = [s](OpRun& r) {
    QkvNormRope op{};
    op.qkv = r.in("qkv", {s.tokens, s.columns()});
    op.q_weight = r.in("q_weight", {s.dim});
    op.k_weight = r.in("k_weight", {s.dim});
    op.cos = r.in_wide("cos", {s.tokens, s.pairs});
    op.sin = r.in_wide("sin", {s.tokens, s.pairs});
    op.shared_kv = s.shared;
    op.q = r.out("q", {s.tokens, s.heads, s.dim});
    op.k = r.out("k", {s.tokens, s.kv, s.dim});
    op.v = r.out("v", {s.tokens, s.kv, s.dim});
    op.rstd = r.out_wide("rstd", {s.tokens, s.heads + 2 * s.kv});
    r(op);
  };
  c.bounds["rstd"] = {0, 8};
  return c;
}

OpCase qkv_backward_case(const Heads& s) {
  OpCase c = qkv_case(s);
  c.name = "QkvNormRopeBackward." + s.name();
  c.given["d_q"] = random_values(s.tokens * s.heads * s.dim, 6);
  c.given["d_k"] = random_values(s.tokens * s.kv * s.dim, 7);
  c.given["d_v"] = random_values(s.tokens * s.kv * s.dim, 8);
  c.run = [s](OpRun& r) {
    QkvNormRopeBackward op{};
    op.d_q = r.in("d_q", {s.tokens, s.heads, s.dim});
    op.d_k = r.in("d_k", {s.tokens, s.kv, s.dim});
    op.d_v = r.in("d_v", {s.tokens, s.kv, s.dim});
    op.qkv = r.in("qkv", {s.tokens, s.columns()});
    op.q_weight = r.in("q_weight", {s.dim});
    op.k_weight = r.in("k_weight", {s.dim});
    op.cos = r.in_wide("cos", {s.tokens, s.pairs});
    op.sin = r.in_wide("sin", {s.tokens, s.pairs});
    op.rstd = r.in_wide("rstd", {s.tokens, s.heads + 2 * s.kv});
    op.shared_kv = s.shared;
    op.d_qkv = r.out("d_qkv", {s.tokens, s.columns()});
    op.d_q_weight = r.accumulator("d_q_weight", {s.dim});
    op.d_k_weight = r.accumulator("d_k_weight", {s.dim});
    r(op);
  };
  c.gradients = Gradients{{{"d_q", "q"}, {"d_k", "k"}, {"d_v", "v"}},
                          {{"d_qkv", "qkv"}, {"d_q_weight", "q_weight"}, {"d_k_weight", "k_weight"}},
                          {"d_q_weight", "d_k_weight"},
                          {}};
  return c;
}

}  // namespace

std::vector<OpCase> mlp_cases() {
  std::vector<OpCase> out;
  for (const auto& [rows, width] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {3, 5}, {0, 4}, {7, 129}, {40, 300}}) {
    out.push_back(geglu_case(rows, width));
    out.push_back(geglu_backward_case(rows, width));
  }
  return out;
}

std::vector<OpCase> rope_cases() {
  std::vector<OpCase> out = {rope_table_case(1, 1), rope_table_case(0, 3), rope_table_case(300, 11)};
  for (const Heads& s :
       {Heads{1, 1, 1, 2, 1, false}, Heads{3, 4, 2, 6, 3, false}, Heads{3, 4, 2, 6, 2, true},
        Heads{5, 3, 1, 8, 1, true}, Heads{2, 2, 1, 8, 0, false}, Heads{0, 2, 1, 4, 2, false},
        Heads{67, 4, 2, 64, 32, false}, Heads{67, 4, 1, 64, 8, true}, Heads{1000, 2, 1, 16, 8, false},
        Heads{5, 16, 8, 256, 128, false}, Heads{5, 16, 1, 512, 64, true}}) {
    out.push_back(qkv_case(s));
    out.push_back(qkv_backward_case(s));
    if (s.tokens == 0)
      out[out.size() - 1].ignores_nan = out[out.size() - 2].ignores_nan = {"q_weight", "k_weight"};
  }
  return out;
}

}  // namespace lapidary
