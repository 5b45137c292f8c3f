// Attention over key intervals: causal, windows, packed documents, image blocks longer than the window and
// than a tile, queries without keys.
#include <cmath>
#include <limits>
#include <random>

#include "kernels/batch.h"
#include "tests/kernels/op_cases.h"

namespace lapidary {

namespace {

struct Scene {
  std::string name;
  std::int64_t tokens, heads, kv, dim;
  Intervals keys;
};

/// Softmax over the visible keys, one query and head at a time.
Arrays naive_attention(const Scene& s, const Arrays& in) {
  const Values &q = in.at("q"), &k = in.at("k"), &v = in.at("v");
  Arrays result{{"out", Values(q.size(), 0.0)},
                {"lse", Values(static_cast<std::size_t>(s.heads * s.tokens))}};
  const auto at = [&](std::int64_t token, std::int64_t heads, std::int64_t head, std::int64_t j) {
    return static_cast<std::size_t>((token * heads + head) * s.dim + j);
  };
  for (std::int64_t h = 0; h < s.heads; ++h) {
    const std::int64_t g = h / (s.heads / s.kv);
    for (std::int64_t t = 0; t < s.tokens; ++t) {
      const std::int64_t lo = s.keys.lo[static_cast<std::size_t>(t)],
                         hi = s.keys.hi[static_cast<std::size_t>(t)];
      Values score;
      double top = -std::numeric_limits<double>::infinity(), sum = 0;
      for (std::int64_t key = lo; key < hi; ++key) {
        double dot = 0;
        for (std::int64_t j = 0; j < s.dim; ++j) dot += q[at(t, s.heads, h, j)] * k[at(key, s.kv, g, j)];
        score.push_back(dot);
        top = std::max(top, dot);
      }
      for (const double x : score) sum += std::exp(x - top);
      for (std::int64_t key = lo; key < hi; ++key) {
        const double p = std::exp(score[static_cast<std::size_t>(key - lo)] - top) / sum;
        for (std::int64_t j = 0; j < s.dim; ++j)
          result["out"][at(t, s.heads, h, j)] += p * v[at(key, s.kv, g, j)];
      }
      result["lse"][static_cast<std::size_t>(h * s.tokens + t)] = top + std::log(sum);
    }
  }
  return result;
}

OpCase attention_case(const Scene& s) {
  OpCase c;
  c.name = "Attention." + s.name;
  const double scale = 1.5 / std::sqrt(std::sqrt(static_cast<double>(s.dim)));  // scores of about 2
  c.given["q"] = random_values(s.tokens * s.heads * s.dim, 1, scale);
  c.given["k"] = random_values(s.tokens * s.kv * s.dim, 2, scale);
  c.given["v"] = random_values(s.tokens * s.kv * s.dim, 3);
  c.given["lo"] = Values(s.keys.lo.begin(), s.keys.lo.end());
  c.given["hi"] = Values(s.keys.hi.begin(), s.keys.hi.end());
  c.exact = {"lo", "hi"};
  c.reference = [s](const Arrays& in) { return naive_attention(s, in); };
  c.run = [s](OpRun& r) {
    Attention op{};
    op.q = r.in("q", {s.tokens, s.heads, s.dim});
    op.k = r.in("k", {s.tokens, s.kv, s.dim});
    op.v = r.in("v", {s.tokens, s.kv, s.dim});
    op.lo = r.in_as("lo", DType::i32, {s.tokens});
    op.hi = r.in_as("hi", DType::i32, {s.tokens});
    op.out = r.out("out", {s.tokens, s.heads, s.dim});
    op.lse = r.out_wide("lse", {s.heads, s.tokens});
    op.host_lo = s.keys.lo.data();
    op.host_hi = s.keys.hi.data();
    r(op);
  };
  c.bounds = {{"out", {2, 256}}, {"lse", {0, 64}}};
  return c;
}

OpCase attention_backward_case(const Scene& s) {
  OpCase c = attention_case(s);
  c.name = "AttentionBackward." + s.name;
  c.given["d_out"] = random_values(s.tokens * s.heads * s.dim, 5);
  c.run = [s](OpRun& r) {
    AttentionBackward op{};
    op.d_out = r.in("d_out", {s.tokens, s.heads, s.dim});
    op.q = r.in("q", {s.tokens, s.heads, s.dim});
    op.k = r.in("k", {s.tokens, s.kv, s.dim});
    op.v = r.in("v", {s.tokens, s.kv, s.dim});
    op.lo = r.in_as("lo", DType::i32, {s.tokens});
    op.hi = r.in_as("hi", DType::i32, {s.tokens});
    op.out = r.in("out", {s.tokens, s.heads, s.dim});
    op.lse = r.in_wide("lse", {s.heads, s.tokens});
    op.host_lo = s.keys.lo.data();
    op.host_hi = s.keys.hi.data();
    op.d_q = r.out("d_q", {s.tokens, s.heads, s.dim});
    op.d_k = r.out("d_k", {s.tokens, s.kv, s.dim});
    op.d_v = r.out("d_v", {s.tokens, s.kv, s.dim});
    r(op);
  };
  c.gradients = Gradients{{{"d_out", "out"}}, {{"d_q", "q"}, {"d_k", "k"}, {"d_v", "v"}}, {}, {}};
  // The result's own rounding, and on the GPU those of the probabilities, of their gradients and of out; long
  // sums over rows of unlike size have components far below the row's error. Scores are float32 and grow with
  // the head.
  const bool wide = s.dim >= 256;
  const Bound bound = {wide ? 8.0 : 4.0, wide ? 256.0 : 128.0};
  c.bounds = {{"d_q", bound}, {"d_k", bound}, {"d_v", bound}};
  return c;
}

/// Documents of random lengths with image blocks, some longer than the window.
Intervals packed(std::int64_t tokens, std::int32_t window, ImageAttention rule, bool sliding_layer,
                 unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<std::int32_t> document;
  std::vector<std::uint8_t> vision;
  std::int32_t current = 0;
  while (static_cast<std::int64_t>(document.size()) < tokens) {
    const std::size_t run = 1 + rng() % (2 * static_cast<unsigned>(window));
    const bool image = rng() % 2 == 0;
    if (rng() % 3 == 0) ++current;
    document.insert(document.end(), run, current);
    vision.insert(vision.end(), run, image ? 1 : 0);
  }
  document.resize(static_cast<std::size_t>(tokens));
  vision.resize(static_cast<std::size_t>(tokens));
  Intervals full, sliding;
  attention_intervals(document, vision, window, rule, full, sliding);
  return sliding_layer ? sliding : full;
}

/// Any ends that never decrease, empty intervals included.
Intervals monotone(std::int64_t tokens, unsigned seed) {
  std::mt19937 rng(seed);
  Intervals out;
  std::int64_t lo = 0, hi = 0;
  for (std::int64_t q = 0; q < tokens; ++q) {
    hi = std::min<std::int64_t>(tokens, hi + static_cast<std::int64_t>(rng() % 3));
    lo = std::min<std::int64_t>(hi, lo + static_cast<std::int64_t>(rng() % 3));
    out.lo.push_back(static_cast<std::int32_t>(lo));
    out.hi.push_back(static_cast<std::int32_t>(hi));
  }
  return out;
}

}  // namespace

std::vector<OpCase> attention_cases() {
  constexpr auto kAll = ImageAttention::all, kSliding = ImageAttention::sliding;
  std::vector<OpCase> out;
  for (const Scene& s :
       {Scene{"one", 1, 1, 1, 1, packed(1, 4, kSliding, false, 1)}, Scene{"none", 0, 2, 1, 4, {}},
        Scene{"causal", 21, 4, 2, 6, packed(21, 1000, kSliding, false, 2)},
        Scene{"any_ends", 23, 3, 3, 5, monotone(23, 3)},
        Scene{"blocks", 40, 2, 1, 4, packed(40, 5, kSliding, true, 4)},
        Scene{"blocks_all", 40, 2, 2, 4, packed(40, 5, kAll, true, 5)},
        Scene{"full_all", 40, 6, 1, 3, packed(40, 9, kAll, false, 6)},
        Scene{"tiles", 333, 2, 1, 16, packed(333, 90, kSliding, true, 7)},
        Scene{"tiles_long_window", 300, 4, 2, 8, packed(300, 200, kAll, true, 8)},
        Scene{"tiles_full", 261, 6, 1, 8, packed(261, 150, kSliding, false, 9)},
        Scene{"tiles_any_ends", 290, 2, 2, 8, monotone(290, 10)},
        Scene{"wide_heads", 70, 2, 1, 512, packed(70, 30, kSliding, true, 11)},
        // Heads of 256 components have kernels of their own on Hopper, with tiles of 64 tokens: two heads of
        // a group share one, an odd group takes two tiles of a head.
        Scene{"pairs_of_256", 133, 2, 1, 256, packed(133, 40, kSliding, true, 12)},
        Scene{"pairs_of_256_any_ends", 70, 2, 1, 256, monotone(70, 13)},
        Scene{"single_of_256", 70, 1, 1, 256, packed(70, 30, kAll, true, 14)},
        Scene{"few_of_256", 3, 2, 1, 256, packed(3, 4, kSliding, false, 15)},
        // Heads of 512 components too: tiles of 128 keys, clusters of 128 and 256 rows (heads of tokens).
        Scene{"stack_of_512", 9, 16, 1, 512, packed(9, 4, kSliding, false, 16)},
        Scene{"tiles_of_512", 139, 1, 1, 512, packed(139, 12, kSliding, false, 17)},
        Scene{"tiles_of_512_any_ends", 67, 2, 1, 512, monotone(67, 18)}}) {
    out.push_back(attention_case(s));
    out.push_back(attention_backward_case(s));
  }
  return out;
}

}  // namespace lapidary
