// Saves a training state while training goes on: start() copies it aside, a thread writes, publishes and
// deletes what retention no longer keeps.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/device.h"
#include "parallel/host_group.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_staging.h"

namespace lapidary {

/// What became of a save.
struct SaveOutcome {
  std::int64_t step = 0;
  std::string path;                   ///< published; empty: it failed
  std::string error;                  ///< why; the same text on every rank unless one was lost
  std::vector<std::string> problems;  ///< old checkpoints that could not be deleted (rank 0)
  double stall_seconds = 0;           ///< how long start() took
  double seconds = 0;                 ///< from start() to publication
};

class CheckpointSaver {
 public:
  /// The tensors' slices are memory of the backend, where the state is found at every save. staging_bytes:
  /// most host memory to copy aside into. `group` belongs to the saver: its thread uses it.
  CheckpointSaver(std::string directory, const CheckpointRetention& retention,
                  const std::vector<CheckpointTensor>& tensors, Backend& backend, std::size_t staging_bytes,
                  HostGroup group);
  /// Waits for the save under way.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  std::size_t staging_bytes() const { return queue_.bytes(); }
  bool usable() const { return group_.usable(); }  ///< no rank was lost; while no save is under way

  /// Begins to save what `compute` has computed so far. Returns when all of it is on its way to host memory;
  /// where that is too small, when what is too much is on the disk. The state may change after the event.
  /// Every rank calls it for the same step, and not before wait() or take() has given back the save before.
  Event start(std::int64_t step, std::string state_json, std::optional<double> metric, const Stream& compute,
              const CheckpointHook& hook = {});
  /// A save that has ended and was not yet given back; does not wait.
  std::optional<SaveOutcome> take();
  /// The same, but waits for the one under way.
  std::optional<SaveOutcome> wait();

 private:
  void write(const std::string& state_json, const CheckpointWriteOptions& options);

  std::string directory_;
  CheckpointRetention retention_;
  ShardPlan plan_;
  Backend* backend_;
  std::unique_ptr<Stream> copies_;  ///< a stream of their own
  StagingQueue queue_;
  HostGroup group_;
  std::thread thread_;
  std::atomic<bool> ended_{false};
  SaveOutcome outcome_;  ///< the thread's while it runs
  double stall_seconds_ = 0;
};

}  // namespace lapidary
