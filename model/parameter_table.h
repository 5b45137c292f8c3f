// The one table of Gemma 4's parameters: names, shapes, units, initialisation, decay. Everything that touches
// a parameter (allocation, sharding, import, checkpoints, optimizer groups) goes through it.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "parallel/parameters.h"

namespace lapidary {

/// Indices into ParameterTable::specs of one decoder layer. q, k (, v) are joined, gate and up are joined.
struct LayerParameters {
  int unit = 0;
  int input_norm = 0, q = 0, o = 0, q_norm = 0, k_norm = 0, post_attention_norm = 0;
  int qkv_count = 0;  ///< matrices joined behind q, q included: 3, or 2 where values come from the keys
  int pre_mlp_norm = 0, gate = 0, down = 0, post_mlp_norm = 0, layer_scalar = 0;
};

struct VisionParameters {
  int norm1_weight = 0, norm1_bias = 0, dense_weight = 0, dense_bias = 0, norm2_weight = 0, norm2_bias = 0;
  int positions = 0, norm3_weight = 0, norm3_bias = 0, projection = 0;
};

struct ParameterTable {
  std::vector<ParameterSpec> specs;
  std::vector<std::string> unit_names;
  int table = 0;                     ///< the tied embedding; belongs to no unit (unit = -1)
  std::optional<int> embedder_unit;  ///< vision and audio; absent in a text-only model
  std::vector<LayerParameters> layers;
  int head_unit = 0;
  int final_norm = 0;
  std::optional<VisionParameters> vision;
  std::optional<int> audio_projection;

  /// Elements of all trainable parameters, and of all stored ones.
  std::int64_t trainable_elements() const;
  std::int64_t stored_elements() const;
};

ParameterTable make_parameter_table(const ModelConfig& config);

/// The name that transformers uses in memory for an on-disk name, and the reverse (specification 2.1).
std::string in_memory_name(const std::string& on_disk);
std::string on_disk_name(const std::string& in_memory);

}  // namespace lapidary
