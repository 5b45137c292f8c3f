// The interval form of the mask against the specification's own set rules, by brute force over random rows.
#include "kernels/batch.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/error.h"

namespace lapidary {
namespace {

struct Layout {
  std::vector<std::int32_t> document;
  std::vector<std::uint8_t> vision;
};

Layout random_layout(std::mt19937& rng) {
  Layout l;
  const int tokens = 1 + static_cast<int>(rng() % 60);
  int doc = 0;
  std::uint8_t vision = 0;
  for (int t = 0; t < tokens; ++t) {
    if (rng() % 11 == 0) ++doc;
    if (rng() % 5 == 0) vision ^= 1u;
    l.document.push_back(doc);
    l.vision.push_back(vision);
  }
  return l;
}

/// Specification 3.7, term by term.
bool visible(const Layout& l, int q, int k, int window, ImageAttention rule, bool sliding_layer) {
  auto same_block = [&] {
    if (!l.vision[q] || !l.vision[k]) return false;
    for (int t = std::min(q, k); t <= std::max(q, k); ++t)
      if (!l.vision[t] || l.document[t] != l.document[q]) return false;
    return true;
  };
  const bool causal = k <= q, doc = l.document[q] == l.document[k], win = k > q - window;
  if (rule == ImageAttention::all)
    return sliding_layer ? (causal && win && doc) || same_block() : (causal && doc) || same_block();
  return sliding_layer ? (causal || same_block()) && win && doc : causal && doc;
}

TEST(AttentionIntervals, EqualTheSpecificationsSetsForRandomRows) {
  std::mt19937 rng(7);
  for (int trial = 0; trial < 4000; ++trial) {
    const Layout l = random_layout(rng);
    const int window = 1 + static_cast<int>(rng() % 20), tokens = static_cast<int>(l.document.size());
    for (const auto rule : {ImageAttention::sliding, ImageAttention::all}) {
      Intervals full, sliding;
      attention_intervals(l.document, l.vision, window, rule, full, sliding);
      for (int q = 0; q < tokens; ++q) {
        for (int k = 0; k < tokens; ++k) {
          ASSERT_EQ(visible(l, q, k, window, rule, false), k >= full.lo[q] && k < full.hi[q])
              << q << ' ' << k;
          ASSERT_EQ(visible(l, q, k, window, rule, true), k >= sliding.lo[q] && k < sliding.hi[q])
              << q << ' ' << k;
        }
        if (q) {
          ASSERT_GE(full.lo[q], full.lo[q - 1]);
          ASSERT_GE(full.hi[q], full.hi[q - 1]);
          ASSERT_GE(sliding.lo[q], sliding.lo[q - 1]);
          ASSERT_GE(sliding.hi[q], sliding.hi[q - 1]);
        }
      }
    }
  }
}

Batch three_tokens() {
  Batch b;
  b.ids = {2, 9, 4};
  b.targets = {-1, 4, -1};
  b.positions = {0, 1, 2};
  b.patches = {DType::u8, 1, 3, std::vector<std::byte>(3), {1}};
  b.patch_xy = {0, 0};
  b.rows = 1;
  attention_intervals({0, 0, 0}, {0, 1, 0}, 2, ImageAttention::sliding, b.full, b.sliding);
  return b;
}

std::string message(const Batch& b) {
  try {
    check_batch(b, 10, {9}, "here");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(CheckBatch, AcceptsAConsistentBatch) {
  EXPECT_EQ(message(three_tokens()), "");
}

TEST(CheckBatch, NamesWhatIsWrong) {
  auto b = three_tokens();
  b.ids[2] = 9;
  EXPECT_NE(message(b).find("a placeholder without a feature"), std::string::npos) << message(b);
  b = three_tokens();
  b.ids[1] = 3;
  EXPECT_NE(message(b).find("a feature would replace"), std::string::npos) << message(b);
  b = three_tokens();
  b.ids[0] = 10;
  EXPECT_NE(message(b).find("token 0 has id 10, expected 0 to 9"), std::string::npos) << message(b);
  b = three_tokens();
  b.patches.values.pop_back();
  EXPECT_NE(message(b).find("hold 2 bytes, expected 3"), std::string::npos) << message(b);
  b = three_tokens();
  b.sliding.hi[0] = 0;
  EXPECT_NE(message(b).find("sliding attention interval of token 0"), std::string::npos) << message(b);
}

}  // namespace
}  // namespace lapidary
