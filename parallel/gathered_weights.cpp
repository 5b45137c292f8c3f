#include "parallel/gathered_weights.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/ops.h"

namespace lapidary {

GatheredWeights::GatheredWeights(const UnitTable& table, Communicator& group, const ShardingOptions& options,
                                 Stream& compute, Arena& state, Arena& transient)
    : table_(&table), group_(&group), compute_(&compute), prefetch_(options.prefetch) {
  const int ranks = group.size();
  const bool kept = options.zero == 2 && !alone();
  // Copies that need no memory and no multiprocessor may as well all be under way: then no rank waits for
  // another that is a layer behind.
  if (kept && group.copies()) prefetch_ = table.units();
  if (!alone()) {
    slots_.resize(static_cast<std::size_t>(kept ? table.units() : std::min(table.units(), prefetch_ + 1)));
  }
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const int unit = static_cast<int>(i);
    const std::int64_t size = kept ? ranks * table.layout(unit).shard(ranks) : table.largest(ranks);
    slots_[i].memory = transient.allocate(options.weights, {size});
    if (kept) slots_[i].unit = unit;
  }
  for (int unit = 0; unit < table.units(); ++unit) {
    const std::int64_t n = table.layout(unit).shard(ranks);
    shards_.push_back(kept ? slots_[static_cast<std::size_t>(unit)].memory.flat_range(group.rank() * n, n)
                           : state.allocate(options.weights, {n}));
    run(compute, Fill{.x = shards_.back()});
    if (group.copies()) group.share(shards_.back());
  }
}

void GatheredWeights::changed() {
  require(held_ < 0, "{}: weights_changed() between get() and release()", table_->name(std::max(held_, 0)));
  for (Slot& slot : slots_) {
    settle(slot);
    slot.gathered = false;
  }
}

void GatheredWeights::begin(ShardedUnits::Direction direction) {
  require(held_ < 0, "{}: begin() between get() and release()", table_->name(std::max(held_, 0)));
  step_ = direction == ShardedUnits::Direction::forward ? 1 : -1;
  next_ = step_ > 0 ? 0 : table_->units() - 1;
  gather_ahead(next_);
}

void GatheredWeights::get(int unit) {
  require(unit >= 0 && unit < table_->units(), "get({}) of {} units", unit, table_->units());
  require(held_ < 0, "{}: get() while {} is in use", table_->name(unit), table_->name(std::max(held_, 0)));
  require(step_ != 0, "{}: get() before begin()", table_->name(unit));
  const bool at_end = next_ < 0 || next_ >= table_->units();
  require(unit == next_, "{}: get() out of order, expected {}", table_->name(unit),
          at_end ? "begin()" : table_->name(next_));
  gather_ahead(unit);
  if (alone()) {
    whole_ = shard(unit);
  } else {
    Slot& slot = *find(unit);
    settle(slot);
    whole_ = unit_memory(slot, unit);
  }
  held_ = unit;
  next_ += step_;
}

void GatheredWeights::release(int unit) {
  require(unit >= 0 && unit < table_->units(), "release({}) of {} units", unit, table_->units());
  require(held_ >= 0, "{}: release() without get()", table_->name(unit));
  require(unit == held_, "{}: release() while {} is in use", table_->name(unit), table_->name(held_));
  held_ = -1;
}

const Tensor& GatheredWeights::whole(int unit) const {
  require(unit == held_, "{}: weight() outside get() and release()", table_->name(unit));
  return whole_;
}

GatheredWeights::Slot* GatheredWeights::find(int unit) {
  const auto found = std::ranges::find(slots_, unit, &Slot::unit);
  return found == slots_.end() ? nullptr : &*found;
}

// A slot that holds none of the units from `current` to prefetch_ ahead. There is one: the slots are as many
// as those units, or as all units.
GatheredWeights::Slot& GatheredWeights::slot_for(int unit, int current) {
  if (Slot* mine = find(unit)) return *mine;
  return *std::ranges::find_if(slots_, [&](const Slot& slot) {
    const int ahead = (slot.unit - current) * step_;
    return slot.unit < 0 || ahead < 0 || ahead > prefetch_;
  });
}

void GatheredWeights::gather_ahead(int current) {
  if (alone()) return;
  for (int ahead = 0; ahead <= prefetch_; ++ahead) {
    const int unit = current + ahead * step_;
    if (unit < 0 || unit >= table_->units()) break;
    Slot& slot = slot_for(unit, current);
    if (slot.unit == unit && slot.gathered) continue;
    settle(slot);
    slot.unit = unit;
    slot.gathered = slot.in_flight = true;
    slot.ticket = group_->all_gather(*compute_, shard(unit), unit_memory(slot, unit));
  }
}

void GatheredWeights::settle(Slot& slot) {
  if (!slot.in_flight) return;
  slot.in_flight = false;
  group_->wait(*compute_, slot.ticket);
}

Tensor GatheredWeights::unit_memory(const Slot& slot, int unit) const {
  return slot.memory.flat_range(0, group_->size() * table_->layout(unit).shard(group_->size()));
}

}  // namespace lapidary
