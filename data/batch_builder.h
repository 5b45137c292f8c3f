// From packed documents to the arrays that the model consumes.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "data/document.h"
#include "data/packing.h"
#include "kernels/batch.h"

namespace lapidary {

struct BatchOptions {
  std::int64_t sequence_length = 0;
  std::int32_t window = 0;  ///< keys visible in the model's sliding layers, the query included
  ImageAttention image_attention = ImageAttention::sliding;
};

/// Collects rows into one Batch, row by row.
class BatchBuilder {
 public:
  BatchBuilder(const TokenLayout& layout, const BatchOptions& options);

  /// Appends a row: `documents` are the row's pieces in order, what is missing to sequence_length becomes a
  /// document of pad tokens. Within a document position t is trained to predict token t + 1 where that is
  /// marked as trained.
  void add_row(const Row& row, std::span<const Document> documents);

  /// The batch, with attention intervals; the builder is empty afterwards. Without rows it is a batch of 0
  /// tokens.
  Batch finish();

 private:
  void add_document(const Document& document);

  TokenLayout layout_;
  BatchOptions options_;
  Batch batch_;
  std::vector<std::int32_t> document_of_;  // [tokens] changes where a document or row starts
  std::vector<std::uint8_t> vision_;       // [tokens] 1 at soft tokens of images and videos
  std::int32_t documents_ = 0;
};

}  // namespace lapidary
