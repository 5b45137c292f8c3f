// The HDF5 files of a checkpoint: a rank's shard, and the index that shows every tensor whole.
#pragma once
#include <string>
#include <vector>

#include "kernels/hdf5_file.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_manifest.h"

namespace lapidary {

std::string shard_file_name(int rank);  ///< "shard-00003.h5"
inline constexpr const char* kIndexFileName = "index.h5";
/// Dataset of the index with the manifest's state, as JSON text in bytes.
inline constexpr const char* kStateDataset = "state.json";

struct WrittenShard {
  CheckpointManifest::File file;
  std::vector<CheckpointManifest::Tensor> tensors;  ///< what is in it; slices point to file number `rank`
};

/// Writes and syncs <folder>/<shard_file_name(rank)>: for every tensor with slices one dataset of them end to
/// end, in order. HDF5 lays the file out in memory, without the values, and never touches the disk: it does
/// not survive a full one. What it laid out and the values are then written and hashed in one pass.
WrittenShard write_shard(const std::string& folder, int rank, const std::vector<CheckpointTensor>& tensors,
                         const CheckpointHook& hook);

/// Writes and syncs <folder>/index.h5 for a manifest whose shards are listed: a virtual dataset for every
/// tensor, the state, and the step as an attribute of the root.
CheckpointManifest::File write_index(const std::string& folder, const CheckpointManifest& manifest,
                                     const CheckpointHook& hook);

/// Elements [begin, begin + count) of an array of this shape as blocks in row-major order, as few as can be:
/// for a matrix the end of a row, whole rows, the beginning of a row.
std::vector<Hdf5Block> blocks_of_range(const std::vector<std::int64_t>& shape, std::int64_t begin,
                                       std::int64_t count);

}  // namespace lapidary
