#include "model/device_batch.h"

#include <cstring>

#include "kernels/check.h"

namespace lapidary {

namespace {

std::size_t aligned(std::size_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

void check_layout(const Features& features, bool present, DType type, std::int64_t width, const char* kind,
                  const std::string& where) {
  require(present || features.count == 0, "{}: {} {}, but the model has no embedder for them", where,
          features.count, kind);
  require(features.count == 0 || (features.width == width && features.dtype == type),
          "{}: {} of {} {}, the model expects {} {}", where, kind, features.width, name_of(features.dtype),
          width, name_of(type));
}

}  // namespace

/// One array of a batch: [rows, columns], with room planned for `capacity` rows.
struct BatchUploader::Part {
  Tensor* to;
  const void* from;
  DType type;
  std::int64_t rows, columns, capacity;

  std::size_t bytes(std::int64_t count) const {
    return aligned(static_cast<std::size_t>(count * columns) * size_of(type));
  }
};

BatchUploader::BatchUploader(const ModelConfig& config, std::int64_t capacity, const FeatureTypes& types)
    : config_(&config),
      capacity_(capacity),
      types_(types),
      full_frequencies_(config.rope_frequencies(true)),
      sliding_frequencies_(config.rope_frequencies(false)) {}

BatchUploader::~BatchUploader() {
  for (Buffer& buffer : buffers_) buffer.release();
}

void BatchUploader::Buffer::release() noexcept {
  if (data) backend->release_host(data);
  data = nullptr;
}

void BatchUploader::Buffer::reserve(Backend& on, std::size_t least) {
  if (least <= bytes) return;
  release();
  bytes = 0;
  data = static_cast<std::byte*>(on.allocate_host(least));
  backend = &on;
  bytes = least;
}

void BatchUploader::check(const Batch& batch, const std::string& where) const {
  check_batch(batch, static_cast<std::int32_t>(config_->vocabulary), config_->soft_ids(), where);
  require(batch.tokens() <= capacity_, "{}: {} tokens, planned for {}", where, batch.tokens(), capacity_);
  if (config_->has_vision) {
    for (std::size_t i = 0; i < batch.patch_xy.size(); ++i) {
      require(batch.patch_xy[i] >= 0 && batch.patch_xy[i] < config_->vision.positions,
              "{}: image patch {} has grid coordinate {}, expected 0 to {}", where, i / 2, batch.patch_xy[i],
              config_->vision.positions - 1);
    }
  }
  check_layout(batch.patches, config_->has_vision, types_.patches, config_->vision.patch_width(),
               "image patches", where);
  check_layout(batch.frames, config_->has_audio, types_.frames, config_->audio.frame_width, "audio frames",
               where);
}

std::vector<BatchUploader::Part> BatchUploader::parts_of(const Batch& batch, DeviceBatch& out) const {
  std::vector<Part> parts;
  const auto add = [&](Tensor& to, const std::vector<std::int32_t>& values, std::int64_t columns) {
    const auto count = static_cast<std::int64_t>(values.size());
    parts.push_back({&to, values.data(), DType::i32, count / columns, columns, capacity_});
  };
  const auto add_features = [&](Tensor& to, const Features& x, DType type, std::int64_t width) {
    parts.push_back({&to, x.values.data(), type, x.count, width, capacity_});
  };
  const auto add_table = [&](Tensor& to, const std::vector<float>& values) {
    const auto count = static_cast<std::int64_t>(values.size());
    parts.push_back({&to, values.data(), DType::f32, count, 1, count});
  };
  add(out.ids, batch.ids, 1);  // the first: operator() marks its soft tokens
  add(out.targets, batch.targets, 1);
  add(out.positions, batch.positions, 1);
  add(out.full_lo, batch.full.lo, 1);
  add(out.full_hi, batch.full.hi, 1);
  add(out.sliding_lo, batch.sliding.lo, 1);
  add(out.sliding_hi, batch.sliding.hi, 1);
  add_table(out.full_frequencies, full_frequencies_);
  add_table(out.sliding_frequencies, sliding_frequencies_);
  if (config_->has_vision) {
    add_features(out.patches, batch.patches, types_.patches, config_->vision.patch_width());
    add(out.patch_xy, batch.patch_xy, 2);
    add(out.patch_token, batch.patches.token, 1);
  }
  if (config_->has_audio) {
    add_features(out.frames, batch.frames, types_.frames, config_->audio.frame_width);
    add(out.frame_token, batch.frames.token, 1);
  }
  return parts;
}

DeviceBatch BatchUploader::operator()(Stream& stream, Arena& arena, const Batch& batch,
                                      const std::string& where) {
  check(batch, where);
  DeviceBatch out;
  out.tokens = batch.tokens();
  const std::vector<Part> parts = parts_of(batch, out);
  std::size_t planned = 0, used = 0;
  for (const Part& part : parts) planned += part.bytes(part.capacity);
  auto* device = arena.allocate_bytes(planned).as<std::uint8_t>();
  for (const Part& part : parts) {
    Tensor to(device + used, part.type, {part.rows, part.columns});
    *part.to = part.columns == 1 ? to.reshape({part.rows}) : to;
    used += part.bytes(part.rows);
  }
  if (stream.dry()) return out;

  Backend& backend = stream.backend();
  Buffer& buffer = buffers_[turn_];
  turn_ = (turn_ + 1) % buffers_.size();
  backend.synchronize(buffer.copied);
  buffer.reserve(backend, used);
  for (const Part& part : parts) {
    const auto offset = static_cast<std::uint8_t*>(part.to->data()) - device;
    if (part.to->bytes() > 0) std::memcpy(buffer.data + offset, part.from, part.to->bytes());
  }
  auto* ids = reinterpret_cast<std::int32_t*>(buffer.data);
  for (const Features* features : {&batch.patches, &batch.frames}) {
    for (const std::int32_t at : features->token) ids[at] = -1;
  }
  backend.copy_to_device(stream, device, buffer.data, used);
  buffer.copied = backend.record(stream);
  return out;
}

}  // namespace lapidary
