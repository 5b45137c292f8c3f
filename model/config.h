// The shape of a Gemma 4 Unified model, read from a Hugging Face config.json (specification section 1).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

/// One decoder layer's attention.
struct LayerConfig {
  bool full = false;       ///< full attention; else a sliding window
  std::int64_t heads = 0;  ///< query heads
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  bool shared_kv = false;  ///< no v_proj: values come from the key projection (attention_k_eq_v, full layers)
  std::int64_t q_width() const { return heads * head_dim; }
  std::int64_t kv_width() const { return kv_heads * head_dim; }
  std::int64_t qkv_width() const { return q_width() + (shared_kv ? 1 : 2) * kv_width(); }
};

struct VisionConfig {
  std::int64_t patch_side = 48;   ///< pixels: patch_size * pooling_kernel_size
  std::int64_t width = 3840;      ///< mm_embed_dim
  std::int64_t positions = 1120;  ///< rows of the position table per axis
  double rms_eps = 1e-6;
  double layer_norm_eps = 1e-5;  ///< not in the file: torch's default, which the reference uses
  double initializer_range = 0.02;
  std::int64_t patch_width() const { return 3 * patch_side * patch_side; }
};

struct AudioConfig {
  std::int64_t frame_width = 640;  ///< samples per soft token
  double rms_eps = 1e-6;
  double initializer_range = 0.02;
};

struct ModelConfig {
  std::int64_t vocabulary = 0;
  std::int64_t width = 0;      ///< hidden_size
  std::int64_t mlp_width = 0;  ///< intermediate_size
  std::vector<LayerConfig> layers;
  std::int64_t window = 0;  ///< keys visible in sliding layers, the query included
  double rms_eps = 1e-6;
  double soft_cap = 0;  ///< 0: none
  double initializer_range = 0.02;
  double sliding_theta = 10000;
  double full_theta = 1000000;
  double full_rotary_fraction = 0.25;  ///< share of the head's pairs that rotate in full layers
  std::int32_t pad_id = 0, eos_id = 1, bos_id = 2;
  std::int32_t image_id = -1, video_id = -1, audio_id = -1;  ///< placeholders of soft tokens
  std::int32_t begin_image_id = -1, end_image_id = -1, begin_audio_id = -1, end_audio_id = -1;
  bool has_vision = false, has_audio = false;
  VisionConfig vision;
  AudioConfig audio;

  /// Factor of embedding rows: sqrt(width) rounded to the weights' type (specification 3.1: 62 for bf16).
  double embedding_scale(bool bf16_weights) const;
  /// Rotary frequencies of the rotating pairs, float32 (specification 3.6).
  std::vector<float> rope_frequencies(bool full) const;
  std::vector<std::int32_t> soft_ids() const;  ///< placeholder ids that exist
};

/// Throws Error naming file, key, what was found and what was expected. Accepts both forms of the file: with
/// global_head_dim and num_global_key_value_heads, or with per_layer_config; refuses what this model does not
/// have.
ModelConfig read_model_config(const std::string& path);
/// The same from the file's text; `where` stands for its name in messages.
ModelConfig parse_model_config(std::string_view text, const std::string& where);

}  // namespace lapidary
