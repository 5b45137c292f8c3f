// How fast rows are planned, and how soon a run on many documents starts. What a rank's loader streams is
// measured by `lapidary bench data`. The data is made in a temporary directory (about 200 MB), or in
// LAPIDARY_BENCH_DIR, where it is kept and used again.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "data/loader.h"
#include "data/packing.h"
#include "data/random_data.h"
#include "data/shard_writer.h"

namespace lapidary {
namespace {

std::filesystem::path directory() {
  static const std::filesystem::path path = [] {
    if (const char* given = std::getenv("LAPIDARY_BENCH_DIR")) return std::filesystem::path(given);
    return std::filesystem::temp_directory_path() / ("lapidary-bench-" + std::to_string(getpid()));
  }();
  return path;
}

/// Documents of 3 tokens, so that the data is small; written unless it is there.
std::string short_documents(int count) {
  const std::filesystem::path path = directory() / "many";
  if (!std::filesystem::exists(path / "manifest.json")) {
    std::filesystem::remove_all(path);
    ShardWriter writer(path, released_layout());
    for (int d = 0; d < count; ++d) {
      writer.add({.tokens = {2, 3 + d % 255'000, 1}, .trained = {0, 1, 1}});
      if (writer.full()) writer.commit(d + 1);
    }
    writer.finish(nlohmann::json::object());
  }
  return path.string();
}

/// Planning alone: what every rank does for all rows, and what a resume does for the rows of its epoch.
void BM_plan(benchmark::State& state) {
  std::mt19937 random(2);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(state.range(0))), kib(tokens.size(), 0);
  for (std::int32_t& length : tokens) length = random_length(random);
  RowPlan plan({{"lengths", 1, tokens, kib}}, {.sequence_length = 8192, .seed = 1});
  std::int64_t documents = 0;
  Row row;
  for (auto _ : state) {
    plan.next(row);
    documents += static_cast<std::int64_t>(row.pieces.size());
  }
  state.counters["documents/s"] =
      benchmark::Counter(static_cast<double>(documents), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_plan)->Arg(100'000)->Arg(10'000'000);

/// From nothing to the first batch on ten million documents.
void BM_start(benchmark::State& state) {
  const std::string path = short_documents(10'000'000);
  for (auto _ : state) {
    LoaderOptions options;
    options.sources = {{path}};
    options.sequence_length = 8192;
    Loader loader(options);
    benchmark::DoNotOptimize(loader.next().samples.data());
  }
}
BENCHMARK(BM_start)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  if (!std::getenv("LAPIDARY_BENCH_DIR")) std::filesystem::remove_all(lapidary::directory());
  return 0;
}
