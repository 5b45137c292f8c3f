// The gradients of sharded units: whole while a backward pass fills them, reduce-scattered behind it, summed
// over the micro-batches in each rank's shard.
#pragma once
#include <vector>

#include "kernels/arena.h"
#include "kernels/device.h"
#include "parallel/communicator.h"
#include "parallel/unit_table.h"

namespace lapidary {

/// Two whole-unit buffers take turns: while one is filled the other is reduced. A step's first reduction ends
/// in the unit's shard; later ones end in a staging shard and are added to it when their buffer is needed
/// again, or in finish(). Where ranks read each other's memory, the other ranks' parts come to the staging,
/// and are summed with this rank's into the shard at that time. With one rank the shard itself is filled.
class ReducedGradients {
 public:
  ReducedGradients(const UnitTable& table, Communicator& group, Communicator& replicas, DType type,
                   Stream& compute, Arena& state, Arena& transient);

  const Tensor& shard(int unit) const { return shards_[static_cast<std::size_t>(unit)]; }
  /// Where sums over ranks pass over the shards anyway: from now on finish(true) leaves the squared norm of
  /// unit u's shard in squares [u] (f64). False: it does not.
  bool leave_squares(const Tensor& squares);
  /// The shards count as zero from here on; what they hold is replaced by the next micro-batch.
  void zero();
  /// A micro-batch's backward pass begins: units U-1 .. 0 follow.
  void start();
  void begin(int unit, bool overwrites_matrices);
  /// Of the open unit: its matrices hold nothing that counts.
  bool blank() const;
  /// The unit between begin() and reduce(); throws Error outside.
  const Tensor& whole(int unit) const;
  void reduce(int unit);
  void finish(bool last);

 private:
  struct Buffer {
    Tensor memory, staging;
    int unit = -1;             // whose reduction is under way
    bool accumulates = false;  // its sum is added to the shard, from `staging`
    Ticket ticket;
  };

  bool alone() const { return group_->size() == 1; }
  Buffer& buffer_of(int unit);
  Tensor parts(const Buffer& buffer) const;
  void settle(Buffer& buffer);

  const UnitTable* table_;
  Communicator* group_;
  Communicator* replicas_;
  Stream* compute_;
  std::vector<Tensor> shards_;
  Tensor squares_;               // f64 [units] of shards that are complete, or nothing
  std::vector<bool> holds_sum_;  // by unit: its shard has a micro-batch's gradient in it
  std::vector<Buffer> buffers_;
  int next_ = -1;  // the unit that begin() expects; -1: all are done
  int open_ = -1;  // the unit between begin() and reduce()
  Tensor whole_;   // of the open unit
};

}  // namespace lapidary
