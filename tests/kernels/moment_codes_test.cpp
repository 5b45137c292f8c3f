// AdamW's moments in one byte: what the codes stand for, that rounding is without bias, and how near an
// update stays to the one with float32 moments.
#include "kernels/moment_codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>

#include "kernels/error.h"
#include "tests/kernels/op_run.h"

namespace lapidary {
namespace {

constexpr std::uint32_t kNearest = 0x8000;

TEST(MomentCodes, EveryCodeStandsForItself) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    if (code != 0x80) {  // minus zero is zero
      EXPECT_EQ(encode_first_moment(decode_first_moment(byte), kNearest), byte);
    }
    EXPECT_EQ(encode_second_moment(decode_second_moment(byte), kNearest), byte);
  }
  EXPECT_EQ(decode_first_moment(0x80), 0.0f);
  EXPECT_EQ(decode_first_moment(127), 3.5f);
  EXPECT_EQ(decode_first_moment(255), -3.5f);
  EXPECT_EQ(decode_first_moment(1), 1.25f * 0x1p-30f);
  EXPECT_EQ(decode_second_moment(255), 14.0f);
  EXPECT_EQ(decode_second_moment(1), 1.25f * 0x1p-60f);
}

TEST(MomentCodes, TheNearestIsWithinAnEighth) {
  std::mt19937 rng(1);
  std::uniform_real_distribution<float> exponent(-29.0f, 1.5f);
  for (int i = 0; i < 100000; ++i) {
    const float x = std::exp2(exponent(rng));
    ASSERT_NEAR(decode_first_moment(encode_first_moment(x, kNearest)), x, x / 8);
    ASSERT_EQ(encode_first_moment(-x, kNearest), encode_first_moment(x, kNearest) | 0x80);
    ASSERT_NEAR(decode_second_moment(encode_second_moment(x * x, kNearest)), x * x, x * x / 8);
  }
}

// Over all random bits the mean is the number itself, for numbers between codes and below the smallest.
TEST(MomentCodes, RoundingIsWithoutBias) {
  for (const float x : {1.0f, 1.1f, 2.9f, 3.3e-5f, 0x1p-30f, 0x1p-33f, 0x1.8p-31f}) {
    double first = 0, second = 0;
    for (std::uint32_t random = 0; random < 65536; ++random) {
      first += static_cast<double>(decode_first_moment(encode_first_moment(-x, random))) / 65536;
      second += static_cast<double>(decode_second_moment(encode_second_moment(x, random))) / 65536;
    }
    const double least = 1.25 * 0x1p-30 / 65536;  // what one draw is worth below the smallest code
    EXPECT_NEAR(first, static_cast<double>(-x), 1e-5 * static_cast<double>(x) + least) << x;
    EXPECT_NEAR(second, static_cast<double>(x), 1e-5 * static_cast<double>(x)) << x;
  }
}

TEST(MomentCodes, TheEndsOfTheRange) {
  const float huge = std::numeric_limits<float>::infinity();
  for (const float x : {3.6f, 1e30f, huge, std::nanf("")}) {
    EXPECT_EQ(encode_first_moment(x, 0xffff) & 0x7f, 127) << x;
    EXPECT_EQ(encode_second_moment(x * 5, 0xffff), 255) << x;
  }
  EXPECT_EQ(encode_first_moment(1e-38f, 0xffff), 0);
  EXPECT_EQ(encode_second_moment(1e-38f, 0xffff), 1);  // never 0: a root of it divides
  EXPECT_EQ(encode_second_moment(0.0f, 0), 0);
  EXPECT_EQ(encode_first_moment(0.0f, 0), 0);
}

/// The GPU where LAPIDARY_TEST_DEVICE is cuda.
Backend& tested_backend() {
  const char* device = std::getenv("LAPIDARY_TEST_DEVICE");
  return device != nullptr && std::string(device) == "cuda" ? cuda_backend(0) : cpu_backend();
}

struct State {
  Values param, m, v;
};

void step_once(DType moments, std::int64_t step, const Values& grad, State& s, std::int64_t first = 0,
               DType param = DType::bf16) {
  const auto n = static_cast<std::int64_t>(grad.size());
  const Arrays given{{"param", s.param}, {"m", s.m}, {"v", s.v}, {"grad", grad}, {"grad_factor", {1.0}}};
  OpRun run(param == DType::bf16 ? tested_backend() : cpu_backend(), given, {.type = param});
  AdamW op{};
  op.lr = 1e-3;
  op.beta2 = 0.95;
  op.step = step;
  op.seed = 5;
  op.first_index = first;
  op.param = run.in_out("param", {n});
  op.m = run.in_out_as("m", moments, {n});
  op.v = run.in_out_as("v", moments, {n});
  op.grad = run.in_as("grad", DType::f32, {n});
  op.grad_factor = run.in_wide("grad_factor", {1});
  run(op);
  const auto results = run.results();
  s = {results.at("param").values, results.at("m").values, results.at("v").values};
}

State start(std::size_t n) {
  return {Values(n, 0.0), Values(n, 0.0), Values(n, 0.0)};
}

// Parameters in float32, so that only the moments' rounding shows: after 150 steps of noisy gradients over
// six orders of magnitude the way that each parameter went is that of exact moments, on average and within a
// few per cent of its length each.
TEST(MomentCodes, UpdatesFollowExactMoments) {
  constexpr std::size_t kCount = 1400;
  State exact = start(kCount), coded = start(kCount);
  std::mt19937 rng(3);
  std::normal_distribution<double> normal;
  for (int step = 1; step <= 150; ++step) {
    Values grad(kCount);
    for (std::size_t i = 0; i < kCount; ++i)
      grad[i] = rounded((0.5 + normal(rng)) * std::pow(10.0, -1.0 - static_cast<double>(i % 7)), DType::f32);
    step_once(DType::f32, step, grad, exact, 0, DType::f32);
    step_once(DType::u8, step, grad, coded, 0, DType::f32);
  }
  double mean = 0, square = 0;
  for (std::size_t i = 0; i < kCount; ++i) {
    const double off = coded.param[i] / exact.param[i] - 1;
    mean += off / kCount;
    square += off * off / kCount;
  }
  EXPECT_LT(std::abs(mean), 0.02);
  EXPECT_LT(std::sqrt(square), 0.08);
}

// Every result is one of the two neighbours of what double arithmetic gives from the same moments.
TEST(MomentCodes, AnUpdateIsTheReferencesUpToItsRounding) {
  constexpr std::size_t kCount = 3001;
  const Values m = random_values(kCount, 1, 0.1), spread = random_values(kCount, 2, 0.1),
               param = random_values(kCount, 3), raw = random_values(kCount, 4, 0.1);
  State before = start(kCount);
  Values grad;
  for (std::size_t i = 0; i < kCount; ++i) {
    before.param[i] = rounded(param[i], DType::bf16);
    before.m[i] = encode_first_moment(static_cast<float>(m[i]), kNearest);
    before.v[i] = encode_second_moment(static_cast<float>(spread[i] * spread[i] + 1e-4), kNearest);
    grad.push_back(rounded(raw[i], DType::f32));
  }
  State after = before;
  step_once(DType::u8, 3, grad, after, 5);
  for (std::size_t i = 0; i < kCount; ++i) {
    const double old_m = decode_first_moment(static_cast<std::uint8_t>(before.m[i])),
                 old_v = decode_second_moment(static_cast<std::uint8_t>(before.v[i]));
    const double new_m = 0.9 * old_m + 0.1 * grad[i], new_v = 0.95 * old_v + 0.05 * grad[i] * grad[i];
    const double step = 1e-3 * new_m / (1 - 0.729) / (std::sqrt(new_v / (1 - 0.857375)) + 1e-8);
    const double expected = before.param[i] - step;
    ASSERT_NEAR(after.param[i], expected, 0x1p-7 * std::abs(expected) + 1e-6) << i;
    ASSERT_NEAR(static_cast<double>(decode_first_moment(static_cast<std::uint8_t>(after.m[i]))), new_m,
                0.2501 * std::abs(new_m))
        << i;
    ASSERT_NEAR(static_cast<double>(decode_second_moment(static_cast<std::uint8_t>(after.v[i]))), new_v,
                0.2501 * new_v)
        << i;
  }
}

TEST(MomentCodes, DoNotDependOnTheCut) {
  constexpr std::size_t kCount = 1300;
  const Values grad = random_values(kCount, 5, 1e-3);
  State whole = start(kCount);
  for (int step = 1; step <= 3; ++step) step_once(DType::u8, step, grad, whole, 77);
  for (const std::size_t cut : {std::size_t{1}, std::size_t{511}, std::size_t{900}}) {
    const auto at = static_cast<std::ptrdiff_t>(cut);
    State first = start(cut), second = start(kCount - cut);
    for (int step = 1; step <= 3; ++step) {
      step_once(DType::u8, step, Values(grad.begin(), grad.begin() + at), first, 77);
      step_once(DType::u8, step, Values(grad.begin() + at, grad.end()), second, 77 + at);
    }
    for (auto part : {&State::param, &State::m, &State::v}) {
      Values joined = first.*part;
      joined.insert(joined.end(), (second.*part).begin(), (second.*part).end());
      EXPECT_EQ(joined, whole.*part) << cut;
    }
  }
}

TEST(MomentCodes, BothMomentsOrNone) {
  const Arrays given{{"param", {1}}, {"m", {0}}, {"v", {0}}, {"grad", {0}}, {"grad_factor", {1}}};
  OpRun run(cpu_backend(), given, {.type = DType::bf16});
  AdamW op{};
  op.param = run.in_out("param", {1});
  op.m = run.in_out_as("m", DType::u8, {1});
  op.v = run.in_out_as("v", DType::f32, {1});
  op.grad = run.in("grad", {1});
  op.grad_factor = run.in_wide("grad_factor", {1});
  EXPECT_THROW(run(op), Error);
  std::swap(op.m, op.v);
  EXPECT_THROW(run(op), Error);
}

}  // namespace
}  // namespace lapidary
