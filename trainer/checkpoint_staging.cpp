#include "trainer/checkpoint_staging.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lapidary {

namespace {

constexpr std::size_t kAlignment = 256;  // of pieces: what copy engines like

std::size_t round_up(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

StagingQueue::StagingQueue(Backend& backend, const ShardPlan& plan, std::size_t most_bytes)
    : backend_(&backend) {
  std::size_t all = 0, largest = kAlignment;
  plan.for_each_piece([&](const ShardPiece& piece) {
    const std::size_t bytes = round_up(static_cast<std::size_t>(piece.bytes));
    all += bytes;
    largest = std::max(largest, bytes);
  });
  bytes_ = std::clamp(most_bytes / kAlignment * kAlignment, largest, std::max(all, largest));
  memory_ = static_cast<std::byte*>(backend.allocate_host(bytes_));
}

StagingQueue::~StagingQueue() {
  backend_->release_host(memory_);
}

void StagingQueue::restart() {
  const std::lock_guard lock(mutex_);
  pieces_.clear();
  first_in_use_ = may_empty_ = stopped_ = false;
}

bool StagingQueue::find_room(std::size_t bytes, std::size_t& begin) const {
  begin = 0;
  if (pieces_.empty()) return true;
  const std::size_t oldest = pieces_.front().begin, newest = pieces_.back().end;
  if (newest > oldest) {  // what is in use is one run: room behind it, or before it
    if (bytes_ - newest < bytes) return oldest >= bytes;
    begin = newest;
    return true;
  }
  begin = newest;
  return oldest - newest >= bytes;
}

bool StagingQueue::push(std::size_t bytes, const std::function<Event(void*)>& fill) {
  const std::size_t taken = round_up(bytes);
  std::size_t begin = 0;
  {
    std::unique_lock lock(mutex_);
    if (!find_room(taken, begin)) {
      may_empty_ = true;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return stopped_ || find_room(taken, begin); });
    if (stopped_) return false;
  }
  Event filled = fill(memory_ + begin);  // only this thread adds, so the room stays free
  const std::lock_guard lock(mutex_);
  pieces_.push_back({begin, begin + taken, std::move(filled)});
  changed_.notify_all();
  return true;
}

void StagingQueue::end() {
  const std::lock_guard lock(mutex_);
  may_empty_ = true;
  changed_.notify_all();
}

const void* StagingQueue::pop() {
  Event filled;
  std::size_t begin = 0;
  {
    std::unique_lock lock(mutex_);
    if (std::exchange(first_in_use_, false)) {
      pieces_.pop_front();
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return stopped_ || (may_empty_ && !pieces_.empty()); });
    require(!stopped_, "the training state was not copied to its end");
    first_in_use_ = true;
    begin = pieces_.front().begin;
    filled = pieces_.front().filled;
  }
  backend_->synchronize(filled);
  return memory_ + begin;
}

void StagingQueue::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

}  // namespace lapidary
