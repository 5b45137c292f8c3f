#include "parallel/reduced_gradients.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/ops.h"

namespace lapidary {

ReducedGradients::ReducedGradients(const UnitTable& table, Communicator& group, Communicator& replicas,
                                   DType type, Stream& compute, Arena& state, Arena& transient)
    : table_(&table), group_(&group), replicas_(&replicas), compute_(&compute) {
  const int ranks = group.size();
  for (int unit = 0; unit < table.units(); ++unit) {
    shards_.push_back(state.allocate(type, {table.layout(unit).shard(ranks)}));
    run(compute, Fill{.x = shards_.back()});
  }
  zero();
  if (alone()) return;
  buffers_.resize(static_cast<std::size_t>(std::min(table.units(), 2)));
  for (Buffer& buffer : buffers_) {
    buffer.memory = transient.allocate(type, {table.largest(ranks)});
    buffer.staging =
        transient.allocate(type, {(group.copies() ? ranks - 1 : 1) * (table.largest(ranks) / ranks)});
    if (group.copies()) group.share(buffer.memory);
  }
}

bool ReducedGradients::leave_squares(const Tensor& squares) {
  if (alone() || !group_->copies() || replicas_->size() > 1) return false;
  squares_ = squares;
  return true;
}

void ReducedGradients::zero() {
  require(open_ < 0, "{}: zero_gradients() between begin_gradients() and reduce()",
          table_->name(std::max(open_, 0)));
  holds_sum_.assign(shards_.size(), false);
}

void ReducedGradients::start() {
  require(open_ < 0, "{}: begin() between begin_gradients() and reduce()", table_->name(std::max(open_, 0)));
  next_ = table_->units() - 1;
}

void ReducedGradients::begin(int unit, bool overwrites_matrices) {
  require(unit >= 0 && unit < table_->units(), "begin_gradients({}) of {} units", unit, table_->units());
  require(open_ < 0, "{}: begin_gradients() before {} is reduced", table_->name(unit),
          table_->name(std::max(open_, 0)));
  require(unit == next_, "{}: begin_gradients() out of order, expected {}", table_->name(unit),
          next_ < 0 ? "begin(backward)" : table_->name(next_));
  if (alone()) {
    whole_ = shard(unit);
  } else {
    Buffer& buffer = buffer_of(unit);
    settle(buffer);
    whole_ = buffer.memory.flat_range(0, group_->size() * shard(unit).numel());
  }
  open_ = unit;
  --next_;
  if (!blank()) return;
  if (!overwrites_matrices) return run(*compute_, Fill{.x = whole_});
  for (const Tensor& part : table_->between_matrices(whole_, unit)) run(*compute_, Fill{.x = part});
}

bool ReducedGradients::blank() const {
  require(open_ >= 0, "no unit's gradient is open");
  return !alone() || !holds_sum_[static_cast<std::size_t>(open_)];
}

const Tensor& ReducedGradients::whole(int unit) const {
  require(unit == open_, "{}: gradient() outside begin_gradients() and reduce()", table_->name(unit));
  return whole_;
}

void ReducedGradients::reduce(int unit) {
  require(unit >= 0 && unit < table_->units(), "reduce({}) of {} units", unit, table_->units());
  require(open_ >= 0, "{}: reduce() without begin_gradients()", table_->name(unit));
  require(unit == open_, "{}: reduce() while {} is open", table_->name(unit), table_->name(open_));
  open_ = -1;
  const bool first = !holds_sum_[static_cast<std::size_t>(unit)];
  holds_sum_[static_cast<std::size_t>(unit)] = true;
  if (alone()) return;
  Buffer& buffer = buffer_of(unit);
  buffer.unit = unit;
  buffer.accumulates = !first;
  if (group_->copies()) {
    buffer.ticket = group_->exchange(*compute_, whole_, parts(buffer));
  } else {
    const Tensor to = first ? shard(unit) : buffer.staging.flat_range(0, shard(unit).numel());
    buffer.ticket = group_->reduce_scatter(*compute_, whole_, to);
  }
}

Tensor ReducedGradients::parts(const Buffer& buffer) const {
  const std::int64_t others = group_->size() - 1, n = shard(buffer.unit).numel();
  return buffer.staging.flat_range(0, others * n).reshape({others, n});
}

void ReducedGradients::finish(bool last) {
  require(open_ < 0 && next_ < 0, "{}: finish() before its gradient is reduced",
          table_->name(std::max(open_, next_)));
  for (Buffer& buffer : buffers_) settle(buffer);
  if (!last) return;
  std::vector<Ticket> tickets;
  for (const Tensor& shard : shards_) {
    tickets.push_back(replicas_->all_reduce(*compute_, shard, Reduction::sum));
  }
  for (Ticket& ticket : tickets) replicas_->wait(*compute_, ticket);
}

ReducedGradients::Buffer& ReducedGradients::buffer_of(int unit) {
  return buffers_[static_cast<std::size_t>(unit) % buffers_.size()];
}

void ReducedGradients::settle(Buffer& buffer) {
  if (buffer.unit < 0) return;
  const Tensor& sum = shard(buffer.unit);
  group_->wait(*compute_, buffer.ticket);
  if (group_->copies()) {
    run(*compute_, RankSum{.own = buffer.memory.flat_range(group_->rank() * sum.numel(), sum.numel()),
                           .others = parts(buffer),
                           .rank = group_->rank(),
                           .accumulate = buffer.accumulates,
                           .out = sum,
                           .squares = squares_ ? squares_.flat_range(buffer.unit, 1) : Tensor()});
  } else if (buffer.accumulates) {
    run(*compute_, Add{.in = buffer.staging.flat_range(0, sum.numel()), .out = sum});
  }
  buffer.unit = -1;
}

}  // namespace lapidary
