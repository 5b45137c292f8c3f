// A micro-batch on the device: the host's Batch, uploaded.
#pragma once
#include <array>
#include <vector>

#include "kernels/arena.h"
#include "kernels/batch.h"
#include "kernels/device.h"
#include "model/config.h"

namespace lapidary {

struct DeviceBatch {
  std::int64_t tokens = 0;
  Tensor ids;        ///< i32 [N], -1 at soft tokens: they take no row of the table
  Tensor targets;    ///< i32 [N]
  Tensor positions;  ///< i32 [N]
  Tensor full_lo, full_hi, sliding_lo, sliding_hi;  ///< i32 [N]
  Tensor patches;                                   ///< u8 or f32 [P, patch width]
  Tensor patch_xy;                                  ///< i32 [P, 2]
  Tensor patch_token;                               ///< i32 [P]
  Tensor frames;                                    ///< i16 or f32 [A, frame width]
  Tensor frame_token;                               ///< i32 [A]
  Tensor full_frequencies, sliding_frequencies;     ///< f32 [pairs] of the rotary tables
};

/// Bytes of one value of stored features that room is planned for: raw pixels and samples, or floats for
/// parity.
struct FeatureTypes {
  DType patches = DType::u8, frames = DType::i16;
};

/// Uploads micro-batches. Each goes into pinned host memory and from there in one copy that the host does not
/// wait for. Two buffers take turns: the host writes one batch while another is on its way, and waits only
/// where it is two uploads ahead of the device. Buffers grow with the largest batch so far.
class BatchUploader {
 public:
  /// Room is planned for `capacity` tokens, all of which may be patches or frames.
  BatchUploader(const ModelConfig& config, std::int64_t capacity, const FeatureTypes& types);
  ~BatchUploader();
  BatchUploader(const BatchUploader&) = delete;
  BatchUploader& operator=(const BatchUploader&) = delete;

  /// Checks the batch against the model (`where` starts messages) and queues its upload into the arena. The
  /// host's arrays are not needed afterwards.
  DeviceBatch operator()(Stream& stream, Arena& arena, const Batch& batch, const std::string& where);

 private:
  struct Part;
  struct Buffer {
    Backend* backend = nullptr;
    std::byte* data = nullptr;
    std::size_t bytes = 0;
    Event copied;  ///< its last upload has left it
    void reserve(Backend& on, std::size_t least);
    void release() noexcept;
  };
  void check(const Batch& batch, const std::string& where) const;
  std::vector<Part> parts_of(const Batch& batch, DeviceBatch& out) const;

  const ModelConfig* config_;
  std::int64_t capacity_;
  FeatureTypes types_;
  std::vector<float> full_frequencies_, sliding_frequencies_;
  std::array<Buffer, 2> buffers_;
  std::size_t turn_ = 0;
};

}  // namespace lapidary
