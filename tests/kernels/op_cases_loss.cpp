// The loss head: scores of vocabulary shards, their combination, and the gradients, against cross-entropy
// with soft cap, label smoothing and z-loss written down directly.
#include <cmath>

#include "tests/kernels/op_cases.h"

namespace lapidary {

namespace {

struct Head {
  std::string name;
  std::int64_t tokens, width, vocabulary, shards;
  double cap = 0, smoothing = 0, z_loss = 0;
  std::int64_t begin(std::int64_t shard) const { return vocabulary * shard / shards; }
  std::int64_t first_counted() const { return tokens / 5; }  ///< tokens before it are not in the totals
};

constexpr double kGradScale = 0.125;

/// All logits of a token, capped.
Values naive_logits(const Head& s, const Arrays& in, std::int64_t t) {
  const double* hidden = in.at("hidden").data() + t * s.width;
  const double* table = in.at("table").data();
  Values l;
  for (std::int64_t v = 0; v < s.vocabulary; ++v) {
    double z = 0;
    for (std::int64_t j = 0; j < s.width; ++j) z += hidden[j] * table[v * s.width + j];
    l.push_back(s.cap > 0 ? s.cap * std::tanh(z / s.cap) : z);
  }
  return l;
}

Arrays naive_loss(const Head& s, const Arrays& in) {
  Arrays out{{"lse", {}}, {"token_nll", {}}, {"entropy", {}}, {"totals'", {1, 2, 3, 4, 5}}, {"loss", {0}}};
  for (std::int64_t t = 0; t < s.tokens; ++t) {
    const Values l = naive_logits(s, in, t);
    double sum = 0, mean = 0, entropy = 0;
    std::size_t best = 0;
    for (std::size_t v = 0; v < l.size(); ++v) {
      sum += std::exp(l[v]);
      mean += l[v] / static_cast<double>(l.size());
      if (l[v] > l[best]) best = v;
    }
    const double lse = std::log(sum);
    for (const double x : l) entropy -= std::exp(x - lse) * (x - lse);
    out["lse"].push_back(lse);
    out["entropy"].push_back(entropy);
    const double target = in.at("targets")[static_cast<std::size_t>(t)];
    if (target < 0) {
      out["token_nll"].push_back(-1);
      continue;
    }
    const double nll = lse - l[static_cast<std::size_t>(target)];
    out["token_nll"].push_back(nll);
    const double loss = (1 - s.smoothing) * nll + s.smoothing * (lse - mean) + s.z_loss * lse * lse;
    out["loss"][0] += loss;
    if (t < s.first_counted()) continue;
    Values& totals = out["totals'"];
    totals[kTotalLoss] += loss;
    totals[kTotalNll] += nll;
    totals[kTotalCorrect] += static_cast<double>(best) == target ? 1 : 0;
    totals[kTotalTokens] += 1;
    totals[kTotalEntropy] += entropy;
  }
  out["loss"][0] *= kGradScale;  // of which LossGradient is the gradient
  return out;
}

struct Scored {
  Tensor hidden, table, targets, stats, lse;
  std::vector<Tensor> scores, tile_best;
};

/// The part of stats [n, C, kLossStats] that one shard writes.
Tensor shard_stats(const Tensor& all, std::int64_t shard) {
  if (all.dims() != 3) return all;
  const Tensor one = all.row_range(shard, shard + 1);
  return Tensor(one.data(), one.dtype(), {one.size(1), one.size(2)});
}

/// Scores every shard and combines them.
Scored score_shards(const Head& s, OpRun& r, bool entropy) {
  Scored x;
  x.hidden = r.in("hidden", {s.tokens, s.width});
  x.table = r.in("table", {s.vocabulary, s.width});
  x.targets = r.in_as("targets", DType::i32, {s.tokens});
  x.stats = r.out_wide("stats", {s.shards, s.tokens, kLossStats});
  const DType score_type = loss_score_dtype(r.stream().device(), r.type());
  for (std::int64_t shard = 0; shard < s.shards; ++shard) {
    const std::int64_t first = s.begin(shard), last = s.begin(shard + 1);
    x.scores.push_back(r.out_as("scores" + std::to_string(shard), score_type, {s.tokens, last - first}));
    LossScores op{};
    op.hidden = x.hidden;
    op.table = x.table.dims() == 2 ? x.table.row_range(first, last) : x.table;
    op.targets = x.targets;
    op.first_row = first;
    op.cap = s.cap;
    op.scores = x.scores.back();
    op.stats = shard_stats(x.stats, shard);
    const std::int64_t tiles = loss_tiles(r.stream().device(), r.type(), last - first);
    x.tile_best.push_back(
        tiles == 0 ? Tensor() : r.out_as("tile_best" + std::to_string(shard), DType::f32, {s.tokens, tiles}));
    op.tile_best = x.tile_best.back();
    r(op);
  }
  x.lse = r.out_wide("lse", {s.tokens});
  LossCombine op{};
  op.stats = x.stats;
  op.targets = x.targets;
  op.vocabulary = s.vocabulary;
  op.label_smoothing = s.smoothing;
  op.z_loss = s.z_loss;
  op.counted_begin = s.first_counted();
  op.counted_end = s.tokens;
  op.lse = x.lse;
  op.token_nll = r.out_wide("token_nll", {s.tokens});
  if (entropy) op.entropy = r.out_wide("entropy", {s.tokens});
  op.totals = r.in_out_as("totals", DType::f64, {kLossTotals});
  r(op);
  return x;
}

/// What differs between devices by design is no result to compare.
void drop(OpRun& r, const Head& s, const std::vector<std::string>& names) {
  for (const std::string& name : names) r.forget(name);
  for (std::int64_t shard = 0; shard < s.shards; ++shard) {
    r.forget("scores" + std::to_string(shard));
    r.forget("tile_best" + std::to_string(shard));
  }
}

OpCase loss_case(const Head& s) {
  OpCase c;
  c.name = "LossScores." + s.name;
  const double scale = (s.cap > 0 ? 8.0 : 2.0) / std::sqrt(static_cast<double>(s.width));
  c.given["hidden"] = random_values(s.tokens * s.width, 1, scale);
  c.given["table"] = random_values(s.vocabulary * s.width, 2);
  Values& targets = c.given["targets"];
  for (std::int64_t t = 0; t < s.tokens; ++t)
    targets.push_back(t % 4 == 3 ? -1.0 : static_cast<double>(t * 11 % s.vocabulary));
  c.given["totals"] = {1, 2, 3, 4, 5};
  c.exact = {"targets", "totals"};
  c.reference = [s](const Arrays& in) { return naive_loss(s, in); };
  c.run = [s](OpRun& r) {
    score_shards(s, r, true);
    drop(r, s, {"stats"});
  };
  c.bounds = {{"lse", {0, 64}}, {"token_nll", {0, 128}}, {"entropy", {0, 512}}, {"totals", {0, 512}}};
  c.optional = {"entropy"};
  if (s.tokens == 0) c.ignores_nan = {"table"};
  c.same_bits_on_any_threads = false;
  return c;
}

OpCase loss_gradient_case(const Head& s, bool wide_hidden) {
  OpCase c = loss_case(s);
  c.name = "LossGradient." + s.name + (wide_hidden ? "_wide" : "");
  c.given["d_loss"] = {1.0};
  c.exact.insert("d_loss");
  c.run = [=](OpRun& r) {
    const Scored x = score_shards(s, r, false);
    const Tensor d_table = r.accumulator("d_table", {s.vocabulary, s.width});
    Values d_hidden(static_cast<std::size_t>(s.tokens * s.width), 0.0);
    for (std::int64_t shard = 0; shard < s.shards; ++shard) {
      const std::int64_t first = s.begin(shard), last = s.begin(shard + 1);
      const std::string name = "d_hidden" + std::to_string(shard);
      const Tensor part =
          wide_hidden ? r.out_wide(name, {s.tokens, s.width}) : r.out(name, {s.tokens, s.width});
      LossGradient op{};
      op.scores = x.scores[static_cast<std::size_t>(shard)];
      op.stats = shard_stats(x.stats, shard);
      op.hidden = x.hidden;
      op.table = x.table.row_range(first, last);
      op.targets = x.targets;
      op.first_row = first;
      op.cap = s.cap;
      op.vocabulary = s.vocabulary;
      op.label_smoothing = s.smoothing;
      op.z_loss = s.z_loss;
      op.grad_scale = kGradScale;
      op.lse = x.lse;
      op.tile_best = x.tile_best[static_cast<std::size_t>(shard)];
      op.d_hidden = part;
      op.d_table = d_table.dims() == 2 ? d_table.row_range(first, last) : d_table;
      r(op);
      const Values values = r.read(part);
      for (std::size_t i = 0; i < values.size(); ++i) d_hidden[i] += values[i];
      r.forget(name);
    }
    r.record("d_hidden", wide_hidden ? r.wide() : r.type(), d_hidden);
    drop(r, s, {"stats", "lse", "token_nll", "totals"});
  };
  c.gradients =
      Gradients{{{"d_loss", "loss"}}, {{"d_hidden", "hidden"}, {"d_table", "table"}}, {"d_table"}, {}};
  c.bounds = {{"d_hidden", {3, 512}}, {"d_table", {3, 512}}};
  c.ignores_nan = {};
  if (s.tokens == 0) c.ignores_nan = {"table"};
  return c;
}

}  // namespace

std::vector<OpCase> loss_cases() {
  std::vector<OpCase> out;
  for (const Head& s :
       {Head{"smallest", 1, 1, 2, 1}, Head{"plain", 7, 5, 23, 1}, Head{"capped", 9, 6, 31, 1, 30.0},
        Head{"shards", 9, 6, 31, 3, 30.0}, Head{"no_tokens", 0, 6, 31, 2, 30.0},
        Head{"more_shards_than_rows", 5, 4, 3, 5, 4.0}, Head{"smooth", 9, 6, 31, 2, 30.0, 0.1, 1e-3},
        Head{"smooth_uncapped", 6, 3, 12, 1, 0, 0.2, 0.01}, Head{"larger", 35, 48, 701, 2, 30.0, 0.05, 1e-4},
        // Rows that a GPU's TMA can address: beside, on and over the edges of its products' tiles.
        Head{"tiles", 130, 24, 392, 1, 30.0}, Head{"tile", 1, 8, 8, 1, 4.0},
        Head{"tile_shards", 40, 72, 592, 2, 30.0, 0.1, 1e-3}, Head{"tile_empty_shards", 5, 8, 3, 5, 4.0},
        Head{"tile_z_loss", 9, 40, 201, 3, 30.0, 0, 1e-3},
        // So many rows that clusters of both sizes take part.
        Head{"tile_clusters", 12, 16, 2601, 1, 30.0}}) {
    out.push_back(loss_case(s));
    for (const bool wide : {false, true}) out.push_back(loss_gradient_case(s, wide));
  }
  return out;
}

}  // namespace lapidary
