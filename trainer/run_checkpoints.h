// A run's checkpoints: what of its state is saved, and where it goes on after a resume.
#pragma once
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "data/loader.h"
#include "parallel/host_group.h"
#include "parallel/mesh.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/instance.h"
#include "trainer/run_config.h"

namespace lapidary {

/// Everything that the next step depends on besides tensors. Random numbers are drawn from counters (seed,
/// step, index), so that their state is the step and the seed.
struct RunProgress {
  std::int64_t step = 0;    ///< updates done
  std::int64_t tokens = 0;  ///< tokens seen, without padding
  std::int64_t seed = 0;    ///< run.seed
  Position data;            ///< of the next row
};

class RunCheckpoints {
 public:
  /// Sweeps what a killed run left in `directory` (rank 0). All references must outlive this object.
  /// Collective.
  RunCheckpoints(std::string directory, const RunConfig::Checkpoint& options, Instance& instance,
                 const Mesh& mesh, HostGroup& world);

  /// Collective; returns the published path, then deletes what retention no longer keeps. config_yaml is
  /// stored beside the state. A failed save is an Error; the run may go on.
  std::string save(const RunProgress& progress, const std::string& config_yaml,
                   std::optional<double> validation_loss);

  /// Restores weights, masters and moments and returns where the run stands; nothing where `resume` is auto
  /// and there is no checkpoint, or none. Messages for the user go to `notes` on rank 0. Collective.
  std::optional<RunProgress> resume(const ConfigPath& resume, std::ostream& notes);

  /// Weights only, from a checkpoint (a folder of them: the newest), for evaluation.
  std::int64_t load_weights_only(const std::string& path);

 private:
  struct Staged;
  std::vector<CheckpointTensor> tensors(bool saving, bool weights_only, Staged& staged) const;
  void restore(const Checkpoint& checkpoint, bool weights_only);

  std::string directory_;
  CheckpointRetention retention_;
  bool fallback_;
  Instance* instance_;
  const Mesh* mesh_;
  HostGroup* world_;
};

}  // namespace lapidary
