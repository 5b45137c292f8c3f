#include "model/parameter_table.h"

#include <array>
#include <utility>

namespace lapidary {

namespace {

class Builder {
 public:
  explicit Builder(ParameterTable& table) : table_(table) {}

  void begin_unit(const std::string& name) {
    table_.unit_names.push_back(name);
    unit_ = static_cast<int>(table_.unit_names.size()) - 1;
  }
  int unit() const { return unit_; }

  int matrix(const std::string& name, std::vector<std::int64_t> shape, double std, bool joined = false) {
    return add({name, std::move(shape), Init::normal, std, true, true, unit_, joined});
  }
  int vector(const std::string& name, std::int64_t size, Init init) {
    return add({name, {size}, init, 0, false, true, unit_, false});
  }
  int frozen(const std::string& name) { return add({name, {1}, Init::ones, 0, false, false, unit_, false}); }
  int outside_units(const std::string& name, std::vector<std::int64_t> shape, double std) {
    return add({name, std::move(shape), Init::normal, std, true, true, -1, false});
  }

 private:
  int add(ParameterSpec spec) {
    table_.specs.push_back(std::move(spec));
    return static_cast<int>(table_.specs.size()) - 1;
  }
  ParameterTable& table_;
  int unit_ = -1;
};

VisionParameters add_vision(Builder& b, const ModelConfig& c) {
  const VisionConfig& v = c.vision;
  const double std = v.initializer_range;
  const std::string p = "model.vision_embedder.";
  VisionParameters out;
  out.norm1_weight = b.vector(p + "patch_ln1.weight", v.patch_width(), Init::ones);
  out.norm1_bias = b.vector(p + "patch_ln1.bias", v.patch_width(), Init::zeros);
  out.dense_weight = b.matrix(p + "patch_dense.weight", {v.width, v.patch_width()}, std);
  out.dense_bias = b.vector(p + "patch_dense.bias", v.width, Init::zeros);
  out.norm2_weight = b.vector(p + "patch_ln2.weight", v.width, Init::ones);
  out.norm2_bias = b.vector(p + "patch_ln2.bias", v.width, Init::zeros);
  out.positions = b.matrix(p + "pos_embedding", {v.positions, 2, v.width}, std);
  out.norm3_weight = b.vector(p + "pos_norm.weight", v.width, Init::ones);
  out.norm3_bias = b.vector(p + "pos_norm.bias", v.width, Init::zeros);
  out.projection = b.matrix("model.embed_vision.embedding_projection.weight", {c.width, v.width}, std);
  return out;
}

LayerParameters add_layer(Builder& b, const ModelConfig& c, std::size_t index) {
  const LayerConfig& l = c.layers[index];
  const std::string p = "model.language_model.layers." + std::to_string(index) + ".";
  const double std = c.initializer_range;
  b.begin_unit("layer " + std::to_string(index));
  LayerParameters out;
  out.unit = b.unit();
  out.input_norm = b.vector(p + "input_layernorm.weight", c.width, Init::ones);
  out.q = b.matrix(p + "self_attn.q_proj.weight", {l.q_width(), c.width}, std);
  b.matrix(p + "self_attn.k_proj.weight", {l.kv_width(), c.width}, std, true);
  if (!l.shared_kv) b.matrix(p + "self_attn.v_proj.weight", {l.kv_width(), c.width}, std, true);
  out.qkv_count = l.shared_kv ? 2 : 3;
  out.q_norm = b.vector(p + "self_attn.q_norm.weight", l.head_dim, Init::ones);
  out.k_norm = b.vector(p + "self_attn.k_norm.weight", l.head_dim, Init::ones);
  out.o = b.matrix(p + "self_attn.o_proj.weight", {c.width, l.q_width()}, std);
  out.post_attention_norm = b.vector(p + "post_attention_layernorm.weight", c.width, Init::ones);
  out.pre_mlp_norm = b.vector(p + "pre_feedforward_layernorm.weight", c.width, Init::ones);
  out.gate = b.matrix(p + "mlp.gate_proj.weight", {c.mlp_width, c.width}, std);
  b.matrix(p + "mlp.up_proj.weight", {c.mlp_width, c.width}, std, true);
  out.down = b.matrix(p + "mlp.down_proj.weight", {c.width, c.mlp_width}, std);
  out.post_mlp_norm = b.vector(p + "post_feedforward_layernorm.weight", c.width, Init::ones);
  out.layer_scalar = b.frozen(p + "layer_scalar");
  return out;
}

// Transformers renames these stems when it loads a checkpoint and undoes it when it saves.
constexpr std::array<std::pair<const char*, const char*>, 2> kRenamed = {{
    {"model.embed_vision.embedding_projection.",
     "model.embed_vision.multimodal_embedder.embedding_projection."},
    {"model.vision_embedder.", "model.embed_vision."},
}};

}  // namespace

ParameterTable make_parameter_table(const ModelConfig& config) {
  ParameterTable table;
  Builder b(table);
  table.table = b.outside_units("model.language_model.embed_tokens.weight", {config.vocabulary, config.width},
                                config.initializer_range);
  if (config.has_vision || config.has_audio) {
    b.begin_unit("embedders");
    table.embedder_unit = b.unit();
    if (config.has_vision) table.vision = add_vision(b, config);
    if (config.has_audio) {
      table.audio_projection =
          b.matrix("model.embed_audio.embedding_projection.weight", {config.width, config.audio.frame_width},
                   config.audio.initializer_range);
    }
  }
  for (std::size_t i = 0; i < config.layers.size(); ++i) table.layers.push_back(add_layer(b, config, i));
  b.begin_unit("head");
  table.head_unit = b.unit();
  table.final_norm = b.vector("model.language_model.norm.weight", config.width, Init::ones);
  return table;
}

std::int64_t ParameterTable::trainable_elements() const {
  std::int64_t sum = 0;
  for (const ParameterSpec& s : specs) sum += s.trainable ? s.numel() : 0;
  return sum;
}

std::int64_t ParameterTable::stored_elements() const {
  std::int64_t sum = 0;
  for (const ParameterSpec& s : specs) sum += s.numel();
  return sum;
}

std::string in_memory_name(const std::string& on_disk) {
  for (const auto& [disk, memory] : kRenamed) {
    if (on_disk.starts_with(disk)) return memory + on_disk.substr(std::string(disk).size());
  }
  return on_disk;
}

std::string on_disk_name(const std::string& in_memory) {
  for (const auto& [disk, memory] : kRenamed) {
    if (in_memory.starts_with(disk)) return in_memory;  // already the name on disk
    if (in_memory.starts_with(memory)) return disk + in_memory.substr(std::string(memory).size());
  }
  return in_memory;
}

}  // namespace lapidary
