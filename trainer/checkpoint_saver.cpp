#include "trainer/checkpoint_saver.h"

#include <utility>

#include "kernels/check.h"
#include "kernels/stopwatch.h"

namespace lapidary {

namespace {

/// The writing side of the queue.
class StagedValues : public ShardValues {
 public:
  explicit StagedValues(StagingQueue& queue) : queue_(&queue) {}
  const void* next(const ShardPiece&) override { return queue_->pop(); }
  void abandon() override { queue_->stop(); }

 private:
  StagingQueue* queue_;
};

}  // namespace

CheckpointSaver::CheckpointSaver(std::string directory, const CheckpointRetention& retention,
                                 const std::vector<CheckpointTensor>& tensors, Backend& backend,
                                 std::size_t staging_bytes, HostGroup group)
    : directory_(std::move(directory)),
      retention_(retention),
      plan_(plan_shard(group.rank(), tensors)),
      backend_(&backend),
      copies_(backend.make_stream("checkpoint")),
      queue_(backend, plan_, staging_bytes),
      group_(std::move(group)) {}

CheckpointSaver::~CheckpointSaver() {
  if (thread_.joinable()) thread_.join();
}

Event CheckpointSaver::start(std::int64_t step, std::string state_json, std::optional<double> metric,
                             const Stream& compute, const CheckpointHook& hook) {
  require(!thread_.joinable(), "step {}: the save of step {} has not ended", step, outcome_.step);
  const auto begun = Clock::now();
  queue_.restart();
  ended_ = false;
  outcome_ = {};
  outcome_.step = step;
  thread_ = std::thread([this, state = std::move(state_json), metric, hook, begun] {
    write(state, {metric, hook});
    outcome_.seconds = seconds_since(begun);
    ended_ = true;
  });
  Event copied;
  try {
    backend_->wait(*copies_, backend_->record(compute));
    bool wanted = true;
    plan_.for_each_piece([&](const ShardPiece& piece) {
      if (!wanted) return;
      const void* from = ShardValues().next(piece);
      const auto bytes = static_cast<std::size_t>(piece.bytes);
      wanted = queue_.push(bytes, [&](void* to) {
        backend_->copy_to_host(*copies_, to, from, bytes);
        return backend_->record(*copies_);
      });
    });
    copied = backend_->record(*copies_);
    queue_.end();
  } catch (...) {
    queue_.stop();
    throw;
  }
  stall_seconds_ = seconds_since(begun);
  return copied;
}

void CheckpointSaver::write(const std::string& state_json, const CheckpointWriteOptions& options) {
  try {
    StagedValues values(queue_);
    outcome_.path =
        write_checkpoint(directory_, outcome_.step, {&plan_, 1}, values, state_json, group_, options);
    if (group_.rank() == 0) outcome_.problems = delete_old_checkpoints(directory_, retention_, options.hook);
  } catch (const std::exception& e) {
    outcome_.error = e.what();
  }
}

std::optional<SaveOutcome> CheckpointSaver::take() {
  if (!ended_) return std::nullopt;
  return wait();
}

std::optional<SaveOutcome> CheckpointSaver::wait() {
  if (!thread_.joinable()) return std::nullopt;
  thread_.join();
  ended_ = false;
  outcome_.stall_seconds = stall_seconds_;
  return std::move(outcome_);
}

}  // namespace lapidary
