// A run's checkpoints: what of its state is saved, and where it goes on after a resume.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "data/loader.h"
#include "parallel/host_group.h"
#include "parallel/mesh.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_saver.h"
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

struct ResumedRun {
  RunProgress progress;
  bool own = false;    ///< from a checkpoint in the run's own folder
  std::string config;  ///< what the run was told when it was saved, as config_to_yaml writes it
};

class RunCheckpoints {
 public:
  /// All references must outlive this object.
  RunCheckpoints(std::string directory, const RunConfig::Checkpoint& options, Instance& instance,
                 const Mesh& mesh, HostGroup& world);

  /// Creates the folder and sweeps what a killed run left there. Only for who holds the run's lock: the
  /// hidden folders of a run that is alive are its saves under way. Collective, before anything else that
  /// writes.
  void prepare_folder();

  /// Takes the host memory that saves are copied into: what the state takes, at most checkpoint.staging and
  /// this rank's share of half the host's free memory. state: JSON objects of what every save stores
  /// unchanged (config: YAML text; model: config.json). Collective, once, before the first save.
  void prepare_saving(int ranks_per_node, const std::string& config_yaml, const nlohmann::json& model);
  std::size_t staging_bytes() const { return saver_->staging_bytes(); }
  /// Begins to save; see CheckpointSaver. The next update waits for the copy by itself.
  void start_save(const RunProgress& progress, std::optional<double> validation_loss);
  std::optional<SaveOutcome> take_save() { return saver_->take(); }
  std::optional<SaveOutcome> wait_for_save() { return saver_->wait(); }
  bool ranks_lost() const { return !saver_->usable(); }

  /// Restores weights, masters and moments (weights-only: without moments) and returns where the run stands;
  /// nothing where `resume` is none, or where there is no checkpoint and none was named. Damaged ones that
  /// were passed over are set aside. A beginning before a checkpoint that the directory already holds is an
  /// Error: two histories would be mixed. Messages for the user go to `notes` on rank 0. Collective.
  std::optional<ResumedRun> resume(const ConfigPath& resume, std::ostream& notes);

  /// Weights (and masters, where the instance has an optimizer) from a checkpoint or the newest sound one of
  /// a folder; damaged ones stay where they are, with a note. Returns its step. Collective.
  std::int64_t load_weights_only(const std::string& path, std::ostream& notes);

 private:
  enum class What { all, weights };
  struct Part {
    std::string name;  ///< as CheckpointTensor::part
    Tensor tensor;     ///< beside the shard's weight, element for element
  };
  /// What this rank keeps of a shard (units, then the table).
  std::vector<Part> parts_of(std::size_t shard, What what) const;
  std::vector<CheckpointTensor> tensors(What what, bool saving) const;
  CheckpointReadOptions read_options() const;
  void refuse_newer_than(std::int64_t step);
  /// What rank 0 finds, on all ranks: others may see files later. Collective.
  std::string agree_on(const std::function<std::string()>& find);
  void set_aside(const Checkpoint& found, std::ostream& notes);

  std::string directory_;
  CheckpointRetention retention_;
  std::size_t staging_;
  bool fallback_;
  Instance* instance_;
  const Mesh* mesh_;
  HostGroup* world_;
  std::string config_yaml_;
  nlohmann::json model_;
  std::optional<CheckpointSaver> saver_;
};

}  // namespace lapidary
