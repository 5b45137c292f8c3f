// Batches of random text: what benchmarks train on and forecasts count.
#pragma once
#include "kernels/batch.h"
#include "model/config.h"

namespace lapidary {

/// `rows` packed rows of `length` random tokens, each row one document, every token with its successor as
/// target; no pictures and no sounds. The same for the same seed.
Batch random_text(const ModelConfig& model, std::int64_t rows, std::int64_t length, std::uint64_t seed,
                  ImageAttention rule);

}  // namespace lapidary
