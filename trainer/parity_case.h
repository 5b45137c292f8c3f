// The files of a reference case, read and turned into batches.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "kernels/batch.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace lapidary {

/// AdamW steps that the reference took on the case's inputs.
struct ReferenceTrajectory {
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0, clip_norm = 0;
  std::vector<double> losses;
  double rounding =
      0;  ///< largest relative difference between the reference's own float32 and float64 losses
};

class ParityCase {
 public:
  /// Throws Error naming the file and what is missing or misshapen.
  explicit ParityCase(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const ModelConfig& config() const { return config_; }
  const Safetensors& outputs() const { return outputs_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t row_tokens() const { return row_tokens_; }

  /// The given rows of the case, end to end.
  Batch batch(const std::vector<std::int64_t>& rows) const;
  ReferenceTrajectory trajectory() const;

 private:
  /// The features of one kind without their padding. The n-th goes to the n-th placeholder of the case, rows
  /// in order, whatever image or clip either belongs to: what transformers' forward does.
  struct SoftTokens {
    std::int32_t id = -1;  ///< of the placeholder
    std::int64_t count = 0, width = 0;
    std::vector<float> values;     ///< [count, width]
    std::vector<std::int32_t> xy;  ///< [count, 2] column and row; none of sounds
  };
  const StoredTensor* find_features(const char* name, std::size_t dimensions, std::int64_t width) const;
  SoftTokens read_patches(const char* pixels, const char* positions, std::size_t dimensions,
                          std::int32_t id) const;
  SoftTokens read_frames() const;
  void check_placeholders(const SoftTokens& soft, const char* kind) const;
  void add_row(std::int64_t row, Batch& batch, std::vector<std::int32_t>& document,
               std::vector<std::uint8_t>& vision) const;

  std::string folder_;
  ModelConfig config_;
  Safetensors inputs_, outputs_;
  ImageAttention rule_ = ImageAttention::all;
  std::int64_t rows_ = 0, row_tokens_ = 0;
  std::vector<std::int64_t> ids_, labels_, positions_, types_;  ///< [rows, row_tokens]
  enum Kind : std::uint8_t { kImage, kVideo, kSound, kKinds };
  std::array<SoftTokens, kKinds> soft_;
};

}  // namespace lapidary
