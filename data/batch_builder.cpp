#include "data/batch_builder.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>

#include "kernels/check.h"

namespace lapidary {

namespace {

/// Appends the features of a run of soft tokens that starts at token `first` of the batch.
template <class T>
void append_features(Features& features, const std::vector<T>& values, std::int64_t first,
                     std::int64_t count) {
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  features.values.insert(features.values.end(), bytes, bytes + values.size() * sizeof(T));
  for (std::int64_t i = 0; i < count; ++i) features.token.push_back(static_cast<std::int32_t>(first + i));
  features.count += count;
}

Batch empty_batch(const TokenLayout& layout) {
  Batch batch;
  batch.patches.dtype = DType::u8;
  batch.patches.width = layout.patch_width;
  batch.frames.dtype = DType::i16;
  batch.frames.width = layout.frame_width;
  return batch;
}

}  // namespace

BatchBuilder::BatchBuilder(const TokenLayout& layout, const BatchOptions& options)
    : layout_(layout), options_(options), batch_(empty_batch(layout)) {}

void BatchBuilder::add_row(const Row& row, std::span<const Document> documents) {
  for (std::size_t i = 0; i < documents.size(); ++i) {
    add_document(documents[i]);
    batch_.samples.push_back(row.pieces[i].document);
  }
  const std::int64_t padding = options_.sequence_length - row.tokens;
  if (padding > 0) {
    Document pad;
    pad.tokens.assign(static_cast<std::size_t>(padding), layout_.pad);
    pad.trained.assign(static_cast<std::size_t>(padding), 0);
    add_document(pad);
  }
  ++batch_.rows;
}

void BatchBuilder::add_document(const Document& document) {
  const std::int64_t start = batch_.tokens();
  const auto count = static_cast<std::int64_t>(document.tokens.size());
  require(start + count <= std::numeric_limits<std::int32_t>::max(), "a micro-batch of more than {} tokens",
          std::numeric_limits<std::int32_t>::max());
  batch_.ids.insert(batch_.ids.end(), document.tokens.begin(), document.tokens.end());
  for (std::int64_t t = 0; t < count; ++t) {
    const bool predicts = t + 1 < count && document.trained[t + 1];
    batch_.targets.push_back(predicts ? document.tokens[t + 1] : -1);
    batch_.positions.push_back(static_cast<std::int32_t>(t));
  }
  document_of_.insert(document_of_.end(), static_cast<std::size_t>(count), documents_++);
  vision_.insert(vision_.end(), static_cast<std::size_t>(count), 0);
  for (const DocumentImage& image : document.images) {
    const std::int64_t first = start + image.first_token, patches = std::int64_t{image.columns} * image.rows;
    append_features(batch_.patches, image.patches, first, patches);
    std::fill_n(vision_.begin() + first, patches, 1);
    for (std::int32_t y = 0; y < image.rows; ++y) {
      for (std::int32_t x = 0; x < image.columns; ++x) batch_.patch_xy.insert(batch_.patch_xy.end(), {x, y});
    }
  }
  for (const DocumentSound& sound : document.sounds) {
    append_features(batch_.frames, sound.samples, start + sound.first_token, sound.frames);
  }
}

Batch BatchBuilder::finish() {
  attention_intervals(document_of_, vision_, options_.window, options_.image_attention, batch_.full,
                      batch_.sliding);
  Batch batch = std::exchange(batch_, empty_batch(layout_));
  document_of_.clear();
  vision_.clear();
  documents_ = 0;
  return batch;
}

}  // namespace lapidary
