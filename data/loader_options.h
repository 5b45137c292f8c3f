// Which data a run reads and how it becomes rows, steps and batches.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/document.h"
#include "kernels/batch.h"

namespace lapidary {

struct DataSource {
  std::string path;   ///< directory of a data set
  double weight = 1;  ///< times its documents come in an epoch
};

struct LoaderOptions {
  std::vector<DataSource> sources;
  std::optional<TokenLayout> layout;  ///< what the model expects; another one in the data is an Error
  std::int64_t sequence_length = 0;   ///< tokens of a row
  std::int64_t rows_per_step = 1;     ///< over all ranks
  std::int64_t rows_per_micro = 1;    ///< of one rank
  std::uint64_t seed = 0;
  bool shuffle = true;
  bool one_pass = false;           ///< one epoch, then done(): validation
  std::int32_t look_ahead = 1024;  ///< documents to choose from when a row is filled (packing.h)
  bool skip_too_long = false;      ///< leave out documents with images or sounds that no row can hold
  std::int32_t window = 1024;      ///< keys visible in the model's sliding layers, the query included
  ImageAttention image_attention = ImageAttention::sliding;
  int rank = 0, ranks = 1;
  std::int64_t read_ahead_bytes = std::int64_t{256} << 20;
};

}  // namespace lapidary
