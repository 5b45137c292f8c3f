#include "trainer/flops.h"

#include <algorithm>

namespace lapidary {
namespace {

// Multiply-adds a token of one layer's matrices: q, k, v (unless it is the keys), o, gate, up, down.
double layer_matrix_size(const ModelConfig& model, const LayerConfig& layer) {
  return static_cast<double>(model.width * layer.qkv_width() + layer.q_width() * model.width +
                             3 * model.width * model.mlp_width);
}

struct Peak {
  std::string_view name;
  double flops;
};
// bf16, dense. The first name that the description contains counts.
constexpr Peak kPeaks[] = {
    {"H100 PCIe", 756e12}, {"H100 NVL", 835.5e12}, {"H200 NVL", 835.5e12}, {"H100", 989.4e12},
    {"H200", 989.4e12},    {"H800", 989.4e12},     {"A100", 312e12},
};

}  // namespace

StepWork& StepWork::operator+=(const StepWork& other) {
  tokens += other.tokens;
  full_pairs += other.full_pairs;
  sliding_pairs += other.sliding_pairs;
  image_tokens += other.image_tokens;
  audio_tokens += other.audio_tokens;
  return *this;
}

StepWork work_of(const Batch& batch, std::int32_t pad_id) {
  StepWork work;
  for (std::size_t t = 0; t < batch.ids.size(); ++t) {
    if (batch.ids[t] == pad_id) continue;
    ++work.tokens;
    work.full_pairs += batch.full.hi[t] - batch.full.lo[t];
    work.sliding_pairs += batch.sliding.hi[t] - batch.sliding.lo[t];
  }
  work.image_tokens = batch.patches.count;
  work.audio_tokens = batch.frames.count;
  return work;
}

double training_flops(const ModelConfig& model, const StepWork& work) {
  double multiply_adds =
      static_cast<double>(model.width * model.vocabulary) * static_cast<double>(work.tokens);
  for (const auto& layer : model.layers) {
    const auto pairs = static_cast<double>(layer.full ? work.full_pairs : work.sliding_pairs);
    multiply_adds += layer_matrix_size(model, layer) * static_cast<double>(work.tokens) +
                     2.0 * static_cast<double>(layer.q_width()) * pairs;  // q k^T and p v
  }
  double flops = 3.0 * 2.0 * multiply_adds;
  if (model.has_vision) {
    const auto size = static_cast<double>((model.vision.patch_width() + model.width) * model.vision.width);
    flops += 3.0 * 2.0 * size * static_cast<double>(work.image_tokens);
  }
  if (model.has_audio) {  // nothing before it learns: no gradient of its input
    const auto size = static_cast<double>(model.audio.frame_width * model.width);
    flops += 2.0 * 2.0 * size * static_cast<double>(work.audio_tokens);
  }
  return flops;
}

std::optional<double> peak_flops(std::string_view device, Precision precision) {
  const auto* found = std::find_if(std::begin(kPeaks), std::end(kPeaks), [&](const Peak& peak) {
    return device.find(peak.name) != std::string_view::npos;
  });
  if (precision != Precision::bf16 || found == std::end(kPeaks)) return std::nullopt;
  return found->flops;
}

}  // namespace lapidary
