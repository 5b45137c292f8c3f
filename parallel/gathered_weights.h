// The weights of sharded units: each rank's shard, and the whole units that are gathered from the shards for
// the time of their use.
#pragma once
#include <vector>

#include "kernels/arena.h"
#include "kernels/device.h"
#include "parallel/communicator.h"
#include "parallel/sharded_units.h"
#include "parallel/unit_table.h"

namespace lapidary {

/// ZeRO-3: prefetch + 1 slots of the largest unit's size. A slot keeps its unit until the memory is needed,
/// so the units at the turn from forward to backward, and from backward to the next forward, are gathered
/// once. ZeRO-2: one slot a unit, and the shard is this rank's own place in it. One rank: the shard is the
/// unit.
class GatheredWeights {
 public:
  GatheredWeights(const UnitTable& table, Communicator& group, const ShardingOptions& options,
                  Stream& compute, Arena& state, Arena& transient);

  const Tensor& shard(int unit) const { return shards_[static_cast<std::size_t>(unit)]; }
  /// Units that are gathered ahead of the one in use.
  int ahead() const { return prefetch_; }
  void changed();
  void begin(ShardedUnits::Direction direction);
  void get(int unit);
  void release(int unit);
  /// The unit between get() and release(); throws Error outside.
  const Tensor& whole(int unit) const;

 private:
  struct Slot {
    Tensor memory;
    int unit = -1;
    bool gathered = false;   // from the shards as they are, maybe still under way
    bool in_flight = false;  // the ticket is to be waited for
    Ticket ticket;
  };

  bool alone() const { return group_->size() == 1; }
  Slot* find(int unit);
  Slot& slot_for(int unit, int current);
  void gather_ahead(int current);
  void settle(Slot& slot);
  Tensor unit_memory(const Slot& slot, int unit) const;

  const UnitTable* table_;
  Communicator* group_;
  Stream* compute_;
  int prefetch_;
  std::vector<Tensor> shards_;
  std::vector<Slot> slots_;
  int step_ = 0;   // +1 forward, -1 backward, 0 before the first begin()
  int next_ = -1;  // the unit that get() expects
  int held_ = -1;  // the unit between get() and release()
  Tensor whole_;   // of the held unit
};

}  // namespace lapidary
