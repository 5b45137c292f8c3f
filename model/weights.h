// Weights in: from scratch, or from a Hugging Face folder, straight into the shards that a rank holds.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "model/config.h"
#include "model/parameter_table.h"
#include "model/safetensors.h"
#include "parallel/sharded_units.h"

namespace lapidary {

/// Specification section 9: normal matrices, ones and zeros, the padding row of the table zero. The numbers
/// depend on the seed and the parameter's place alone, not on the sharding.
void initialize_weights(Stream& stream, const ModelConfig& config, const ParameterTable& table,
                        const std::vector<ParameterShard*>& shards, std::uint64_t seed);

/// The stored tensor of every parameter of the table, found by its on-disk or its in-memory name. Error that
/// lists missing, unknown, misshapen and mistyped (not BF16, F16, F32 or F64) tensors, the first twenty of
/// them.
std::vector<const StoredTensor*> match_tensors(const ParameterTable& table, const Safetensors& files);

/// Reads each slice's elements from the model folder (or file) at `path`. On-disk and in-memory names are
/// accepted. Before anything is read, everything that does not fit is one Error (match_tensors).
void load_weights(Stream& stream, const ParameterTable& table, const std::vector<ParameterShard*>& shards,
                  const std::string& path);

}  // namespace lapidary
