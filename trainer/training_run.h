// A run put together from its configuration: device, mesh, instance, data, checkpoints. train() and
// evaluate_run() only say what happens in which order.
#pragma once
#include <iosfwd>
#include <memory>
#include <optional>

#include "data/loader.h"
#include "trainer/evaluate.h"
#include "trainer/instance.h"
#include "trainer/plan.h"
#include "trainer/run_checkpoints.h"
#include "trainer/run_setup.h"
#include "trainer/train.h"

namespace lapidary {

/// The token ids that data must have been built with for this model.
TokenLayout token_layout(const ModelConfig& config);

/// How a rank reads these sources. one_pass: once, in their order, as a validation does.
LoaderOptions loader_options(const RunConfig& config, const ModelConfig& model,
                             const std::vector<ConfiguredSource>& sources, bool one_pass, int rank = 0,
                             int ranks = 1);

class TrainingRun {
 public:
  /// Refuses what cannot work (configuration, memory, data) before anything is computed.
  TrainingRun(const RunConfig& config, HostGroup& world, const NodePlace& place, bool training);

  const RunConfig& config() const { return *config_; }
  HostGroup& world() { return *world_; }
  const RunSetup& setup() const { return setup_; }
  const MemoryPlan& plan() const { return plan_; }
  Backend& backend() { return *backend_; }
  Mesh& mesh() { return mesh_; }
  Instance& instance() { return *instance_; }
  Loader& data() { return *data_; }
  RunCheckpoints& checkpoints() { return *checkpoints_; }
  bool has_validation() const { return !config_->data.validation.empty(); }
  std::string directory() const { return config_->run.directory.resolve(); }

  /// Initialised or loaded as model.weights says. Messages for the user go to `notes` on rank 0.
  void start_weights(std::ostream& notes);
  /// Before the first save; config_yaml is stored with each. Collective.
  void prepare_saving(const std::string& config_yaml);
  EvaluationResult validate();

 private:
  std::unique_ptr<Loader> open_data(const std::vector<ConfiguredSource>& sources, bool one_pass) const;

  const RunConfig* config_;
  HostGroup* world_;
  int ranks_per_node_;
  Device device_;
  RunSetup setup_;
  MemoryPlan plan_;
  Backend* backend_;
  Mesh mesh_;
  std::unique_ptr<Instance> instance_;
  std::unique_ptr<Loader> data_;
  std::unique_ptr<RunCheckpoints> checkpoints_;
};

}  // namespace lapidary
