// What users do with checkpoints outside a run: from and to Hugging Face folders, cut anew, averaged,
// compared. Memory stays at a few MiB whatever the model's size.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "parallel/host_group.h"
#include "trainer/checkpoint.h"

namespace lapidary {

/// Writes <directory>/step-00000000 with the weights of a Hugging Face folder (config.json in either form;
/// one safetensors file or several with their index; on-disk or in-memory names). Types stay as they are;
/// F16, which checkpoints do not have, becomes f32. One shard a rank, each rank reads its own byte ranges.
/// Errors as read_model_config() and match_tensors(). Returns the published path. Collective.
std::string import_checkpoint(const std::string& folder, const std::string& directory, HostGroup& group);

/// Types of exported weights. `stored`: the source folder's, or else the checkpoint's.
enum class ExportType : std::uint8_t { stored, bf16, f16, f32 };

struct ExportOptions {
  std::string source;  ///< Hugging Face folder; empty: the one that the checkpoint names, if it exists
  std::int64_t max_file_bytes = 0;  ///< of the tensors in a file; 0: the source's files, or else 5 GB
  ExportType type = ExportType::stored;
};

/// Writes a folder that transformers' from_pretrained loads: weights under their on-disk names, the index,
/// config.json, and the source folder's other files (tokenizer, processor, licence). The folder appears whole
/// or not at all; there must be nothing at `folder` before. The checkpoint at `path` is read once, and
/// compared with its checksums on the way: Error naming the file that is damaged, and nothing appears. Ranks
/// share the checkpoint's files among them. What was decided goes to `notes` on rank 0. Collective.
void export_checkpoint(const std::string& path, const std::string& folder, const ExportOptions& options,
                       HostGroup& group, std::ostream& notes);

/// Writes the checkpoint again under `directory`, cut into `shards` files. weights_only: without masters and
/// moments. Returns the published path.
std::string reshard_checkpoint(const Checkpoint& checkpoint, const std::string& directory, int shards,
                               bool weights_only);

/// Writes the mean of the weights (of the float32 values behind them, summed in double), in the types of the
/// first, as a checkpoint of the newest one's step. All must have the same tensors. Returns the published
/// path.
std::string average_checkpoints(const std::vector<Checkpoint>& checkpoints, const std::string& directory);

/// Compares tensors of two checkpoints, or of a checkpoint and a Hugging Face folder (weights only then), and
/// prints a line for each that differs and a summary. True: the same tensors with the same bits.
bool diff_checkpoints(const std::string& a, const std::string& b, std::ostream& out);

}  // namespace lapidary
