// How many floating-point operations a training step needs, for the share of peak that is reported (MFU).
// Specification 10.1, for any shape and for the keys that are really visible: matrix products only, 2 FLOP a
// multiply-add, the backward pass twice the forward, no credit for anything computed again, none for padding.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/batch.h"
#include "model/config.h"
#include "trainer/run_config.h"

namespace lapidary {

/// What was computed on; sums over micro-batches, ranks and steps.
struct StepWork {
  std::int64_t tokens = 0;                          ///< without padding
  std::int64_t full_pairs = 0, sliding_pairs = 0;   ///< query and visible key, in one layer of each kind
  std::int64_t image_tokens = 0, audio_tokens = 0;  ///< soft tokens

  StepWork& operator+=(const StepWork& other);
};

StepWork work_of(const Batch& batch, std::int32_t pad_id);

/// FLOP of forward and backward.
double training_flops(const ModelConfig& model, const StepWork& work);

/// Dense matrix-product peak of a device, FLOP a second, from its maker's data sheet; nothing for devices
/// that are not in the list, for CPUs, and for float32. `device` is a Backend's description.
std::optional<double> peak_flops(std::string_view device, Precision precision);

}  // namespace lapidary
