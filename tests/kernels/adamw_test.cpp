// The storage forms of the optimizer's state: which combinations are exact, that stochastic rounding is
// without bias and independent of how parameters are cut, and what must be refused.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kernels/adamw_update.h"
#include "kernels/error.h"
#include "tests/kernels/op_run.h"

namespace lapidary {
namespace {

struct Forms {
  DType param = DType::f32, moments = DType::f32, grad = DType::f32;
  bool master = false, remainder = false;
};

struct State {
  Values param, m, v, master, remainder;
};

AdamW settings(std::int64_t step) {
  AdamW op{};
  op.lr = 0.02;
  op.beta2 = 0.95;
  op.weight_decay = 0.1;
  op.step = step;
  op.seed = 11;
  return op;
}

/// One step on all of `state`, in place; elements are number first_index and on of the whole model.
void step_once(const Forms& f, std::int64_t step, const Values& grad, State& state,
               std::int64_t first_index = 0) {
  const auto n = static_cast<std::int64_t>(grad.size());
  const Arrays given{{"param", state.param}, {"m", state.m},           {"v", state.v},
                     {"grad", grad},         {"master", state.master}, {"remainder", state.remainder},
                     {"grad_factor", {0.75}}};
  OpRun run(cpu_backend(), given, {.type = f.param});
  AdamW op = settings(step);
  op.param = run.in_out("param", {n});
  op.m = run.in_out_as("m", f.moments, {n});
  op.v = run.in_out_as("v", f.moments, {n});
  op.grad = run.in_as("grad", f.grad, {n});
  op.grad_factor = run.in_wide("grad_factor", {1});
  if (f.master) op.master = run.in_out_as("master", DType::f32, {n});
  if (f.remainder) op.remainder = run.in_out_as("remainder", DType::i16, {n});
  op.first_index = first_index;
  run(op);
  const auto results = run.results();
  state.param = results.at("param").values;
  state.m = results.at("m").values;
  state.v = results.at("v").values;
  if (f.master) state.master = results.at("master").values;
  if (f.remainder) state.remainder = results.at("remainder").values;
}

Values float_values(std::int64_t n, unsigned seed, double scale) {
  Values out = random_values(n, seed, scale);
  for (double& x : out) x = rounded(x, DType::f32);
  return out;
}

State fresh(const Values& start, const Forms& f) {
  State s{start, Values(start.size(), 0.0), Values(start.size(), 0.0), {}, {}};
  if (f.master) s.master = start;
  if (!f.remainder) return s;
  for (std::size_t i = 0; i < start.size(); ++i) {
    const SplitFloat split = split_float(static_cast<float>(start[i]));
    bf16 upper;
    upper.bits = split.upper;
    s.param[i] = static_cast<double>(static_cast<float>(upper));
    s.remainder.push_back(split.rest);
  }
  return s;
}

TEST(AdamW, MasterRemainderAndFloat32ParametersStayTheSameFloat32) {
  const Values start = float_values(1000, 1, 1.0);
  const Forms plain{}, master{DType::bf16, DType::f32, DType::f32, true, false},
      remainder{DType::bf16, DType::f32, DType::f32, false, true};
  State a = fresh(start, plain), b = fresh(start, master), c = fresh(start, remainder);
  for (int step = 1; step <= 20; ++step) {
    const Values grad = float_values(1000, 100 + static_cast<unsigned>(step), 0.3);
    step_once(plain, step, grad, a);
    step_once(master, step, grad, b);
    step_once(remainder, step, grad, c);
  }
  EXPECT_EQ(a.param, b.master);
  for (std::size_t i = 0; i < a.param.size(); ++i) {
    EXPECT_EQ(b.param[i], rounded(a.param[i], DType::bf16)) << i;
    const SplitFloat parts{bf16(static_cast<float>(c.param[i])).bits,
                           static_cast<std::int16_t>(c.remainder[i])};
    EXPECT_EQ(join_float(parts), static_cast<float>(a.param[i])) << i;
  }
}

TEST(AdamW, SplittingAFloatIsExactForEveryKindOfNumber) {
  std::mt19937 rng(3);
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<std::uint32_t>(rng());
    const float x = float_of_bits(bits);
    const SplitFloat split = split_float(x);
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(join_float(split)));
      continue;
    }
    ASSERT_EQ(float_bits(join_float(split)), bits);
    if (!std::isfinite(x) || std::abs(x) > 3.38e38f) continue;
    bf16 upper;
    upper.bits = split.upper;
    // A neighbour at most half a step away, as rounding to nearest gives.
    ASSERT_LE(std::abs(static_cast<double>(static_cast<float>(upper)) - static_cast<double>(x)),
              std::abs(static_cast<double>(static_cast<float>(bf16(x))) - static_cast<double>(x)));
  }
  for (const std::uint32_t bits : {0u, 0x80000000u, 0x7f800000u, 0xff800000u, 0x00000001u, 0x3f808000u,
                                   0x3f818000u, 0x7f7fffffu, 0x00007fffu, 0x0000ffffu})
    EXPECT_EQ(float_bits(join_float(split_float(float_of_bits(bits)))), bits) << bits;
}

TEST(AdamW, StochasticRoundingTakesTheNeighboursInProportion) {
  for (const float x : {1.0f + 1.0f / 512, -1.0f - 3.0f / 512, 1e-20f, 3.14159f}) {
    const double low = static_cast<double>(float_of_bits(float_bits(x) & 0xffff0000u));
    const double high = static_cast<double>(float_of_bits((float_bits(x) & 0xffff0000u) + 0x10000u));
    double sum = 0;
    for (std::uint32_t random = 0; random < 65536; ++random) {
      bf16 r;
      r.bits = round_stochastic(x, static_cast<std::uint16_t>(random));
      const double value = static_cast<double>(static_cast<float>(r));
      ASSERT_TRUE(value == low || value == high);
      sum += value;
    }
    EXPECT_NEAR(sum / 65536, static_cast<double>(x),
                std::abs(high - low) / 65536);  // over all draws: no bias
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(round_stochastic(infinity, 0xffff), 0x7f80);
  EXPECT_EQ(round_stochastic(-infinity, 0xffff), 0xff80);
  bf16 nan;
  nan.bits = round_stochastic(std::nanf(""), 0xffff);
  EXPECT_TRUE(std::isnan(static_cast<float>(nan)));
}

TEST(AdamW, LeanStateFollowsFloat32OnAverage) {
  // Updates far below a bf16 step: rounding to nearest would never move the parameter.
  const Forms lean{DType::bf16, DType::bf16, DType::bf16, false, false};
  constexpr std::int64_t kCount = 20000;
  State a = fresh(Values(kCount, 1.0), lean);
  const Values grad(kCount, 0.01);
  for (int step = 1; step <= 10; ++step) {
    State before = a;
    step_once(lean, step, grad, a);
  }
  State b = fresh({1.0}, Forms{});
  for (int step = 1; step <= 10; ++step) step_once(Forms{}, step, {0.01}, b);
  double mean = 0;
  for (const double p : a.param) mean += p / kCount;
  EXPECT_NEAR(mean, b.param[0], 5 * 0.004 / std::sqrt(double(kCount)) + 2e-3 * std::abs(1 - b.param[0]));
}

TEST(AdamW, StochasticRoundingDoesNotDependOnTheCut) {
  const Forms lean{DType::bf16, DType::bf16, DType::f32, false, false};
  const Values start = random_values(1300, 4), grad = float_values(1300, 5, 1.0);
  State whole = fresh(start, lean);
  step_once(lean, 3, grad, whole, 77);
  for (const std::size_t cut : {std::size_t{1}, std::size_t{2}, std::size_t{511}, std::size_t{900}}) {
    const auto at = static_cast<std::ptrdiff_t>(cut);
    State first = fresh(Values(start.begin(), start.begin() + at), lean),
          second = fresh(Values(start.begin() + at, start.end()), lean);
    step_once(lean, 3, Values(grad.begin(), grad.begin() + at), first, 77);
    step_once(lean, 3, Values(grad.begin() + at, grad.end()), second, 77 + at);
    for (auto part : {&State::param, &State::m, &State::v}) {
      Values joined = first.*part;
      joined.insert(joined.end(), (second.*part).begin(), (second.*part).end());
      EXPECT_EQ(joined, whole.*part) << cut;
    }
  }
}

TEST(AdamW, StepsAndSeedsDrawDifferentBits) {
  const Forms lean{DType::bf16, DType::f32, DType::f32, false, false};
  const Values start = random_values(1000, 4), zero(1000, 0.0);
  State a = fresh(start, lean), b = a;
  step_once(lean, 1000, zero, a);
  step_once(lean, 1001, zero, b);
  EXPECT_NE(a.param, b.param);
}

TEST(AdamW, RefusesWhatDoesNotFit) {
  const Arrays given{{"param", {1, 2}}, {"m", {0, 0}},      {"v", {0, 0}},         {"grad", {0, 0}},
                     {"rest", {0, 0}},  {"master", {1, 2}}, {"grad_factor", {1.0}}};
  const auto message = [&](DType type, bool master, bool remainder, std::int64_t step) -> std::string {
    OpRun run(cpu_backend(), given, {.type = type});
    AdamW op = settings(step);
    op.param = run.in_out("param", {2});
    op.m = run.in_out("m", {2});
    op.v = run.in_out("v", {2});
    op.grad = run.in("grad", {2});
    op.grad_factor = run.in_wide("grad_factor", {1});
    if (master) op.master = run.in_out_as("master", DType::f32, {2});
    if (remainder) op.remainder = run.in_as("rest", DType::i16, {2});
    try {
      run(op);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message(DType::bf16, true, false, 1), "");
  EXPECT_NE(message(DType::bf16, true, true, 1), "");
  EXPECT_NE(message(DType::f32, false, true, 1), "");
  EXPECT_NE(message(DType::f64, true, false, 1), "");
  EXPECT_NE(message(DType::f32, false, false, 0), "");
}

}  // namespace
}  // namespace lapidary
