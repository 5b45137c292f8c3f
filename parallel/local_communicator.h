// The communicators that need no network: of a single rank, and of a plan.
#pragma once
#include <string>

#include "parallel/communicator.h"

namespace lapidary {

/// One rank: what it sends is what it receives. Copies only where send and recv are different places.
class LocalCommunicator final : public Communicator {
 public:
  explicit LocalCommunicator(std::string name) : name_(std::move(name)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& name() const override { return name_; }
  Ticket all_gather(Stream& after, const Tensor& send, const Tensor& recv) override;
  Ticket reduce_scatter(Stream& after, const Tensor& send, const Tensor& recv) override;
  Ticket all_reduce(Stream& after, const Tensor& data, Reduction reduction) override;
  void wait(Stream& stream, Ticket& ticket) override;

 private:
  std::string name_;
};

/// Knows its place among `size` ranks and does nothing: for dry streams.
class PlanCommunicator final : public Communicator {
 public:
  PlanCommunicator(std::string name, int rank, int size, bool copies = false)
      : name_(std::move(name)), rank_(rank), size_(size), copies_(copies) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }
  Ticket all_gather(Stream& after, const Tensor& send, const Tensor& recv) override;
  Ticket reduce_scatter(Stream& after, const Tensor& send, const Tensor& recv) override;
  Ticket all_reduce(Stream& after, const Tensor& data, Reduction reduction) override;
  bool copies() const override { return copies_; }
  Ticket exchange(Stream& after, const Tensor& send, const Tensor& parts) override;
  void wait(Stream&, Ticket&) override {}

 private:
  std::string name_;
  int rank_, size_;
  bool copies_;
};

/// What every communicator asks of its tensors; throws Error naming operation, communicator and shapes.
void check_all_gather(const Communicator& group, const Tensor& send, const Tensor& recv);
void check_reduce_scatter(const Communicator& group, const Tensor& send, const Tensor& recv);
void check_all_reduce(const Communicator& group, const Tensor& data);
void check_exchange(const Communicator& group, const Tensor& send, const Tensor& parts);

}  // namespace lapidary
