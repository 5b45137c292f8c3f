// How fast one rank gets batches from shards, and how fast a run on many documents starts: text tokens, image
// soft tokens and sound frames a second out of Loader::next(), hashes checked, files in the page cache. The
// data is made in a temporary directory (about 700 MB), or in LAPIDARY_BENCH_DIR, where it is kept and used
// again.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "data/loader.h"
#include "data/packing.h"
#include "data/shard_writer.h"

namespace lapidary {
namespace {

TokenLayout gemma_layout() {
  TokenLayout layout;
  layout.vocabulary = 262'144;
  layout.begin_image = 255'999;
  layout.image = 258'880;
  layout.end_image = 258'882;
  layout.audio = 258'881;
  layout.begin_audio = 256'000;
  layout.end_audio = 258'883;
  return layout;
}

/// Lengths as in conversations: log-normal around 500 tokens.
std::int32_t random_length(std::mt19937& random) {
  return static_cast<std::int32_t>(
      std::clamp(std::lognormal_distribution<double>(6.2, 0.8)(random), 2.0, 8000.0));
}

void add_text(Document& document, std::int32_t tokens, std::mt19937& random) {
  for (std::int32_t t = 0; t < tokens; ++t) {
    document.tokens.push_back(static_cast<std::int32_t>(3 + random() % 255'000));
    document.trained.push_back(document.tokens.size() > 1 ? 1 : 0);
  }
}

/// Random bytes, as hashing and copying do not care what they are.
Document text_document(std::mt19937& random) {
  Document document;
  add_text(document, random_length(random), random);
  return document;
}

Document image_document(std::mt19937& random) {
  Document document;
  add_text(document, 60, random);
  DocumentImage image{61, 12, 22, std::vector<std::uint8_t>(264 * 6912, static_cast<std::uint8_t>(random()))};
  const auto add = [&](std::int32_t id, int times) {
    document.tokens.insert(document.tokens.end(), static_cast<std::size_t>(times), id);
    document.trained.insert(document.trained.end(), static_cast<std::size_t>(times), 0);
  };
  add(255'999, 1);
  add(258'880, 264);
  add(258'882, 1);
  document.images.push_back(std::move(image));
  add_text(document, 60, random);
  return document;
}

std::filesystem::path directory() {
  static const std::filesystem::path path = [] {
    if (const char* given = std::getenv("LAPIDARY_BENCH_DIR")) return std::filesystem::path(given);
    return std::filesystem::temp_directory_path() / ("lapidary-bench-" + std::to_string(getpid()));
  }();
  return path;
}

/// Writes the data set unless it is there.
std::string data_set(const std::string& name, int documents, Document (*make)(std::mt19937&)) {
  const std::filesystem::path path = directory() / name;
  if (!std::filesystem::exists(path / "manifest.json")) {
    std::filesystem::remove_all(path);
    ShardWriter writer(path, gemma_layout());
    std::mt19937 random(1);
    for (int d = 0; d < documents; ++d) {
      writer.add(make(random));
      if (writer.full()) writer.commit(d + 1);
    }
    writer.finish(nlohmann::json::object());
  }
  return path.string();
}

/// One rank's share of `ranks`, steps of 2 rows of 8,192 tokens a rank.
void stream(benchmark::State& state, const std::string& path) {
  LoaderOptions options;
  options.sources = {{path}};
  options.sequence_length = 8192;
  options.ranks = static_cast<int>(state.range(0));
  options.rows_per_step = 2 * options.ranks;
  options.seed = 1;
  Loader loader(options);
  std::int64_t tokens = 0, patches = 0;
  loader.next();  // opening files and starting the thread are not streaming
  for (auto _ : state) {
    const StepBatches step = loader.next();
    for (const Batch& batch : step.micro) {
      tokens += batch.tokens();
      patches += batch.patches.count;
    }
    benchmark::DoNotOptimize(step.samples.data());
  }
  const LoaderStats stats = loader.stats();
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsRate);
  state.counters["patches/s"] = benchmark::Counter(static_cast<double>(patches), benchmark::Counter::kIsRate);
  state.counters["filled"] = stats.packing_efficiency();
  state.counters["read/token"] = static_cast<double>(stats.bytes_read) / static_cast<double>(tokens);
}

void BM_text(benchmark::State& state) {
  stream(state, data_set("text", 60'000, text_document));
}
void BM_images(benchmark::State& state) {
  stream(state, data_set("images", 300, image_document));
}
void ranks_and_time(benchmark::internal::Benchmark* bench) {
  bench->ArgName("ranks")->Arg(1)->Arg(64)->MinTime(3);
  bench->MeasureProcessCPUTime()->UseRealTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK(BM_text)->Apply(ranks_and_time);
BENCHMARK(BM_images)->Apply(ranks_and_time);

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

/// From nothing to the first batch on ten million documents (of 3 tokens, so that the data is small).
void BM_start(benchmark::State& state) {
  const std::string path = data_set("many", 10'000'000, [](std::mt19937& random) {
    Document document;
    add_text(document, 3, random);
    return document;
  });
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
