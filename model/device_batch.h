// A micro-batch on the device: the host's Batch, uploaded.
#pragma once
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
};

/// Bytes of one value of stored features that room is planned for: raw pixels and samples, or floats for
/// parity.
struct FeatureTypes {
  DType patches = DType::u8, frames = DType::i16;
};

/// Checks the batch against the model (`where` starts messages) and uploads it, with room for `capacity`
/// tokens, all of which may be patches or frames. The host's arrays must stay until the stream has copied
/// them.
DeviceBatch upload_batch(const Stream& stream, Arena& arena, const Batch& batch, const ModelConfig& config,
                         std::int64_t capacity, const FeatureTypes& types, const std::string& where);

}  // namespace lapidary
