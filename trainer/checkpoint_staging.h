// A piece of host memory through which a training state leaves the device while training goes on: one thread
// fills it with copies, another empties it to the disk.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>

#include "kernels/device.h"
#include "trainer/checkpoint_files.h"

namespace lapidary {

/// A queue of pieces in a ring of fixed size. Whoever fills waits for room; whoever empties waits for pieces,
/// and for the first of them until all are there or the ring is full: while training stands still for the
/// copy, nothing else shall take the memory's time.
class StagingQueue {
 public:
  /// Takes the memory now (pinned where the device copies asynchronously): at least one piece's, at most what
  /// all pieces of the plan take.
  StagingQueue(Backend& backend, const ShardPlan& plan, std::size_t most_bytes);
  ~StagingQueue();
  StagingQueue(const StagingQueue&) = delete;
  StagingQueue& operator=(const StagingQueue&) = delete;

  std::size_t bytes() const { return bytes_; }

  void restart();  ///< between two saves: empty, and open again
  /// Waits for room, calls `fill` with it, and queues it; the event that `fill` returns says when it is
  /// filled. False, without a call: stopped.
  bool push(std::size_t bytes, const std::function<Event(void* to)>& fill);
  /// All pieces are pushed.
  void end();
  /// The oldest piece, filled; good until the next call. Error: stopped.
  const void* pop();
  /// Nobody waits any longer, on either side.
  void stop();

 private:
  struct Piece {
    std::size_t begin, end;
    Event filled;
  };
  bool find_room(std::size_t bytes, std::size_t& begin) const;

  Backend* backend_;
  std::size_t bytes_ = 0;
  std::byte* memory_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> pieces_;  ///< the first may be in use by whoever empties
  bool first_in_use_ = false;
  bool may_empty_ = false;  ///< all are pushed, or the ring was full
  bool stopped_ = false;
};

}  // namespace lapidary
