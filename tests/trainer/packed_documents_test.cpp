// Packing changes nothing: texts, pictures and sounds built into shards, packed into rows by the loader and
// put through the whole model have, document by document, the losses and gradients of each document alone.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cmath>
#include <fstream>
#include <numeric>

#include "data/batch_builder.h"
#include "data/build.h"
#include "data/byte_tokenizer.h"
#include "data/loader.h"
#include "data/row_source.h"
#include "model/weights.h"
#include "parallel/host_group.h"
#include "tests/data/sample_documents.h"
#include "trainer/instance.h"

namespace lapidary {
namespace {

constexpr std::int64_t kRow = 512, kRowsOfBatch = 2;
constexpr std::int64_t kSteps = 2;

class PackedDocuments : public testing::TestWithParam<ImageAttention> {
 protected:
  static void SetUpTestSuite() {
    // The sample data with one text in eight, so that few rows hold all kinds.
    folder_ = std::make_unique<TemporaryDirectory>();
    const std::filesystem::path sample = LAPIDARY_SOURCE_DIR "/configs/sample";
    for (const char* media : {"pictures", "sounds"})
      std::filesystem::create_directory_symlink(sample / media, *folder_ / media);
    std::ifstream all(sample / "sample.jsonl");
    std::ofstream chosen(*folder_ / "chosen.jsonl");
    int texts = 0;
    for (std::string line; std::getline(all, line);)
      if (line.find("messages") != std::string::npos || ++texts % 8 == 0) chosen << line << '\n';
    chosen.close();
    BuildOptions build;
    build.inputs = {(*folder_ / "chosen.jsonl").string()};
    build.output = (*folder_ / "data").string();
    build.media.image.any_budget = true;
    build.media.image.max_soft_tokens = 9;
    build_dataset(build, ByteTokenizer());
  }
  static void TearDownTestSuite() { folder_.reset(); }

  PackedDocuments() {
    loader_.sources = {{(*folder_ / "data/train").string()}};
    loader_.sequence_length = kRow;
    loader_.rows_per_step = loader_.rows_per_micro = kRowsOfBatch;
    loader_.seed = 4;
    loader_.window = static_cast<std::int32_t>(config_.window);
    loader_.image_attention = GetParam();

    options_.model.type = options_.sharding.weights = options_.sharding.gradients = DType::f64;
    options_.model.capacity = kRowsOfBatch * kRow;
    options_.optimizer = OptimizerOptions{};
    mesh_ = make_mpi_mesh(resolve_mesh(1, 0, 0, 0, 1), cpu_backend());
    const MemorySizes sizes = plan_memory(config_, table_, options_, mesh_.shape, Device::cpu);
    instance_ = std::make_unique<Instance>(config_, table_, options_, mesh_, cpu_backend(), sizes);
    initialize_weights(instance_->stream(), config_, table_, instance_->shards(), 1);
    instance_->weights_loaded();
  }

  /// Sum of the token losses of every document of a batch, the rows' padding included, in order.
  std::vector<double> losses(const Batch& batch) {
    Arena arena(cpu_backend(), "token losses",
                static_cast<std::size_t>(batch.tokens()) * sizeof(double) + Arena::kAlignment);
    const Tensor nll = arena.allocate(DType::f64, {batch.tokens()});
    instance_->begin_evaluation();
    instance_->run_evaluation(batch, {.nll = nll});
    cpu_backend().synchronize(instance_->stream());
    const auto* values = static_cast<const double*>(nll.data());
    std::vector<double> sums;
    for (std::int64_t t = 0; t < batch.tokens(); ++t) {
      if (batch.positions[static_cast<std::size_t>(t)] == 0) sums.push_back(0);
      if (batch.targets[static_cast<std::size_t>(t)] >= 0) sums.back() += values[t];
    }
    return sums;
  }

  std::vector<double> gradients(const std::vector<Batch>& batches) {
    instance_->begin_step();
    for (std::size_t b = 0; b < batches.size(); ++b)
      instance_->run_training(batches[b], 1.0, b + 1 == batches.size());
    cpu_backend().synchronize(instance_->stream());
    std::vector<double> values;
    for (const ParameterShard* shard : instance_->shards()) {
      const auto* first = static_cast<const double*>(shard->gradient.data());
      values.insert(values.end(), first, first + shard->gradient.numel());
    }
    return values;
  }

  Batch alone(const Document& document) const {
    const auto tokens = static_cast<std::int64_t>(document.tokens.size());
    const Row row{{{0, 0, static_cast<std::int32_t>(tokens)}}, tokens};
    const std::vector<Document> documents = {document};
    return build_batch(std::span(&row, 1), std::span(&documents, 1), ByteTokenizer().layout(TokenNames()),
                       {tokens, loader_.window, loader_.image_attention});
  }

  static inline std::unique_ptr<TemporaryDirectory> folder_;
  ModelConfig config_ = read_model_config(LAPIDARY_SOURCE_DIR "/configs/models/quickstart.json");
  ParameterTable table_ = make_parameter_table(config_);
  LoaderOptions loader_;
  InstanceOptions options_;
  Mesh mesh_;
  std::unique_ptr<Instance> instance_;
};

double norm(const std::vector<double>& values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

TEST_P(PackedDocuments, LossAndGradientAreThoseOfEachDocumentAlone) {
  Loader loader(loader_);
  RowSource source(loader_);
  int images = 0, sounds = 0, texts = 0;
  for (std::int64_t s = 0; s < kSteps; ++s) {
    const Batch packed = loader.next().micro.at(0);
    std::vector<Row> rows(kRowsOfBatch);
    for (Row& row : rows) ASSERT_TRUE(source.plan().next(row));
    const std::vector<double> packed_losses = losses(packed);
    std::vector<Batch> batches;
    std::size_t at = 0;
    for (const std::vector<Document>& row : source.read(rows)) {
      std::int64_t tokens = 0;
      for (const Document& document : row) {
        batches.push_back(alone(document));
        const double expected = losses(batches.back()).at(0);
        ASSERT_LT(at, packed_losses.size());
        EXPECT_GT(expected, 0);
        EXPECT_NEAR(packed_losses[at++] / expected, 1, 1e-12);
        images += static_cast<int>(document.images.size());
        sounds += static_cast<int>(document.sounds.size());
        texts += document.images.empty() && document.sounds.empty();
        tokens += static_cast<std::int64_t>(document.tokens.size());
      }
      if (tokens == kRow) continue;
      EXPECT_EQ(packed_losses.at(at++), 0);  // padding is not trained
    }
    EXPECT_EQ(at, packed_losses.size());

    const std::vector<double> expected = gradients(batches), found = gradients({packed});
    std::vector<double> difference(expected.size());
    std::transform(expected.begin(), expected.end(), found.begin(), difference.begin(), std::minus<>());
    EXPECT_LT(norm(difference) / norm(expected), 1e-12);
  }
  EXPECT_GE(images, 2);
  EXPECT_GE(sounds, 2);
  EXPECT_GE(texts, 2);
}

INSTANTIATE_TEST_SUITE_P(BothRules, PackedDocuments,
                         testing::Values(ImageAttention::sliding, ImageAttention::all));

}  // namespace
}  // namespace lapidary
