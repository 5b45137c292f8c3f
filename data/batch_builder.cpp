#include "data/batch_builder.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>

#include "kernels/check.h"

namespace lapidary {

namespace {

class BatchBuilder {
 public:
  BatchBuilder(const TokenLayout& layout, std::int64_t tokens,
               std::span<const std::vector<Document>> documents) {
    batch.patches.dtype = DType::u8;
    batch.patches.width = layout.patch_width;
    batch.frames.dtype = DType::i16;
    batch.frames.width = layout.frame_width;
    // Features are most of the memory: growing them step by step would copy them several times.
    std::size_t patch_bytes = 0, frame_bytes = 0;
    for (const std::vector<Document>& row : documents) {
      for (const Document& document : row) {
        for (const DocumentImage& image : document.images) patch_bytes += image.patches.size();
        for (const DocumentSound& sound : document.sounds) frame_bytes += 2 * sound.samples.size();
      }
    }
    batch.patches.values.reserve(patch_bytes);
    batch.frames.values.reserve(frame_bytes);
    for (auto* array : {&batch.ids, &batch.targets, &batch.positions, &document_of}) {
      array->reserve(static_cast<std::size_t>(tokens));
    }
    vision.reserve(static_cast<std::size_t>(tokens));
  }

  void add(const Document& document) {
    const std::int64_t start = batch.tokens();
    const auto count = static_cast<std::int64_t>(document.tokens.size());
    batch.ids.insert(batch.ids.end(), document.tokens.begin(), document.tokens.end());
    for (std::int64_t t = 0; t < count; ++t) {
      const bool predicts = t + 1 < count && document.trained[t + 1];
      batch.targets.push_back(predicts ? document.tokens[t + 1] : -1);
      batch.positions.push_back(static_cast<std::int32_t>(t));
    }
    document_of.insert(document_of.end(), static_cast<std::size_t>(count), documents_++);
    vision.insert(vision.end(), static_cast<std::size_t>(count), 0);
    for (const DocumentImage& image : document.images) {
      const std::int64_t first = start + image.first_token,
                         patches = std::int64_t{image.columns} * image.rows;
      append(batch.patches, image.patches, first, patches);
      std::fill_n(vision.begin() + first, patches, 1);
      for (std::int32_t y = 0; y < image.rows; ++y) {
        for (std::int32_t x = 0; x < image.columns; ++x) batch.patch_xy.insert(batch.patch_xy.end(), {x, y});
      }
    }
    for (const DocumentSound& sound : document.sounds) {
      append(batch.frames, sound.samples, start + sound.first_token, sound.frames);
    }
  }

  Batch batch;
  std::vector<std::int32_t> document_of;  // [tokens] changes where a document or row starts
  std::vector<std::uint8_t> vision;       // [tokens] 1 at soft tokens of images and videos

 private:
  /// Appends the features of a run of soft tokens that starts at token `first` of the batch.
  template <class T>
  static void append(Features& features, const std::vector<T>& values, std::int64_t first,
                     std::int64_t count) {
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    features.values.insert(features.values.end(), bytes, bytes + values.size() * sizeof(T));
    for (std::int64_t i = 0; i < count; ++i) features.token.push_back(static_cast<std::int32_t>(first + i));
    features.count += count;
  }

  std::int32_t documents_ = 0;
};

}  // namespace

Batch build_batch(std::span<const Row> rows, std::span<const std::vector<Document>> documents,
                  const TokenLayout& layout, const BatchOptions& options) {
  const std::int64_t tokens = static_cast<std::int64_t>(rows.size()) * options.sequence_length;
  require(tokens <= std::numeric_limits<std::int32_t>::max(),
          "a micro-batch of {} tokens, expected at most {}", tokens,
          std::numeric_limits<std::int32_t>::max());
  BatchBuilder builder(layout, tokens, documents);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t d = 0; d < documents[r].size(); ++d) {
      builder.add(documents[r][d]);
      builder.batch.samples.push_back(rows[r].pieces[d].document);
    }
    if (rows[r].tokens == options.sequence_length) continue;
    const auto padding = static_cast<std::size_t>(options.sequence_length - rows[r].tokens);
    Document pad;
    pad.tokens.assign(padding, layout.pad);
    pad.trained.assign(padding, 0);
    builder.add(pad);
  }
  builder.batch.rows = static_cast<std::int64_t>(rows.size());
  attention_intervals(builder.document_of, builder.vision, options.window, options.image_attention,
                      builder.batch.full, builder.batch.sliding);
  return std::move(builder.batch);
}

}  // namespace lapidary
