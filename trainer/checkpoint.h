// Checkpoints: written by every rank for its own part, published by one rename, verified by checksums before
// anything is believed, read by any number of ranks. docs/checkpoint-format.md describes the files.
#pragma once
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "parallel/host_group.h"
#include "trainer/checkpoint_manifest.h"

namespace lapidary {

/// A run of a tensor's elements (row-major, counted in the whole tensor) and where they lie on the host.
struct CheckpointSlice {
  std::int64_t begin = 0, count = 0;
  void* data = nullptr;  ///< count elements on the host; written to when reading a checkpoint
};

/// What one rank holds of one tensor of the training state.
struct CheckpointTensor {
  std::string name;  ///< the parameter's, as Hugging Face stores it
  std::string part;  ///< "weight", or what belongs to it: "master", "exp_avg", "exp_avg_sq", ...
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;      ///< of the whole tensor: 1 to 8 dimensions, none of them 0
  std::vector<CheckpointSlice> slices;  ///< any order, no element twice; none: this rank holds nothing of it
};

/// Called at named points of the protocol (listed in docs/checkpoint-format.md) with nothing to do: tests
/// kill the process or throw there.
using CheckpointHook = std::function<void(std::string_view point)>;

/// Consecutive values of a slice.
struct ShardPiece {
  std::size_t tensor = 0;  ///< number among the CheckpointTensors
  const CheckpointSlice* slice = nullptr;
  std::int64_t first = 0, count = 0, bytes = 0;  ///< elements from the slice's begin; their number and size
};

/// Where the values come from while a shard is written: from the slices' memory, or, by a class of its own,
/// from a file or another thread.
class ShardValues {
 public:
  virtual ~ShardValues() = default;
  /// The piece's values; good until the next call. Pieces come in the order of ShardPlan::for_each_piece().
  virtual const void* next(const ShardPiece& piece) {
    return static_cast<const char*>(piece.slice->data) + piece.first * (piece.bytes / piece.count);
  }
  /// The shard will not be written to its end, so nobody asks for more.
  virtual void abandon() {}
};

struct CheckpointWriteOptions {
  std::optional<double> metric;  ///< for CheckpointRetention::keep_best; lower is better
  CheckpointHook hook;
};

/// Writes and publishes <directory>/step-<8 digits> and returns its path. Collective; every rank brings its
/// slices, together every element of every tensor exactly once. `state_json`: a JSON object with everything
/// else the next step depends on; rank 0's is stored. The host memory must not change meanwhile. If anything
/// fails on any rank, every rank throws: nothing is published, what was written is removed, earlier
/// checkpoints are as they were. (One exception: where the sync of the rename itself fails, the checkpoint is
/// there and whole, but may not survive a power cut.) Where a rank did not answer, the code is
/// ExitCode::peer_lost and the group is unusable; otherwise training may go on and save again. A step that is
/// already there is never overwritten: Error.
std::string write_checkpoint(const std::string& directory, std::int64_t step,
                             const std::vector<CheckpointTensor>& tensors, const std::string& state_json,
                             HostGroup& group, const CheckpointWriteOptions& options = {});

struct ShardPlan;
/// The same with plans made before (checkpoint_files.h) and values from elsewhere. A rank may bring several
/// shards; those of rank 0 have the first numbers, and so on.
std::string write_checkpoint(const std::string& directory, std::int64_t step,
                             std::span<const ShardPlan> plans, ShardValues& values,
                             const std::string& state_json, HostGroup& group,
                             const CheckpointWriteOptions& options = {});

/// A checkpoint whose files were all found unharmed.
struct Checkpoint {
  struct Damaged {
    std::int64_t step;
    std::string message;
  };
  std::string path;
  CheckpointManifest manifest;
  std::vector<Damaged> passed_over;  ///< newer ones, newest first
};

/// Collective. The newest checkpoint of a directory ("step-<digits>" only), or nothing where there is none.
/// Rank 0 chooses and tells the others, which do not list directories (network file systems show them late);
/// the ranks share the work of comparing checksums. A damaged one is an Error that names the file, unless
/// `fall_back`: then it is passed over; Error if none is left. A device that cannot read is always an Error,
/// with ExitCode::peer_lost: it says nothing about the file.
std::optional<Checkpoint> find_newest_checkpoint(const std::string& directory, bool fall_back,
                                                 HostGroup& group);

/// The same for one checkpoint, given by its own path.
Checkpoint open_checkpoint(const std::string& path, HostGroup& group);

struct CheckpointReadOptions {
  /// Where weights, masters, remainders and moments of another type or optimizer layout are stored, derive
  /// what is asked for (checkpoint_convert.h); otherwise every difference is an Error.
  bool convert = false;
  /// Takes values to where a slice says; may return before they are there, not before `host` may change.
  /// Absent: slices are host memory. Present: they are whatever this understands, such as a GPU's memory.
  std::function<void(void* to, const void* host, std::size_t bytes)> store;
};

/// Fills the slices of `tensors`, however they are cut. Collective, for the sake of its errors only: each
/// rank reads the ranges that it needs, a few MiB at a time. All ranks together must ask for every tensor of
/// each part that they ask for at all (to read weights only, ask for no other part). Missing, superfluous,
/// misshapen and mistyped tensors are an Error that lists them.
void read_checkpoint(const Checkpoint& checkpoint, const std::vector<CheckpointTensor>& tensors,
                     HostGroup& group, const CheckpointReadOptions& options = {});

/// open_checkpoint() and read_checkpoint() in one pass: a file is compared with its checksum while its values
/// are read, so most ranks read every byte once. After an Error the slices hold nothing to use.
Checkpoint restore_checkpoint(const std::string& path, const std::vector<CheckpointTensor>& tensors,
                              HostGroup& group, const CheckpointReadOptions& options = {});

/// The same with find_newest_checkpoint(): where a checkpoint turns out to be damaged, the one before is read
/// over it.
std::optional<Checkpoint> restore_newest_checkpoint(const std::string& directory, bool fall_back,
                                                    const std::vector<CheckpointTensor>& tensors,
                                                    HostGroup& group,
                                                    const CheckpointReadOptions& options = {});

/// A line for each published checkpoint of a directory: size, held-out loss, or why it is damaged. Looks at
/// manifests and sizes only.
void list_checkpoints(const std::string& directory, std::ostream& out);

/// What `lapidary checkpoint inspect` prints: step, origin, files, parts and state; with details also the
/// run's configuration, the model's config.json and every tensor. Reads the manifest only and checks that
/// against its own checksum.
void inspect_checkpoint(const std::string& path, bool details, std::ostream& out);

/// What `lapidary checkpoint verify` prints: one line for each file and finding. Compares sizes and
/// checksums, and then that the HDF5 files say about every tensor what the manifest says. True: all is well.
/// Never throws for damage.
bool verify_checkpoint(const std::string& path, std::ostream& out);

}  // namespace lapidary
