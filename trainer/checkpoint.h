// Checkpoints: written by every rank for its own part, published by one rename, verified by checksums before
// anything is believed, read by any number of ranks. docs/checkpoint-format.md describes the files.
#pragma once
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
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
  void* host = nullptr;  ///< count elements; written to when reading a checkpoint
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

struct CheckpointWriteOptions {
  std::optional<double> metric;  ///< for CheckpointRetention::keep_best; lower is better
  CheckpointHook hook;
};

/// Writes and publishes <directory>/step-<8 digits> and returns its path. Collective; every rank brings its
/// slices, together every element of every tensor exactly once. `state_json`: a JSON object with everything
/// else the next step depends on; rank 0's is stored. The host memory must not change meanwhile. If anything
/// fails on any rank, every rank throws: nothing is published, what was written is removed, earlier
/// checkpoints are as they were. Where a rank did not answer, the code is ExitCode::peer_lost and the group
/// is unusable; otherwise training may go on and save again. A step that is already there is never
/// overwritten: Error.
std::string write_checkpoint(const std::string& directory, std::int64_t step,
                             const std::vector<CheckpointTensor>& tensors, const std::string& state_json,
                             HostGroup& group, const CheckpointWriteOptions& options = {});

/// A checkpoint whose files were all found unharmed.
struct Checkpoint {
  std::string path;
  CheckpointManifest manifest;
  std::vector<std::string> passed_over;  ///< one message for each newer checkpoint that is damaged
};

/// Collective. The newest checkpoint of a directory ("step-<digits>" only), or nothing where there is none.
/// Rank 0 chooses and tells the others, which do not list directories (network file systems show them late);
/// the ranks share the work of comparing checksums. A damaged one is an Error that names the file, unless
/// `fall_back`: then it is passed over; Error if none is left.
std::optional<Checkpoint> find_newest_checkpoint(const std::string& directory, bool fall_back,
                                                 HostGroup& group);

/// The same for one checkpoint, given by its own path.
Checkpoint open_checkpoint(const std::string& path, HostGroup& group);

struct CheckpointReadOptions {
  bool convert =
      false;  ///< f32 is read as bf16 and the reverse where the types differ; otherwise that is an Error
};

/// Fills the slices of `tensors`, however they are cut. Collective, for the sake of its errors only: each
/// rank reads the ranges that it needs. All ranks together must ask for every tensor of each part that they
/// ask for at all (to read weights only, ask for no other part). Missing, superfluous, misshapen and mistyped
/// tensors are an Error that lists them.
void read_checkpoint(const Checkpoint& checkpoint, const std::vector<CheckpointTensor>& tensors,
                     HostGroup& group, const CheckpointReadOptions& options = {});

/// What `lapidary checkpoint inspect` prints: step, origin, files, state, parts and (details) tensors. Reads
/// the manifest only and checks that against its own checksum.
void inspect_checkpoint(const std::string& path, bool details, std::ostream& out);

/// What `lapidary checkpoint verify` prints: one line for each file and finding. Compares sizes and
/// checksums, and then that the HDF5 files say about every tensor what the manifest says. True: all is well.
/// Never throws for damage.
bool verify_checkpoint(const std::string& path, std::ostream& out);

}  // namespace lapidary
