// Philox against the known answers of its authors' test suite (Random123, kat_vectors), and the bits and
// halves that rounding and normal numbers take from a block.
#include "kernels/philox.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/op_run.h"

namespace lapidary {
namespace {

void expect_block(const PhiloxBlock& b, std::uint32_t w0, std::uint32_t w1, std::uint32_t w2,
                  std::uint32_t w3) {
  EXPECT_EQ(b.word[0], w0);
  EXPECT_EQ(b.word[1], w1);
  EXPECT_EQ(b.word[2], w2);
  EXPECT_EQ(b.word[3], w3);
}

TEST(Philox, GivesTheKnownAnswers) {
  expect_block(philox(0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
  expect_block(philox(~0ull, ~0ull, ~0ull), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);
  expect_block(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e), 0xd16cfe09, 0x94fdcceb,
               0x5001e420, 0x24126ea1);
}

TEST(Philox, SevenRoundsAreThoseOfTheTestSuite) {
  const PhiloxBlock b = philox<7>(0, 0, 0);
  expect_block(b, 0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48);
  const PhiloxBlock ones = philox<7>(~0ull, ~0ull, ~0ull);
  expect_block(ones, 0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662);
}

TEST(Philox, RoundingTakesItsBitsFromTheElementsWord) {
  const PhiloxBlock b{{0x11112222, 0x33334444, 0x55556666, 0x77778888}};
  const RoundingBits first = rounding_bits(b, 8), last = rounding_bits(b, 11);
  EXPECT_EQ(first.m, 0x2222);
  EXPECT_EQ(first.v, 0x1111);
  EXPECT_EQ(last.m, 0x8888);
  EXPECT_EQ(last.v, 0x7777);
}

// The parameter's bits are uniform and uncorrelated with those of either moment.
TEST(Philox, AParametersRoundingIsUncorrelatedWithItsMoments) {
  constexpr int kQuads = 1 << 16, kCells = 16;
  int m_cells[kCells][kCells] = {}, v_cells[kCells][kCells] = {};
  for (std::uint64_t i = 0; i < 4 * kQuads; ++i) {
    const RoundingBits bits = rounding_bits(rounding_block(3, 7, i / 4), i);
    ++m_cells[bits.param >> 12][bits.m >> 12];
    ++v_cells[bits.param >> 12][bits.v >> 12];
  }
  const double expected = 4.0 * kQuads / (kCells * kCells);
  double m_chi = 0, v_chi = 0;
  for (int i = 0; i < kCells; ++i) {
    for (int j = 0; j < kCells; ++j) {
      m_chi += std::pow(m_cells[i][j] - expected, 2) / expected;
      v_chi += std::pow(v_cells[i][j] - expected, 2) / expected;
    }
  }
  // Chi squared of 255 degrees of freedom: mean 255, standard deviation 22.6.
  EXPECT_NEAR(m_chi, 255, 5 * 22.6);
  EXPECT_NEAR(v_chi, 255, 5 * 22.6);
}

TEST(Philox, UniformsCoverTheirIntervalsEnds) {
  EXPECT_EQ(uniform_above_zero({{0, 0, 0, 0}}), 0x1p-53);
  EXPECT_EQ(uniform_above_zero({{~0u, ~0u, 0, 0}}), 1.0);
  EXPECT_EQ(uniform_below_one({{0, 0, 0, 0}}), 0.0);
  EXPECT_EQ(uniform_below_one({{0, 0, ~0u, ~0u}}), 1.0 - 0x1p-53);
}

Values normals(std::uint64_t seed, std::uint64_t stream, std::int64_t first, std::int64_t count) {
  OpRun run(cpu_backend(), {}, {});
  const Tensor out = run.out("out", {count});
  run(FillNormal{out, 0.0, 1.0, seed, stream, first});
  return run.read(out);
}

TEST(FillNormal, AnyCutIntoRangesGivesTheSameNumbers) {
  const Values whole = normals(5, 6, 3, 1000);
  for (const std::int64_t cut : {1, 2, 499, 500, 999}) {
    Values parts = normals(5, 6, 3, cut);
    const Values rest = normals(5, 6, 3 + cut, 1000 - cut);
    parts.insert(parts.end(), rest.begin(), rest.end());
    EXPECT_EQ(parts, whole) << cut;
  }
}

/// Mean, variance and fourth moment of a million numbers, within five standard errors; neighbours, streams
/// and seeds uncorrelated.
TEST(FillNormal, HasTheMomentsOfANormalDistribution) {
  constexpr std::int64_t kCount = 1000000;
  const Values x = normals(1, 0, 0, kCount), other_stream = normals(1, 1, 0, kCount),
               other_seed = normals(2, 0, 0, kCount);
  double mean = 0, square = 0, fourth = 0, next = 0, stream = 0, seed = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    mean += x[i];
    square += x[i] * x[i];
    fourth += std::pow(x[i], 4);
    next += x[i] * x[(i + 1) % x.size()];
    stream += x[i] * other_stream[i];
    seed += x[i] * other_seed[i];
  }
  const double n = static_cast<double>(kCount), error = 5 / std::sqrt(n);
  EXPECT_NEAR(mean / n, 0, error);
  EXPECT_NEAR(square / n, 1, error * std::sqrt(2));
  EXPECT_NEAR(fourth / n, 3, error * std::sqrt(96));
  EXPECT_NEAR(next / n, 0, error);
  EXPECT_NEAR(stream / n, 0, error);
  EXPECT_NEAR(seed / n, 0, error);
}

}  // namespace
}  // namespace lapidary
