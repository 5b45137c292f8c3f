// The FLOP count against specification 10.1: the table of the 12B, and packed rows with images.
#include "trainer/flops.h"

#include <gtest/gtest.h>

namespace lapidary {
namespace {

ModelConfig gemma_12b() {
  ModelConfig model;
  model.vocabulary = 262144;
  model.width = 3840;
  model.mlp_width = 15360;
  model.window = 1024;
  model.has_vision = model.has_audio = true;
  for (int i = 0; i < 48; ++i) {
    const bool full = (i + 1) % 6 == 0;
    model.layers.push_back(full ? LayerConfig{true, 16, 1, 512, true}
                                : LayerConfig{false, 16, 8, 256, false});
  }
  return model;
}

// Documents of the given lengths in one row, text only.
Batch packed_row(const std::vector<int>& lengths, ImageAttention rule = ImageAttention::sliding,
                 int image_begin = 0, int image_tokens = 0) {
  Batch batch;
  std::vector<std::int32_t> document;
  for (std::size_t d = 0; d < lengths.size(); ++d)
    document.insert(document.end(), static_cast<std::size_t>(lengths[d]), static_cast<std::int32_t>(d));
  std::vector<std::uint8_t> vision(document.size(), 0);
  for (int t = image_begin; t < image_begin + image_tokens; ++t) vision[static_cast<std::size_t>(t)] = 1;
  attention_intervals(document, vision, 1024, rule, batch.full, batch.sliding);
  batch.ids.assign(document.size(), 5);
  batch.patches.count = image_tokens;
  batch.rows = 1;
  return batch;
}

TEST(Flops, TheTableOfTheSpecification) {
  const ModelConfig model = gemma_12b();
  const std::pair<int, double> table[] = {
      {1024, 7.2850e10}, {2048, 7.3756e10}, {4096, 7.4812e10}, {8192, 7.6549e10}, {16384, 7.9833e10}};
  for (const auto& [tokens, expected] : table) {
    const double got = training_flops(model, work_of(packed_row({tokens}), 0)) / tokens;
    EXPECT_NEAR(got / expected, 1.0, 1e-4) << tokens;
  }
  // The formula, exactly: T = 4096.
  const double t = 4096, s = 1024 * t - 523776, g = t * (t + 1) / 2;
  EXPECT_EQ(training_flops(model, work_of(packed_row({4096}), 0)),
            3 * (23813160960.0 * t + 655360.0 * s + 262144.0 * g));
}

TEST(Flops, PackedDocumentsCountAlone) {
  const ModelConfig model = gemma_12b();
  const auto flops = [&](const std::vector<int>& lengths) {
    return training_flops(model, work_of(packed_row(lengths), 0));
  };
  EXPECT_DOUBLE_EQ(flops({1500, 2500, 96}), flops({1500}) + flops({2500}) + flops({96}));
  EXPECT_LT(flops({1500, 2500, 96}), flops({4096}));
}

TEST(Flops, ImagesAndSounds) {
  const ModelConfig model = gemma_12b();
  const int n = 256;
  const double text = training_flops(model, work_of(packed_row({4096}), 0));
  const double pairs = n * (n - 1) / 2;
  const double embedder = 3 * 82575360.0 * n;
  EXPECT_DOUBLE_EQ(training_flops(model, work_of(packed_row({4096}, ImageAttention::sliding, 100, n), 0)),
                   text + embedder + 3 * 655360.0 * pairs);
  EXPECT_DOUBLE_EQ(training_flops(model, work_of(packed_row({4096}, ImageAttention::all, 100, n), 0)),
                   text + embedder + 3 * (655360.0 + 262144.0) * pairs);
  StepWork sounds;
  sounds.audio_tokens = 10;
  EXPECT_EQ(training_flops(model, sounds), 2 * 4915200.0 * 10);
}

TEST(Flops, PaddingIsNoWork) {
  const ModelConfig model = gemma_12b();
  Batch padded = packed_row({1000, 24});
  std::fill(padded.ids.begin() + 1000, padded.ids.end(), 0);
  EXPECT_EQ(training_flops(model, work_of(padded, 0)), training_flops(model, work_of(packed_row({1000}), 0)));
}

TEST(Flops, WorkAddsUp) {
  const ModelConfig model = gemma_12b();
  StepWork sum;
  sum += work_of(packed_row({300}, ImageAttention::sliding, 10, 50), 0);
  sum += work_of(packed_row({700, 20}), 0);
  EXPECT_DOUBLE_EQ(training_flops(model, sum),
                   training_flops(model, work_of(packed_row({300}, ImageAttention::sliding, 10, 50), 0)) +
                       training_flops(model, work_of(packed_row({700, 20}), 0)));
}

TEST(Flops, PeaksOfKnownDevices) {
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", Precision::bf16), 989.4e12);
  EXPECT_EQ(peak_flops("NVIDIA H200, 139.8 GiB", Precision::bf16), 989.4e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe", Precision::bf16), 756e12);
  EXPECT_EQ(peak_flops("NVIDIA H200", Precision::float32), std::nullopt);
  EXPECT_EQ(peak_flops("AMD EPYC 9654", Precision::bf16), std::nullopt);
}

}  // namespace
}  // namespace lapidary
