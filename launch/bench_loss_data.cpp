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

/// Everything that a run of the head leaves, on the host.
struct Outcome {
  double loss = 0;
  std::vector<float> d_hidden, d_table;
};

std::vector<float> download(Stream& stream, const Tensor& x) {
  std::vector<float> out(static_cast<std::size_t>(x.numel()));
  stream.backend().copy_to_host(stream, out.data(), x.data(), x.bytes());
  stream.backend().synchronize(stream);
  return out;
}

/// The head in `type` on inputs in any type, whose values it takes over. d(hidden) comes in `type`.
Outcome run_head(Backend& backend, Stream& stream, const ModelConfig& config, DType type, DType gradients,
                 const Tensor& table_values, const LossProblem& problem) {
  constexpr std::size_t kScratch = std::size_t{512} << 20;
  const std::int64_t tokens = problem.hidden.rows(), width = config.width;
  const std::size_t table_bytes = static_cast<std::size_t>(config.vocabulary * width) * 8;
  const std::size_t hidden_bytes = static_cast<std::size_t>(tokens * width) * 16;
  Mesh mesh = make_plan_mesh(resolve_mesh(1, 0, 0, 0, 1), backend);
  Arena state(backend, "state of a head", table_bytes + hidden_bytes + (std::size_t{1} << 20));
  Arena workspace(backend, "workspace of a head", 2 * kScratch);
  Arena* const before = &stream.workspace();
  stream.set_workspace(&workspace);
  VocabularyTable table({.name = "table", .shape = {config.vocabulary, width}, .unit = -1}, 0, 0, tokens,
                        mesh, type, gradients, stream, state);
  run(stream, Copy{.in = table_values, .out = table.weight()});
  const Tensor hidden = state.allocate(type, {tokens, width}),
               d_hidden = state.allocate(type, {tokens, width});
  run(stream, Copy{.in = problem.hidden, .out = hidden});
  const Tensor totals = state.allocate(DType::f64, {kLossTotals});
  run(stream, Fill{.x = totals});
  LossOptions options;
  options.scratch_bytes = kScratch;
  LossHead(config, options, table, type)
      .run_chunks(stream, hidden, problem.targets, 1.0 / static_cast<double>(tokens), totals, d_hidden, {},
                  {});
  Outcome out;
  std::vector<double> sums(kLossTotals);
  backend.copy_to_host(stream, sums.data(), totals.data(), totals.bytes());
  const Tensor wide = state.allocate(DType::f32, {tokens, width});
  run(stream, Copy{.in = d_hidden, .out = wide});
  out.d_hidden = download(stream, wide);
  if (gradients == DType::f32) {
    out.d_table = download(stream, table.gradient());
  } else {
    std::vector<bf16> raw(static_cast<std::size_t>(table.gradient().numel()));
    backend.copy_to_host(stream, raw.data(), table.gradient().data(), table.gradient().bytes());
    backend.synchronize(stream);
    out.d_table.reserve(raw.size());
    for (const bf16 x : raw) out.d_table.push_back(static_cast<float>(x));
  }
  out.loss = sums[kTotalLoss] / static_cast<double>(tokens);
  stream.set_workspace(before);
  return out;
}

double relative_l2(const std::vector<float>& got, const std::vector<float>& expected) {
  double difference = 0, square = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = static_cast<double>(got[i]) - static_cast<double>(expected[i]);
    difference += d * d;
    square += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return std::sqrt(difference / square);
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

std::string loss_errors(Backend& backend, Stream& stream, const ModelConfig& config, DType type,
                        std::int64_t tokens) {
  const std::size_t table_bytes = static_cast<std::size_t>(config.vocabulary * config.width) * size_of(type);
  Arena arena(backend, "inputs",
              table_bytes + static_cast<std::size_t>(tokens * config.width) * 16 + (std::size_t{1} << 20));
  const Tensor table = arena.allocate(type, {config.vocabulary, config.width});
  std::string text = fmt::format(
      "\nErrors against float32 from the same inputs, {} tokens\n{:<34}{:>11}{:>11}{:>12}{:>12}\n", tokens,
      "", "loss", "relative", "d(hidden)", "d(table)");
  LossProblem problem = make_random_loss(stream, arena, table, tokens, config.vocabulary, 0, type);
  for (const bool peaked : {false, true}) {
    if (peaked) problem = make_peaked_loss(stream, arena, table, tokens, config.vocabulary, type);
    const Outcome exact = run_head(backend, stream, config, DType::f32, DType::f32, table, problem);
    for (const DType gradients : {DType::f32, DType::bf16}) {
      if (type == DType::f32 && gradients == DType::bf16) continue;
      const Outcome got = run_head(backend, stream, config, type, gradients, table, problem);
      text +=
          fmt::format("{:<34}{:>11.6f}{:>11.1e}{:>12.2e}{:>12.2e}\n",
                      fmt::format("{} data, {} d(table)", peaked ? "peaked" : "random", name_of(gradients)),
                      got.loss, std::abs(got.loss - exact.loss) / exact.loss,
                      relative_l2(got.d_hidden, exact.d_hidden), relative_l2(got.d_table, exact.d_table));
    }
  }
  return text;
}

}  // namespace lapidary
