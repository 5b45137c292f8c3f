#include "trainer/random_text.h"

#include <algorithm>

#include "kernels/philox.h"

namespace lapidary {

Batch random_text(const ModelConfig& model, std::int64_t rows, std::int64_t length, std::uint64_t seed,
                  ImageAttention rule) {
  Batch batch;
  std::vector<std::int32_t> document;
  const std::vector<std::int32_t> soft = model.soft_ids();
  const auto ordinary = [&](std::int32_t id) {
    return id != model.pad_id && std::ranges::find(soft, id) == soft.end();
  };
  for (std::int64_t t = 0; t < rows * length; ++t) {
    const PhiloxBlock random = philox(seed, static_cast<std::uint64_t>(t), 0);
    auto id = static_cast<std::int32_t>(random.word[0] % static_cast<std::uint32_t>(model.vocabulary));
    while (!ordinary(id)) id = static_cast<std::int32_t>((id + 1) % model.vocabulary);
    batch.ids.push_back(id);
    batch.positions.push_back(static_cast<std::int32_t>(t % length));
    document.push_back(static_cast<std::int32_t>(t / length));
  }
  for (std::int64_t t = 0; t < rows * length; ++t) {
    const bool last = (t + 1) % length == 0;
    batch.targets.push_back(last ? -1 : batch.ids[static_cast<std::size_t>(t + 1)]);
  }
  attention_intervals(document, std::vector<std::uint8_t>(document.size(), 0),
                      static_cast<std::int32_t>(model.window), rule, batch.full, batch.sliding);
  batch.rows = rows;
  if (model.has_vision) {
    batch.patches.dtype = DType::u8;
    batch.patches.width = model.vision.patch_width();
  }
  if (model.has_audio) {
    batch.frames.dtype = DType::i16;
    batch.frames.width = model.audio.frame_width;
  }
  return batch;
}

}  // namespace lapidary
