// One tensor of a training state from another: what a run with one optimizer layout asks for, from what a run
// with another stored. Every layout has a float32 value behind each weight (the master; a float32 weight; a
// bf16 weight and its remainder; or the bf16 weight alone), and every layout's tensors follow from it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trainer/checkpoint_reader.h"

namespace lapidary {

/// Where a tensor that is asked for comes from.
struct TensorRecipe {
  enum class Form : std::uint8_t {
    stored,     ///< the bytes as they are
    value,      ///< the float32 value, rounded to nearest even where bf16 is asked for
    upper,      ///< bf16: the upper half of the split value (kernels/adamw_update.h)
    remainder,  ///< i16: its rest
    moment,     ///< of AdamW, in f32, bf16 or one byte (kernels/moment_codes.h), rounded to nearest
  };
  Form form = Form::stored;
  DType dtype = DType::f32;                               ///< of the result
  const CheckpointManifest::Tensor* from = nullptr;       ///< f32 or bf16, or anything for `stored`
  const CheckpointManifest::Tensor* remainder = nullptr;  ///< i16, together with a bf16 `from`
  bool second_moment = false;                             ///< of Form::moment: exp_avg_sq

  /// Elements [begin, begin + count) of the result.
  void make(CheckpointReader& reader, std::int64_t begin, std::int64_t count, void* to) const;
};

/// The float32 value behind a weight; nothing where the checkpoint has no such weight, or not in f32 or bf16.
std::optional<TensorRecipe> value_recipe(const CheckpointReader& reader, const std::string& name);

/// How to make `wanted` when all of `parts` are asked for under its name. Nothing: it cannot be made. The
/// same layout and types are always stored bytes.
std::optional<TensorRecipe> recipe_for(const CheckpointReader& reader, const CheckpointTensor& wanted,
                                       const std::vector<std::string>& parts);

}  // namespace lapidary
