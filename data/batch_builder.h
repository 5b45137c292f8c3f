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

/// The rows laid end to end; documents[r] are the pieces of rows[r] in order. What a row lacks to
/// sequence_length becomes a document of pad tokens. Within a document token t predicts token t + 1 where
/// that is marked as trained. Patches are u8, frames i16, as they are stored. Without rows it is a batch of 0
/// tokens.
Batch build_batch(std::span<const Row> rows, std::span<const std::vector<Document>> documents,
                  const TokenLayout& layout, const BatchOptions& options);

}  // namespace lapidary
