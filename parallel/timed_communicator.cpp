#include "parallel/timed_communicator.h"

#include <utility>

namespace lapidary {

void WaitTimer::begin(const Stream& stream, const std::string& group) {
  intervals_.push_back({group, stream.backend().record_timed(stream), {}});
}

void WaitTimer::end(const Stream& stream) {
  intervals_.back().to = stream.backend().record_timed(stream);
}

std::vector<WaitTimer::Wait> WaitTimer::collect(const Stream& stream) {
  Backend& backend = stream.backend();
  backend.synchronize(stream);
  std::vector<Wait> out;
  for (const Interval& i : std::exchange(intervals_, {}))
    out.push_back({i.group, backend.seconds_between(i.from, i.to)});
  return out;
}

namespace {

class TimedCommunicator final : public Communicator {
 public:
  TimedCommunicator(std::unique_ptr<Communicator> base, WaitTimer& timer)
      : base_(std::move(base)), timer_(&timer) {}

  int rank() const override { return base_->rank(); }
  int size() const override { return base_->size(); }
  const std::string& name() const override { return base_->name(); }
  Ticket all_gather(Stream& after, const Tensor& send, const Tensor& recv) override {
    return base_->all_gather(after, send, recv);
  }
  Ticket reduce_scatter(Stream& after, const Tensor& send, const Tensor& recv) override {
    return base_->reduce_scatter(after, send, recv);
  }
  Ticket all_reduce(Stream& after, const Tensor& data, Reduction reduction) override {
    return base_->all_reduce(after, data, reduction);
  }
  bool copies() const override { return base_->copies(); }
  void share(const Tensor& mine) override { base_->share(mine); }
  Ticket exchange(Stream& after, const Tensor& send, const Tensor& parts) override {
    return base_->exchange(after, send, parts);
  }
  void wait(Stream& stream, Ticket& ticket) override {
    timer_->begin(stream, name());
    base_->wait(stream, ticket);
    timer_->end(stream);
  }

 private:
  std::unique_ptr<Communicator> base_;
  WaitTimer* timer_;
};

}  // namespace

void time_waits(Mesh& mesh, WaitTimer& timer) {
  for (auto* group : {&mesh.gather, &mesh.reduce, &mesh.replicas, &mesh.vocabulary, &mesh.table_replicas}) {
    if ((*group)->size() > 1) *group = std::make_unique<TimedCommunicator>(std::move(*group), timer);
  }
}

}  // namespace lapidary
