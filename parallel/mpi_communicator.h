// Collectives over MPI: on CPU tensors directly, on GPU tensors staged through the host.
#pragma once
#include <mpi.h>

#include <cstddef>
#include <deque>
#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "parallel/mpi_operation.h"

namespace lapidary {

/// Host memory that a communicator of `size` ranks holds for staging from set-up on: a constant, because
/// longer tensors go in rounds; none for a single rank.
std::size_t mpi_staging_bytes(int size, Device device);

/// Operations run in the order of their calls. Those that use the staging, which is all but the all-gather of
/// CPU tensors, follow one another; their first round starts at the call if none is under way. MPI moves data
/// while any rank waits, here or elsewhere. A ticket that is dropped without wait() (an exception passes) is
/// finished if the peers come within two seconds, and abandoned otherwise (mpi_check.h).
class MpiCommunicator final : public Communicator {
 public:
  /// Owns `group`, which has two ranks or more.
  MpiCommunicator(MPI_Comm group, std::string name, Backend& backend);
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return group_.rank; }
  int size() const override { return group_.size; }
  const std::string& name() const override { return group_.name; }

  Ticket all_gather(Stream& after, const Tensor& send, const Tensor& recv) override;
  Ticket reduce_scatter(Stream& after, const Tensor& send, const Tensor& recv) override;
  Ticket all_reduce(Stream& after, const Tensor& data, Reduction reduction) override;
  void wait(Stream& stream, Ticket& ticket) override;

 private:
  Ticket submit(Stream& after, std::unique_ptr<MpiOperation> operation);
  void progress();
  void drop(MpiOperation* operation) noexcept;

  MpiGroup group_;
  std::deque<MpiOperation*> queue_;  ///< not complete, in the order of the calls
};

/// The ranks of `parent` that give the same color, in their order. Collective over parent.
std::unique_ptr<Communicator> split_communicator(MPI_Comm parent, int color, const std::string& name,
                                                 Backend& backend);

}  // namespace lapidary
