// The HDF5 files of a checkpoint: a rank's shard, and the index that shows every tensor whole.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/file.h"
#include "kernels/hdf5_file.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_manifest.h"

namespace lapidary {

std::string shard_file_name(int rank);  ///< "shard-00003.h5"
inline constexpr const char* kIndexFileName = "index.h5";
/// Dataset of the index with the manifest's state, as JSON text in bytes.
inline constexpr const char* kStateDataset = "state.json";

/// What a rank's shard looks like: for every tensor with slices one dataset of them end to end, in order.
/// HDF5 lays the file out in memory, without the values, and never touches the disk: it does not survive a
/// full one. Depends on names, types and slices only, so a run plans once and writes often.
struct ShardPlan {
  struct Extent {  ///< the values of one dataset
    std::int64_t offset = 0, element_size = 0;
    std::size_t tensor = 0;  ///< number among those that plan_shard() was given
    std::vector<CheckpointSlice> slices;
  };
  int rank = 0;
  File layout;                                      ///< in memory, sparse
  std::vector<CheckpointManifest::Tensor> tensors;  ///< those it holds; slices point to file number `rank`
  std::vector<Extent> extents;                      ///< by place in the file
  std::int64_t bytes = 0;                           ///< of all values

  /// Calls f for all values in the order of the file, so many at a time.
  void for_each_piece(const std::function<void(const ShardPiece&)>& f) const;
};

/// What files with so many bytes of values take, generously.
double size_of_files(std::int64_t bytes);

/// Error for what no shard can hold, and where the limit on file sizes is too small. rank: number of the
/// shard.
ShardPlan plan_shard(int rank, const std::vector<CheckpointTensor>& tensors);

/// Writes and syncs <folder>/<shard_file_name(plan.rank)>: what HDF5 laid out and the values, written and
/// hashed in one pass.
CheckpointManifest::File write_shard(const std::string& folder, const ShardPlan& plan, ShardValues& values,
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
