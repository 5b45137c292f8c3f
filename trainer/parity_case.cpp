#include "trainer/parity_case.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/json.h"

namespace lapidary {

namespace {

using Json = nlohmann::json;
constexpr std::int64_t kJsonLimit = std::int64_t{1} << 20;

std::vector<std::int64_t> read_rows(const Safetensors& inputs, const char* name, std::int64_t rows,
                                    std::int64_t columns) {
  const StoredTensor& tensor = inputs.at(name);
  require(tensor.shape == std::vector<std::int64_t>{rows, columns},
          "{}: {} has shape [{}], expected [{}, {}]", inputs.path(), name, fmt::join(tensor.shape, ", "),
          rows, columns);
  return inputs.read_all<std::int64_t>(name);
}

/// What is not understood would be left out silently: an attention mask, for example.
void check_names(const Safetensors& inputs) {
  constexpr std::array<const char*, 10> kKnown = {"input_ids",           "labels",
                                                  "position_ids",        "mm_token_type_ids",
                                                  "pixel_values",        "image_position_ids",
                                                  "pixel_values_videos", "video_position_ids",
                                                  "input_features",      "input_features_mask"};
  for (const StoredTensor& tensor : inputs.tensors()) {
    require(std::find(kKnown.begin(), kKnown.end(), tensor.name) != kKnown.end(),
            "{}: {} is not an input that this comparison knows; known are {}", inputs.path(), tensor.name,
            fmt::join(kKnown, ", "));
  }
}

ImageAttention read_rule(const std::string& path) {
  const Json json = read_json_file(path, kJsonLimit);
  const std::string rule = json_string(json, "image_attention", path);
  require(rule == "all" || rule == "sliding", "{}: image_attention is {}, expected all or sliding", path,
          rule);
  return rule == "all" ? ImageAttention::all : ImageAttention::sliding;
}

}  // namespace

ParityCase::ParityCase(const std::string& folder)
    : folder_(folder),
      config_(read_model_config(folder + "/config.json")),
      inputs_(folder + "/inputs.safetensors"),
      outputs_(folder + "/outputs.safetensors"),
      rule_(read_rule(folder + "/case.json")) {
  check_names(inputs_);
  const StoredTensor& ids = inputs_.at("input_ids");
  require(ids.shape.size() == 2, "{}: input_ids has {} dimensions, expected 2", inputs_.path(),
          ids.shape.size());
  rows_ = ids.shape[0];
  row_tokens_ = ids.shape[1];
  ids_ = read_rows(inputs_, "input_ids", rows_, row_tokens_);
  labels_ = read_rows(inputs_, "labels", rows_, row_tokens_);
  positions_ = read_rows(inputs_, "position_ids", rows_, row_tokens_);
  types_ = read_rows(inputs_, "mm_token_type_ids", rows_, row_tokens_);
  const ModelConfig& c = config_;
  soft_ = {read_patches("pixel_values", "image_position_ids", 3, c.image_id),
           read_patches("pixel_values_videos", "video_position_ids", 4, c.video_id), read_frames()};
  check_placeholders(soft_[kImage], "image patches");
  check_placeholders(soft_[kVideo], "video patches");
  check_placeholders(soft_[kSound], "audio frames");
}

/// nullptr: the case has none.
const StoredTensor* ParityCase::find_features(const char* name, std::size_t dimensions,
                                              std::int64_t width) const {
  const StoredTensor* t = inputs_.find(name);
  require(!t || (t->shape.size() == dimensions && t->shape.back() == width),
          "{}: {} has shape [{}], expected {} dimensions, the last of {}", inputs_.path(), name,
          fmt::join(t ? t->shape : std::vector<std::int64_t>(), ", "), dimensions, width);
  return t;
}

ParityCase::SoftTokens ParityCase::read_patches(const char* pixels, const char* positions,
                                                std::size_t dimensions, std::int32_t id) const {
  SoftTokens out{id, 0, config_.vision.patch_width(), {}, {}};
  const StoredTensor* stored = find_features(pixels, dimensions, out.width);
  if (!stored) return out;
  const std::vector<float> values = inputs_.read_all<float>(pixels);
  const std::vector<std::int64_t> xy = inputs_.read_all<std::int64_t>(positions);
  const std::int64_t slots = stored->elements / out.width;
  require(static_cast<std::int64_t>(xy.size()) == 2 * slots, "{}: {} has {} elements for {} patches of {}",
          inputs_.path(), positions, xy.size(), slots, pixels);
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    const std::int64_t x = xy[static_cast<std::size_t>(2 * slot)],
                       y = xy[static_cast<std::size_t>(2 * slot + 1)];
    if (x < 0 || y < 0) continue;  // padding
    const auto first = values.begin() + slot * out.width;
    out.values.insert(out.values.end(), first, first + out.width);
    out.xy.insert(out.xy.end(), {static_cast<std::int32_t>(x), static_cast<std::int32_t>(y)});
    ++out.count;
  }
  return out;
}

ParityCase::SoftTokens ParityCase::read_frames() const {
  SoftTokens out{config_.audio_id, 0, config_.audio.frame_width, {}, {}};
  const StoredTensor* stored = find_features("input_features", 3, out.width);
  if (!stored) return out;
  const std::vector<float> values = inputs_.read_all<float>("input_features");
  const std::vector<std::int64_t> mask = inputs_.read_all<std::int64_t>("input_features_mask");
  const std::int64_t slots = stored->elements / out.width;
  require(static_cast<std::int64_t>(mask.size()) == slots,
          "{}: input_features_mask has {} elements for {} frames", inputs_.path(), mask.size(), slots);
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    if (!mask[static_cast<std::size_t>(slot)]) continue;
    const auto first = values.begin() + slot * out.width;
    out.values.insert(out.values.end(), first, first + out.width);
    ++out.count;
  }
  return out;
}

void ParityCase::check_placeholders(const SoftTokens& soft, const char* kind) const {
  const std::int64_t places = soft.id < 0 ? 0 : std::count(ids_.begin(), ids_.end(), soft.id);
  require(places == soft.count, "{}: {} {} for {} placeholders (id {})", inputs_.path(), soft.count, kind,
          places, soft.id);
}

namespace {

/// Number `from` of `values` [.., width] becomes the feature of `token`.
void append_feature(const std::vector<float>& values, std::int64_t from, std::int64_t width,
                    std::int64_t token, Features& to) {
  const auto* first = reinterpret_cast<const std::byte*>(values.data() + from * width);
  to.values.insert(to.values.end(), first, first + static_cast<std::size_t>(width) * sizeof(float));
  to.token.push_back(static_cast<std::int32_t>(token));
  ++to.count;
}

}  // namespace

void ParityCase::add_row(std::int64_t row, Batch& batch, std::vector<std::int32_t>& document,
                         std::vector<std::uint8_t>& vision) const {
  const auto at = [&](const std::vector<std::int64_t>& values, std::int64_t t) {
    return values[static_cast<std::size_t>(row * row_tokens_ + t)];
  };
  std::int32_t doc = document.empty() ? 0 : document.back() + 1;
  for (std::int64_t t = 0; t < row_tokens_; ++t) {
    if (t > 0 && at(positions_, t) - at(positions_, t - 1) != 1) ++doc;  // transformers' rule for packed rows
    batch.ids.push_back(static_cast<std::int32_t>(at(ids_, t)));
    const std::int64_t label = t + 1 < row_tokens_ ? at(labels_, t + 1) : -100;
    batch.targets.push_back(label == -100 ? -1 : static_cast<std::int32_t>(label));
    batch.positions.push_back(static_cast<std::int32_t>(at(positions_, t)));
    document.push_back(doc);
    vision.push_back(at(types_, t) == 1 || at(types_, t) == 2 ? 1 : 0);
  }
}

Batch ParityCase::batch(const std::vector<std::int64_t>& rows) const {
  Batch out;
  out.patches.width = config_.vision.patch_width();
  out.frames.width = config_.audio.frame_width;
  std::vector<std::int32_t> document;
  std::vector<std::uint8_t> vision;
  std::array<std::int64_t, kKinds> taken{};  // soft tokens are in the order of the case's rows, wanted or not
  for (std::int64_t row = 0; row < rows_; ++row) {
    const bool wanted = std::find(rows.begin(), rows.end(), row) != rows.end();
    const std::int64_t first = out.tokens();
    if (wanted) add_row(row, out, document, vision);
    for (std::int64_t t = 0; t < row_tokens_; ++t) {
      for (std::size_t kind = 0; kind < kKinds; ++kind) {
        const SoftTokens& soft = soft_[kind];
        if (soft.count == 0 || ids_[static_cast<std::size_t>(row * row_tokens_ + t)] != soft.id) continue;
        const std::int64_t from = taken[kind]++;
        if (!wanted) continue;
        append_feature(soft.values, from, soft.width, first + t, kind == kSound ? out.frames : out.patches);
        if (kind == kSound) continue;
        const auto xy = soft.xy.begin() + 2 * from;
        out.patch_xy.insert(out.patch_xy.end(), xy, xy + 2);
      }
    }
  }
  attention_intervals(document, vision, static_cast<std::int32_t>(config_.window), rule_, out.full,
                      out.sliding);
  out.rows = static_cast<std::int64_t>(rows.size());
  return out;
}

ReferenceTrajectory ParityCase::trajectory() const {
  const std::string path = folder_ + "/trajectory.json";
  const Json json = read_json_file(path, kJsonLimit);
  const Json& hp = json_member(json, "hyperparameters", Json::value_t::object, path);
  const auto number = [&](const Json& from, const char* key) {
    require(from.contains(key) && from[key].is_number(), "{}: {} is missing or not a number", path, key);
    return from[key].get<double>();
  };
  ReferenceTrajectory out;
  out.lr = number(hp, "lr");
  out.beta1 = number(hp, "beta1");
  out.beta2 = number(hp, "beta2");
  out.eps = number(hp, "eps");
  out.weight_decay = number(hp, "weight_decay");
  out.clip_norm = number(hp, "clip_grad_norm");
  out.rounding = number(json, "largest_relative_difference");
  for (const Json& loss : json_member(json, "losses", Json::value_t::array, path)) {
    require(loss.is_number(), "{}: losses holds {}, expected numbers", path, loss.dump());
    out.losses.push_back(loss.get<double>());
  }
  return out;
}

}  // namespace lapidary
