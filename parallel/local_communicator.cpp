#include "parallel/local_communicator.h"

#include "kernels/check.h"
#include "kernels/ops.h"
#include "parallel/rank_reduction.h"

namespace lapidary {

namespace {

void check_parts(const Communicator& group, const char* operation, const Tensor& whole, const Tensor& part) {
  const bool fits = whole && part && whole.dtype() == part.dtype() && whole.contiguous() &&
                    part.contiguous() && whole.numel() == part.numel() * group.size();
  if (!fits) {
    fail("{} on communicator '{}' of {} ranks: the whole is {}, a rank's part {}", operation, group.name(),
         group.size(), whole.describe(), part.describe());
  }
}

Ticket copy(Stream& after, const Tensor& from, const Tensor& to) {
  if (from.data() == to.data()) return {};
  run(after, Copy{.in = from.flat_range(0, from.numel()), .out = to.flat_range(0, to.numel())});
  return {after.backend().record(after), nullptr};
}

}  // namespace

void check_all_gather(const Communicator& group, const Tensor& send, const Tensor& recv) {
  check_parts(group, "all_gather", recv, send);
}

void check_reduce_scatter(const Communicator& group, const Tensor& send, const Tensor& recv) {
  check_parts(group, "reduce_scatter", send, recv);
  check_reducible(send.dtype(), "reduce_scatter");
}

void check_all_reduce(const Communicator& group, const Tensor& data) {
  if (!data || !data.contiguous())
    fail("all_reduce on communicator '{}': {} is not in one piece", group.name(), data.describe());
  check_reducible(data.dtype(), "all_reduce");
}

void check_exchange(const Communicator& group, const Tensor& send, const Tensor& parts) {
  if (!parts || parts.dims() != 2 || parts.rows() != group.size() - 1)
    fail("exchange on communicator '{}' of {} ranks: the parts are {}", group.name(), group.size(),
         parts.describe());
  check_parts(group, "exchange", send, parts.row_range(0, 1));
}

Ticket Communicator::exchange(Stream&, const Tensor&, const Tensor&) {
  fail("communicator '{}' does not read other ranks' memory", name());
}

Ticket LocalCommunicator::all_gather(Stream& after, const Tensor& send, const Tensor& recv) {
  check_all_gather(*this, send, recv);
  return copy(after, send, recv);
}

Ticket LocalCommunicator::reduce_scatter(Stream& after, const Tensor& send, const Tensor& recv) {
  check_reduce_scatter(*this, send, recv);
  return copy(after, send, recv);
}

Ticket LocalCommunicator::all_reduce(Stream&, const Tensor& data, Reduction) {
  check_all_reduce(*this, data);
  return {};
}

void LocalCommunicator::wait(Stream& stream, Ticket& ticket) {
  stream.backend().wait(stream, ticket.done);
  ticket = {};
}

Ticket PlanCommunicator::exchange(Stream&, const Tensor& send, const Tensor& parts) {
  check_exchange(*this, send, parts);
  return {};
}

Ticket PlanCommunicator::all_gather(Stream&, const Tensor& send, const Tensor& recv) {
  check_all_gather(*this, send, recv);
  return {};
}

Ticket PlanCommunicator::reduce_scatter(Stream&, const Tensor& send, const Tensor& recv) {
  check_reduce_scatter(*this, send, recv);
  return {};
}

Ticket PlanCommunicator::all_reduce(Stream&, const Tensor& data, Reduction) {
  check_all_reduce(*this, data);
  return {};
}

}  // namespace lapidary
