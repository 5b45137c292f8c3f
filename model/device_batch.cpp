#include "model/device_batch.h"

#include "kernels/check.h"

namespace lapidary {

namespace {

class Uploader {
 public:
  Uploader(const Stream& stream, Arena& arena, std::int64_t capacity)
      : stream_(stream), arena_(arena), capacity_(capacity) {}

  Tensor operator()(const std::vector<std::int32_t>& values, std::int64_t columns) const {
    return upload(values.data(), DType::i32, static_cast<std::int64_t>(values.size()) / columns, columns);
  }
  Tensor operator()(const Features& features, DType type, std::int64_t width) const {
    return upload(features.values.data(), type, features.count, width);
  }

 private:
  Tensor upload(const void* values, DType type, std::int64_t rows, std::int64_t columns) const {
    Tensor out = arena_.allocate(type, {capacity_, columns}).row_range(0, rows);
    if (columns == 1) out = out.reshape({rows});
    if (out.bytes() > 0 && !stream_.dry())
      stream_.backend().copy_to_device(stream_, out.data(), values, out.bytes());
    return out;
  }
  const Stream& stream_;
  Arena& arena_;
  std::int64_t capacity_;
};

void check_layout(const Features& features, bool present, DType type, std::int64_t width, const char* kind,
                  const std::string& where) {
  require(present || features.count == 0, "{}: {} {}, but the model has no embedder for them", where,
          features.count, kind);
  require(features.count == 0 || (features.width == width && features.dtype == type),
          "{}: {} of {} {}, the model expects {} {}", where, kind, features.width, name_of(features.dtype),
          width, name_of(type));
}

}  // namespace

DeviceBatch upload_batch(const Stream& stream, Arena& arena, const Batch& batch, const ModelConfig& config,
                         std::int64_t capacity, const FeatureTypes& types, const std::string& where) {
  check_batch(batch, static_cast<std::int32_t>(config.vocabulary), config.soft_ids(), where);
  require(batch.tokens() <= capacity, "{}: {} tokens, planned for {}", where, batch.tokens(), capacity);
  const Uploader upload(stream, arena, capacity);
  DeviceBatch out;
  out.tokens = batch.tokens();
  std::vector<std::int32_t> ids = batch.ids;
  for (const Features* f : {&batch.patches, &batch.frames}) {
    for (const std::int32_t at : f->token) ids[static_cast<std::size_t>(at)] = -1;
  }
  out.ids = upload(ids, 1);
  out.targets = upload(batch.targets, 1);
  out.positions = upload(batch.positions, 1);
  out.full_lo = upload(batch.full.lo, 1);
  out.full_hi = upload(batch.full.hi, 1);
  out.sliding_lo = upload(batch.sliding.lo, 1);
  out.sliding_hi = upload(batch.sliding.hi, 1);
  if (config.has_vision) {
    for (std::size_t i = 0; i < batch.patch_xy.size(); ++i) {
      require(batch.patch_xy[i] >= 0 && batch.patch_xy[i] < config.vision.positions,
              "{}: image patch {} has grid coordinate {}, expected 0 to {}", where, i / 2, batch.patch_xy[i],
              config.vision.positions - 1);
    }
  }
  check_layout(batch.patches, config.has_vision, types.patches, config.vision.patch_width(), "image patches",
               where);
  check_layout(batch.frames, config.has_audio, types.frames, config.audio.frame_width, "audio frames", where);
  if (config.has_vision) {
    out.patches = upload(batch.patches, types.patches, config.vision.patch_width());
    out.patch_xy = upload(batch.patch_xy, 2);
    out.patch_token = upload(batch.patches.token, 1);
  }
  if (config.has_audio) {
    out.frames = upload(batch.frames, types.frames, config.audio.frame_width);
    out.frame_token = upload(batch.frames.token, 1);
  }
  // `ids` is local: its copy must have left before it goes.
  if (!stream.dry()) stream.backend().synchronize(stream);
  return out;
}

}  // namespace lapidary
