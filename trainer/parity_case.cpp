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
  const StoredTensor& ids = inputs_.at("input_ids");
  require(ids.shape.size() == 2, "{}: input_ids has {} dimensions, expected 2", inputs_.path(),
          ids.shape.size());
  rows_ = ids.shape[0];
  row_tokens_ = ids.shape[1];
  ids_ = read_rows(inputs_, "input_ids", rows_, row_tokens_);
  labels_ = read_rows(inputs_, "labels", rows_, row_tokens_);
  positions_ = read_rows(inputs_, "position_ids", rows_, row_tokens_);
  types_ = read_rows(inputs_, "mm_token_type_ids", rows_, row_tokens_);
  if (const StoredTensor* t = inputs_.find("pixel_values")) {
    require(t->shape.size() == 3 && t->shape[2] == config_.vision.patch_width(),
            "{}: pixel_values has shape [{}], expected [images, patches, {}]", inputs_.path(),
            fmt::join(t->shape, ", "), config_.vision.patch_width());
    image_slots_ = t->shape[1];
    pixels_ = inputs_.read_all<float>("pixel_values");
    pixel_xy_ = inputs_.read_all<std::int64_t>("image_position_ids");
    require(static_cast<std::int64_t>(pixel_xy_.size()) == t->shape[0] * image_slots_ * 2,
            "{}: image_position_ids does not fit pixel_values", inputs_.path());
  }
  if (const StoredTensor* t = inputs_.find("input_features")) {
    require(t->shape.size() == 3 && t->shape[2] == config_.audio.frame_width,
            "{}: input_features has shape [{}], expected [clips, frames, {}]", inputs_.path(),
            fmt::join(t->shape, ", "), config_.audio.frame_width);
    clip_slots_ = t->shape[1];
    features_ = inputs_.read_all<float>("input_features");
    feature_mask_ = inputs_.read_all<std::int64_t>("input_features_mask");
    require(static_cast<std::int64_t>(feature_mask_.size()) == t->shape[0] * clip_slots_,
            "{}: input_features_mask does not fit input_features", inputs_.path());
  }
}

namespace {

/// Appends row `row` of `values` [.., width] to the features.
void append_feature(Features& features, const std::vector<float>& values, std::int64_t row,
                    std::int64_t width, std::int32_t token) {
  const auto* begin = reinterpret_cast<const std::byte*>(values.data() + row * width);
  features.values.insert(features.values.end(), begin,
                         begin + static_cast<std::size_t>(width) * sizeof(float));
  features.token.push_back(token);
  ++features.count;
}

}  // namespace

void ParityCase::add_patches(std::int64_t image, std::vector<std::int32_t> tokens, Batch& batch) const {
  std::size_t used = 0;
  for (std::int64_t slot = image * image_slots_; slot < (image + 1) * image_slots_; ++slot) {
    const std::int64_t x = pixel_xy_[static_cast<std::size_t>(2 * slot)],
                       y = pixel_xy_[static_cast<std::size_t>(2 * slot + 1)];
    if (x < 0 || y < 0) continue;  // padding
    require(used < tokens.size(), "{}: image {} has more patches than its {} placeholders", inputs_.path(),
            image, tokens.size());
    append_feature(batch.patches, pixels_, slot, config_.vision.patch_width(), tokens[used++]);
    batch.patch_xy.push_back(static_cast<std::int32_t>(x));
    batch.patch_xy.push_back(static_cast<std::int32_t>(y));
  }
  require(used == tokens.size(), "{}: image {} has {} patches for {} placeholders", inputs_.path(), image,
          used, tokens.size());
}

void ParityCase::add_frames(std::int64_t clip, std::vector<std::int32_t> tokens, Batch& batch) const {
  std::size_t used = 0;
  for (std::int64_t slot = clip * clip_slots_; slot < (clip + 1) * clip_slots_; ++slot) {
    if (!feature_mask_[static_cast<std::size_t>(slot)]) continue;
    require(used < tokens.size(), "{}: clip {} has more frames than its {} placeholders", inputs_.path(),
            clip, tokens.size());
    append_feature(batch.frames, features_, slot, config_.audio.frame_width, tokens[used++]);
  }
  require(used == tokens.size(), "{}: clip {} has {} frames for {} placeholders", inputs_.path(), clip, used,
          tokens.size());
}

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
  std::int64_t image = 0, clip = 0;  // images and clips are in order of the case's rows, wanted or not
  for (std::int64_t row = 0; row < rows_; ++row) {
    const bool wanted = std::find(rows.begin(), rows.end(), row) != rows.end();
    const auto first = static_cast<std::int32_t>(out.tokens());
    if (wanted) add_row(row, out, document, vision);
    for (std::int64_t t = 0; t < row_tokens_;) {  // each run of one soft type is one image or clip
      const std::int64_t type = types_[static_cast<std::size_t>(row * row_tokens_ + t)];
      std::int64_t end = t + 1;
      while (end < row_tokens_ && types_[static_cast<std::size_t>(row * row_tokens_ + end)] == type) ++end;
      std::vector<std::int32_t> tokens;
      for (std::int64_t i = t; i < end; ++i) tokens.push_back(first + static_cast<std::int32_t>(i));
      if (wanted && type == 1) add_patches(image, tokens, out);
      if (wanted && type == 3) add_frames(clip, tokens, out);
      image += type == 1;
      clip += type == 3;
      t = end;
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
