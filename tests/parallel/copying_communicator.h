// A stand-in on the CPU for ranks that read each other's memory by copy engines.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "parallel/local_communicator.h"
#include "parallel/mesh.h"

namespace lapidary {

/// An exchange gathers all that all ranks send, and fails for what was not shared.
class CopyingCommunicator final : public Communicator {
 public:
  explicit CopyingCommunicator(std::unique_ptr<Communicator> base) : base_(std::move(base)) {}
  int rank() const override { return base_->rank(); }
  int size() const override { return base_->size(); }
  const std::string& name() const override { return base_->name(); }
  bool copies() const override { return true; }
  void share(const Tensor& mine) override { shared_.push_back(mine); }
  Ticket all_gather(Stream& after, const Tensor& send, const Tensor& recv) override {
    require_shared(send);
    return base_->all_gather(after, send, recv);
  }
  Ticket exchange(Stream& after, const Tensor& send, const Tensor& parts) override {
    check_exchange(*this, send, parts);
    require_shared(send);
    std::vector<std::byte> memory(send.bytes() * static_cast<std::size_t>(size()));
    const Tensor all(memory.data(), send.dtype(), {size(), send.numel()});
    Ticket ticket = base_->all_gather(after, send, all.reshape({all.numel()}));
    base_->wait(after, ticket);
    for (int r = 0, row = 0; r < size(); ++r) {
      if (r == rank()) continue;
      const Tensor from = all.row_range(r, r + 1).reshape({send.numel()});
      run(after, Copy{.in = from.flat_range(rank() * parts.cols(), parts.cols()),
                      .out = parts.row_range(row, row + 1).reshape({parts.cols()})});
      ++row;
    }
    return {};
  }
  Ticket reduce_scatter(Stream&, const Tensor&, const Tensor&) override { fail("gradients are exchanged"); }
  Ticket all_reduce(Stream& after, const Tensor& data, Reduction reduction) override {
    return base_->all_reduce(after, data, reduction);
  }
  void wait(Stream& stream, Ticket& ticket) override {
    if (ticket.pending) base_->wait(stream, ticket);
  }

 private:
  void require_shared(const Tensor& x) const {
    const auto* at = static_cast<const std::byte*>(x.data());
    const bool found = std::ranges::any_of(shared_, [&](const Tensor& s) {
      const auto* begin = static_cast<const std::byte*>(s.data());
      return at >= begin && at + x.bytes() <= begin + s.bytes();
    });
    require(found, "{} was not shared", x.describe());
  }

  std::unique_ptr<Communicator> base_;
  std::vector<Tensor> shared_;
};

/// Gather and reduce by copies, where there are other ranks.
inline void use_copies(Mesh& mesh) {
  if (mesh.gather->size() == 1) return;
  for (auto* group : {&mesh.gather, &mesh.reduce})
    *group = std::make_unique<CopyingCommunicator>(std::move(*group));
}

}  // namespace lapidary
