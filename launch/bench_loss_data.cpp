#include "launch/bench_loss_data.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "model/loss_head.h"
#include "parallel/mesh.h"

namespace lapidary {

namespace {

constexpr double kDeviation = 0.02;  // of the table: the models' initializer_range

Tensor upload(Stream& stream, Arena& arena, const std::vector<std::int32_t>& ids) {
  const Tensor out = arena.allocate(DType::i32, {static_cast<std::int64_t>(ids.size())});
  stream.backend().copy_to_device(stream, out.data(), ids.data(), out.bytes());
  stream.backend().synchronize(stream);
  return out;
}

std::vector<std::int32_t> random_ids(std::int64_t count, std::int64_t vocabulary, std::uint64_t seed) {
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(count));
  std::uint64_t x = seed * 2 + 1;
  for (std::int64_t i = 0; i < count; ++i) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    ids.push_back(static_cast<std::int32_t>((x >> 33) % static_cast<std::uint64_t>(vocabulary)));
  }
  return ids;
}

/// What a run of the head leaves.
struct Outcome {
  double loss = 0;
  Tensor d_hidden, d_table;
};

/// The element types of a run.
struct Types {
  DType activations, d_hidden, d_table;
};

/// The head in other types on the problem's values, with gradients in `arena`.
Outcome run_head(Stream& stream, Arena& arena, const ModelConfig& config, const Types& types,
                 const Tensor& table_values, const LossProblem& problem, double sign) {
  constexpr std::size_t kScratch = std::size_t{512} << 20;
  Backend& backend = stream.backend();
  const std::int64_t tokens = problem.hidden.rows(), width = config.width;
  Mesh mesh = make_plan_mesh(resolve_mesh(1, 0, 0, 0, 1), backend);
  Arena workspace(backend, "workspace of a head", 2 * kScratch);
  Arena* const before = &stream.workspace();
  stream.set_workspace(&workspace);
  Outcome out;
  out.d_hidden = arena.allocate(types.d_hidden, {tokens, width});
  VocabularyTable table({.name = "table", .shape = {config.vocabulary, width}, .unit = -1}, 0, 0, tokens,
                        mesh, types.activations, types.d_table, stream, arena);
  out.d_table = table.gradient();
  run(stream, Copy{.in = table_values, .out = table.weight()});
  const Tensor hidden = arena.allocate(types.activations, {tokens, width});
  run(stream, Copy{.in = problem.hidden, .out = hidden});
  const Tensor totals = arena.allocate(DType::f64, {kLossTotals});
  run(stream, Fill{.x = totals});
  LossOptions options;
  options.scratch_bytes = kScratch;
  LossHead(config, options, table, types.activations)
      .run_chunks(stream, hidden, problem.targets, sign / static_cast<double>(tokens), totals, out.d_hidden);
  std::vector<double> sums(kLossTotals);
  backend.copy_to_host(stream, sums.data(), totals.data(), totals.bytes());
  backend.synchronize(stream);
  out.loss = sums[kTotalLoss] / static_cast<double>(tokens);
  stream.set_workspace(before);
  return out;
}

double norm_of(Stream& stream, Arena& arena, const Tensor& x) {
  const SquaredNorm op{.x = x.reshape({x.numel()}), .sum = arena.allocate(DType::f64, {1})};
  Arena workspace(stream.backend(), "workspace of a norm", op.scratch_bytes(stream.device()) + 1024);
  Arena* const before = &stream.workspace();
  stream.set_workspace(&workspace);
  run(stream, Fill{.x = op.sum});
  run(stream, op);
  double square = 0;
  stream.backend().copy_to_host(stream, &square, op.sum.data(), sizeof square);
  stream.backend().synchronize(stream);
  stream.set_workspace(before);
  return std::sqrt(square);
}

/// |got - expected| / |expected|, with the negative of what is expected.
double relative_l2(Stream& stream, Arena& arena, const Tensor& got, const Tensor& negative) {
  ArenaScope scope(arena);
  const Tensor difference = arena.allocate(DType::f32, {got.rows(), got.cols()});
  run(stream, Copy{.in = negative, .out = difference});
  run(stream, Add{.in = got, .out = difference});
  return norm_of(stream, arena, difference) / norm_of(stream, arena, negative);
}

}  // namespace

LossProblem make_random_loss(Stream& stream, Arena& arena, const Tensor& table, std::int64_t tokens,
                             std::int64_t vocabulary, std::uint64_t seed, DType type) {
  run(stream,
      FillNormal{.out = table.reshape({table.numel()}), .std = kDeviation, .seed = 1, .stream = seed});
  const Tensor hidden = arena.allocate(type, {tokens, table.cols()});
  run(stream, FillNormal{.out = hidden.reshape({hidden.numel()}), .seed = 2, .stream = seed});
  return {hidden, upload(stream, arena, random_ids(tokens, vocabulary, seed + 3))};
}

LossProblem make_peaked_loss(Stream& stream, Arena& arena, const Tensor& table, std::int64_t tokens,
                             std::int64_t vocabulary, DType type) {
  constexpr int kStrengths = 8;
  const std::vector<std::int32_t> ids = random_ids(tokens, vocabulary, 5),
                                  others = random_ids(tokens, vocabulary, 6);
  const LossProblem out{arena.allocate(type, {tokens, table.cols()}), upload(stream, arena, ids)};
  const Tensor rivals = upload(stream, arena, others), rows = arena.allocate(type, {tokens, table.cols()});
  const double square = kDeviation * kDeviation * static_cast<double>(table.cols());  // of a row's length
  for (int i = 0; i < kStrengths; ++i) {
    const std::int64_t begin = tokens * i / kStrengths, end = tokens * (i + 1) / kStrengths;
    const double logit = 15.0 + 6.0 * i, rival = logit - 0.2 - 0.25 * i;  // before the cap
    const auto look_up = [&](const Tensor& which, double z, const Tensor& to) {
      run(stream, EmbeddingLookup{.ids = which.flat_range(begin, end - begin),
                                  .table = table,
                                  .scale = z / square,
                                  .out = to.row_range(begin, end)});
    };
    look_up(out.targets, logit, out.hidden);
    look_up(rivals, rival, rows);
  }
  run(stream, Add{.in = rows, .out = out.hidden});
  return out;
}

std::string loss_errors(Stream& stream, const ModelConfig& config, DType type, std::int64_t tokens) {
  const auto table = static_cast<std::size_t>(config.vocabulary * config.width),
             hidden = static_cast<std::size_t>(tokens * config.width);
  // The inputs; gradients and inputs of the reference and of one other run; a difference.
  Arena arena(stream.backend(), "errors",
              table * (size_of(type) + 8 + 8 + 4) + hidden * (3 * size_of(type) + 8 + 8 + 4) +
                  (std::size_t{1} << 20));
  const Tensor weights = arena.allocate(type, {config.vocabulary, config.width});
  std::string text = fmt::format(
      "\nErrors against float32 from the same inputs, {} tokens\n{:<26}{:>11}{:>11}{:>17}{:>17}\n", tokens,
      "", "loss", "relative", "d(hidden)", "d(table)");
  LossProblem problem = make_random_loss(stream, arena, weights, tokens, config.vocabulary, 0, type);
  for (const bool peaked : {false, true}) {
    if (peaked) problem = make_peaked_loss(stream, arena, weights, tokens, config.vocabulary, type);
    ArenaScope of_the_reference(arena);
    const Outcome exact =
        run_head(stream, arena, config, {DType::f32, DType::f32, DType::f32}, weights, problem, -1);
    for (const bool wide_hidden : {false, true}) {
      if (wide_hidden && type == DType::f32) continue;
      const Types types{type, wide_hidden ? DType::f32 : type, wide_hidden ? type : DType::f32};
      ArenaScope of_the_run(arena);
      const Outcome got = run_head(stream, arena, config, types, weights, problem, 1);
      const auto error = [&](const Tensor& x, const Tensor& negative) {
        return fmt::format("{:.2e} ({})", relative_l2(stream, arena, x, negative), name_of(x.dtype()));
      };
      text += fmt::format("{:<26}{:>11.6f}{:>11.1e}{:>17}{:>17}\n", peaked ? "peaked data" : "random data",
                          got.loss, std::abs(got.loss - exact.loss) / exact.loss,
                          error(got.d_hidden, exact.d_hidden), error(got.d_table, exact.d_table));
    }
  }
  return text;
}

}  // namespace lapidary
