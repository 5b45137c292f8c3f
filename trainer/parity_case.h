// The files of a reference case, read and turned into batches.
#pragma once
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
  void add_row(std::int64_t row, Batch& batch, std::vector<std::int32_t>& document,
               std::vector<std::uint8_t>& vision) const;
  void add_patches(std::int64_t image, std::vector<std::int32_t> tokens, Batch& batch) const;
  void add_frames(std::int64_t clip, std::vector<std::int32_t> tokens, Batch& batch) const;

  std::string folder_;
  ModelConfig config_;
  Safetensors inputs_, outputs_;
  ImageAttention rule_ = ImageAttention::all;
  std::int64_t rows_ = 0, row_tokens_ = 0;
  std::vector<std::int64_t> ids_, labels_, positions_, types_;  ///< [rows, row_tokens]
  std::vector<float> pixels_, features_;               ///< [images, slots, width], [clips, slots, width]
  std::vector<std::int64_t> pixel_xy_, feature_mask_;  ///< [images, slots, 2], [clips, slots]
  std::int64_t image_slots_ = 0, clip_slots_ = 0;
};

}  // namespace lapidary
