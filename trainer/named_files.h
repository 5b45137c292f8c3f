// Everything that a configuration names, opened as a run would open it, without a run: what would end a job
// that waited hours for its turn is known before it is queued.
#pragma once
#include <string>
#include <vector>

#include "trainer/run_config.h"

namespace lapidary {

/// A line for each, such as "data.train: 582 documents, 103,553 tokens": model.config, model.weights (names,
/// shapes and types of a Hugging Face folder's tensors, of a checkpoint the manifest), checkpoint.resume
/// where it is a path, and the data (sizes and token ids, not what the shards hold). Error: all that is not
/// there, cannot be used or does not fit the model, a line each.
std::vector<std::string> open_named_files(const RunConfig& config);

}  // namespace lapidary
