#include "model/config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/check.h"
#include "kernels/dtype.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {

namespace {

using Json = nlohmann::json;

/// One object of the file with its name, so that messages can say where.
class Section {
 public:
  Section(const Json& json, std::string file, std::string path)
      : json_(&json), file_(std::move(file)), path_(std::move(path)) {
    require(json.is_object(), "{}: {} is {}, expected an object", file_, path_.empty() ? "the file" : path_,
            json.type_name());
  }

  bool has(const char* key) const { return json_->contains(key) && !(*json_)[key].is_null(); }
  /// The key is absent or this very text.
  bool is(const char* key, const char* expected) const {
    return !json_->contains(key) || (*json_)[key] == expected;
  }
  std::string where(const char* key) const { return path_.empty() ? key : path_ + "." + key; }
  const std::string& file() const { return file_; }

  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high) const {
    return integer(key, value(key), low, high);
  }
  /// Of a list the first.
  std::int64_t first_integer_or(const char* key, std::int64_t otherwise, std::int64_t low,
                                std::int64_t high) const {
    if (!has(key)) return otherwise;
    const Json& v = value(key);
    return integer(key, v.is_array() && !v.empty() ? v[0] : v, low, high);
  }
  std::int64_t integer(const char* key, const Json& v, std::int64_t low, std::int64_t high) const {
    require(v.is_number_integer() && v.get<std::int64_t>() >= low && v.get<std::int64_t>() <= high,
            "{}: {} is {}, expected an integer from {} to {}", file_, where(key), v.dump(), low, high);
    return v.get<std::int64_t>();
  }
  std::int64_t integer_or(const char* key, std::int64_t otherwise, std::int64_t low,
                          std::int64_t high) const {
    return has(key) ? integer(key, low, high) : otherwise;
  }
  double number_or(const char* key, double otherwise, double low, double high) const {
    if (!has(key)) return otherwise;
    const Json& v = value(key);
    require(v.is_number() && v.get<double>() >= low && v.get<double>() <= high,
            "{}: {} is {}, expected a number from {} to {}", file_, where(key), v.dump(), low, high);
    return v.get<double>();
  }
  bool boolean_or(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const Json& v = value(key);
    require(v.is_boolean(), "{}: {} is {}, expected true or false", file_, where(key), v.dump());
    return v.get<bool>();
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    const Json& v = value(key);
    require(v.is_string(), "{}: {} is {}, expected a string", file_, where(key), v.dump());
    return v.get<std::string>();
  }
  Section section(const char* key) const { return Section(value(key), file_, where(key)); }
  const Json& value(const char* key) const {
    require(has(key), "{}: {} is missing", file_, where(key));
    return (*json_)[key];
  }

 private:
  const Json* json_;
  std::string file_, path_;
};

constexpr std::int64_t kMaxSize = 1 << 24;  // no dimension of this model comes near it
constexpr std::int64_t kLargestFile = 16 << 20;

/// Which layers are full: layer_types, or the rule that every sixth is; a last layer that is not full becomes
/// full.
std::vector<bool> full_layers(const Section& text, std::int64_t count) {
  std::vector<bool> full(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < full.size(); ++i) full[i] = (i + 1) % 6 == 0;
  if (text.has("layer_types")) {
    const Json& types = text.value("layer_types");
    require(types.is_array() && types.size() == full.size(),
            "{}: {} has {} entries, expected one for each of {} layers", text.file(),
            text.where("layer_types"), types.size(), full.size());
    for (std::size_t i = 0; i < full.size(); ++i) {
      const std::string kind = types[i].is_string() ? types[i].get<std::string>() : types[i].dump();
      require(kind == "sliding_attention" || kind == "full_attention",
              "{}: {}[{}] is {}, expected sliding_attention or full_attention", text.file(),
              text.where("layer_types"), i, kind);
      full[i] = kind == "full_attention";
    }
  }
  full.back() = true;
  return full;
}

/// A config that transformers saved carries the full layers' sizes per layer instead of as two fields.
void apply_per_layer_config(const Section& text, std::vector<LayerConfig>& layers) {
  const Section per_layer = text.section("per_layer_config");
  for (const auto& [key, value] : text.value("per_layer_config").items()) {
    std::size_t used = 0;
    std::size_t layer = layers.size();
    try {
      layer = std::stoul(key, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    require(used == key.size() && !key.empty() && layer < layers.size(),
            "{}: {} has the key \"{}\", expected a layer number below {}", text.file(),
            text.where("per_layer_config"), key, layers.size());
    const Section entry = per_layer.section(key.c_str());
    LayerConfig& l = layers[layer];
    l.head_dim = entry.integer_or("head_dim", l.head_dim, 1, kMaxSize);
    l.kv_heads = entry.integer_or("num_key_value_heads", l.kv_heads, 1, kMaxSize);
  }
}

std::vector<LayerConfig> read_layers(const Section& text) {
  const std::int64_t count = text.integer("num_hidden_layers", 1, 10000);
  const std::int64_t heads = text.integer("num_attention_heads", 1, kMaxSize);
  const std::int64_t kv_heads = text.integer("num_key_value_heads", 1, kMaxSize);
  const std::int64_t head_dim = text.integer_or("head_dim", 256, 2, kMaxSize);
  const std::int64_t full_dim =
      text.integer_or("global_head_dim", text.has("per_layer_config") ? head_dim : 512, 2, kMaxSize);
  const bool shared = text.boolean_or("attention_k_eq_v", false);
  const std::int64_t full_kv =
      shared ? text.integer_or("num_global_key_value_heads", kv_heads, 1, kMaxSize) : kv_heads;

  std::vector<LayerConfig> layers;
  for (const bool full : full_layers(text, count)) {
    layers.push_back(full ? LayerConfig{true, heads, full_kv, full_dim, shared}
                          : LayerConfig{false, heads, kv_heads, head_dim, false});
  }
  if (text.has("per_layer_config")) apply_per_layer_config(text, layers);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerConfig& l = layers[i];
    require(l.heads % l.kv_heads == 0, "{}: layer {} has {} query heads on {} key heads, expected a multiple",
            text.file(), i, l.heads, l.kv_heads);
    require(l.head_dim % 2 == 0, "{}: layer {} has head_dim {}, expected an even number", text.file(), i,
            l.head_dim);
    for (std::size_t j = 0; j < i; ++j) {  // the rotary tables are shared by all layers of a kind
      require(layers[j].full != l.full || layers[j].head_dim == l.head_dim,
              "{}: layers {} and {} are of one kind but have head_dim {} and {}", text.file(), j, i,
              layers[j].head_dim, l.head_dim);
    }
  }
  return layers;
}

/// Features that other members of the family have and this implementation does not compute.
void refuse_other_models(const Section& top, const Section& text) {
  const auto must_be_zero = [&](const char* key) { text.integer_or(key, 0, 0, 0); };
  must_be_zero("hidden_size_per_layer_input");
  must_be_zero("num_kv_shared_layers");
  for (const char* key : {"attention_bias", "enable_moe_block", "use_double_wide_mlp"}) {
    require(!text.boolean_or(key, false), "{}: {} is true, which this model does not have", text.file(),
            text.where(key));
  }
  require(text.number_or("attention_dropout", 0, 0, 1) == 0, "{}: {} is not 0, which is not supported",
          text.file(), text.where("attention_dropout"));
  const std::string act = text.text_or("hidden_activation", "gelu_pytorch_tanh");
  require(act == "gelu_pytorch_tanh", "{}: {} is {}, expected gelu_pytorch_tanh", text.file(),
          text.where("hidden_activation"), act);
  require(top.boolean_or("tie_word_embeddings", true) && text.boolean_or("tie_word_embeddings", true),
          "{}: tie_word_embeddings is false, expected true", top.file());
  // Left out it is vision; an explicit null is causal everywhere, which is another model.
  require(text.is("use_bidirectional_attention", "vision"),
          "{}: {} is not \"vision\", which is not supported", text.file(),
          text.where("use_bidirectional_attention"));
}

void read_rope(const Section& text, ModelConfig& config) {
  if (!text.has("rope_parameters")) return;
  const Section rope = text.section("rope_parameters");
  const auto check_type = [](const Section& s, const char* expected) {
    const std::string type = s.text_or("rope_type", expected);
    require(type == expected, "{}: {} is {}, expected {}", s.file(), s.where("rope_type"), type, expected);
    require(s.number_or("factor", 1, 0, 1e9) == 1, "{}: {} is not 1, which is not supported", s.file(),
            s.where("factor"));
  };
  if (rope.has("sliding_attention")) {
    const Section s = rope.section("sliding_attention");
    check_type(s, "default");
    config.sliding_theta = s.number_or("rope_theta", config.sliding_theta, 1, 1e12);
  }
  if (rope.has("full_attention")) {
    const Section s = rope.section("full_attention");
    check_type(s, "proportional");
    config.full_theta = s.number_or("rope_theta", config.full_theta, 1, 1e12);
    config.full_rotary_fraction = s.number_or("partial_rotary_factor", 1, 0, 1);
  }
}

void read_media(const Section& top, ModelConfig& config) {
  const auto id = [&](const char* key, std::int32_t otherwise) {
    return static_cast<std::int32_t>(top.integer_or(key, otherwise, 0, config.vocabulary - 1));
  };
  config.has_vision = top.has("vision_config");
  if (config.has_vision) {
    const Section s = top.section("vision_config");
    config.vision.patch_side =
        s.integer_or("patch_size", 16, 1, 4096) * s.integer_or("pooling_kernel_size", 3, 1, 64);
    require(
        s.integer_or("model_patch_size", config.vision.patch_side, 1, kMaxSize) == config.vision.patch_side,
        "{}: {} is not patch_size * pooling_kernel_size = {}", s.file(), s.where("model_patch_size"),
        config.vision.patch_side);
    config.vision.width = s.integer_or("mm_embed_dim", 3840, 1, kMaxSize);
    require(s.integer_or("output_proj_dims", config.vision.width, 1, kMaxSize) == config.vision.width,
            "{}: {} is not mm_embed_dim = {}", s.file(), s.where("output_proj_dims"), config.vision.width);
    config.vision.positions = s.integer_or("mm_posemb_size", 1120, 1, kMaxSize);
    config.vision.rms_eps = s.number_or("rms_norm_eps", 1e-6, 0, 1);
    config.vision.initializer_range = s.number_or("initializer_range", 0.02, 0, 10);
    config.begin_image_id = id("boi_token_id", 255999);
    config.end_image_id = id("eoi_token_id", 258882);
    config.image_id = id("image_token_id", 258880);
    config.video_id = id("video_token_id", 258884);
  }
  config.has_audio = top.has("audio_config");
  if (config.has_audio) {
    const Section s = top.section("audio_config");
    config.audio.frame_width = s.integer_or("audio_embed_dim", 640, 1, kMaxSize);
    config.audio.rms_eps = s.number_or("rms_norm_eps", 1e-6, 0, 1);
    config.audio.initializer_range = s.number_or("initializer_range", 0.02, 0, 10);
    config.begin_audio_id = id("boa_token_id", 256000);
    config.end_audio_id = id("eoa_token_index", 258883);
    config.audio_id = id("audio_token_id", 258881);
  }
}

}  // namespace

ModelConfig read_model_config(const std::string& path) {
  return parse_model_config(read_text_file(path, kLargestFile), path);
}

ModelConfig parse_model_config(std::string_view text_of_file, const std::string& path) {
  const Json json = parse_json(text_of_file, path);
  const Section top(json, path, "");
  const std::string type = top.text_or("model_type", "gemma4_unified");
  require(type == "gemma4_unified", "{}: model_type is {}, expected gemma4_unified", path, type);
  const Section text = top.section("text_config");
  refuse_other_models(top, text);

  ModelConfig config;
  config.vocabulary = text.integer("vocab_size", 4, kMaxSize);
  config.width = text.integer("hidden_size", 1, kMaxSize);
  config.mlp_width = text.integer("intermediate_size", 1, kMaxSize);
  config.layers = read_layers(text);
  config.window = text.integer("sliding_window", 1, kMaxSize);
  config.rms_eps = text.number_or("rms_norm_eps", 1e-6, 0, 1);
  config.soft_cap = text.number_or("final_logit_softcapping", 0, 0, 1e6);
  config.initializer_range = text.number_or("initializer_range", 0.02, 0, 10);
  const auto id = [&](const char* key, std::int32_t otherwise) {
    return static_cast<std::int32_t>(text.integer_or(key, otherwise, 0, config.vocabulary - 1));
  };
  config.pad_id = id("pad_token_id", 0);
  // A list names every token that ends a reply; its first ends a document.
  config.eos_id =
      static_cast<std::int32_t>(text.first_integer_or("eos_token_id", 1, 0, config.vocabulary - 1));
  config.bos_id = id("bos_token_id", 2);
  read_rope(text, config);
  read_media(top, config);
  return config;
}

double ModelConfig::embedding_scale(bool bf16_weights) const {
  const auto scale = static_cast<float>(std::sqrt(static_cast<double>(width)));
  return bf16_weights ? static_cast<float>(bf16(scale)) : scale;
}

std::vector<float> ModelConfig::rope_frequencies(bool full) const {
  std::int64_t dim = 0;
  for (const LayerConfig& l : layers) {
    if (l.full == full) dim = l.head_dim;
  }
  // Proportional: the exponent's denominator is the whole head, but only this share of its pairs turns.
  const double fraction = full ? full_rotary_fraction : 1.0;
  const auto pairs = static_cast<std::int64_t>(fraction * static_cast<double>(dim) / 2);
  std::vector<float> out;
  // In float32 throughout, as the reference: far positions multiply the last bit.
  const auto theta = static_cast<float>(full ? full_theta : sliding_theta);
  for (std::int64_t j = 0; j < pairs; ++j)
    out.push_back(1.0f / std::pow(theta, static_cast<float>(2 * j) / static_cast<float>(dim)));
  return out;
}

std::vector<std::int32_t> ModelConfig::soft_ids() const {
  std::vector<std::int32_t> out;
  for (const std::int32_t id : {image_id, video_id, audio_id}) {
    if (id >= 0) out.push_back(id);
  }
  return out;
}

}  // namespace lapidary
