// Collectives on tensors: one interface, with MPI for CPU tensors, NCCL for GPUs, MPI staged through the host
// for several ranks on one GPU, and a plan that only counts memory.
#pragma once
#include <memory>
#include <string>

#include "kernels/device.h"
#include "kernels/tensor.h"

namespace lapidary {

enum class Reduction { sum, max };

/// A collective under way. Wait for it exactly once, with Communicator::wait, before its buffers are touched.
struct Ticket {
  Event done;                     ///< GPU: when the communication stream has finished it
  std::shared_ptr<void> pending;  ///< MPI: requests and what to do when they complete
};

/// A group of ranks that call the same collectives in the same order. Every call is non-blocking for the
/// caller: it starts after the work already queued on `after` and goes on beside it on the communicator's own
/// stream. Sums add the ranks' parts in rank order, in float32 for bf16 (f64 for f64): the same bits on every
/// run, and the same on every rank. A communication failure is an Error with ExitCode::peer_lost that names
/// the operation.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;  ///< "gather", "reduce", "vocabulary": for messages

  /// recv [size * count] receives every rank's send [count], in rank order. send may be its own place in
  /// recv.
  virtual Ticket all_gather(Stream& after, const Tensor& send, const Tensor& recv) = 0;
  /// recv [count] receives the sum over ranks of their send [size * count] at this rank's place.
  virtual Ticket reduce_scatter(Stream& after, const Tensor& send, const Tensor& recv) = 0;
  /// data becomes its sum or maximum over the ranks.
  virtual Ticket all_reduce(Stream& after, const Tensor& data, Reduction reduction) = 0;

  /// Whether ranks read each other's memory by copy engines (peer_communicator.h): then gradients are
  /// exchanged() and summed by their owner, and no collective takes multiprocessors from the computation.
  virtual bool copies() const { return false; }
  /// Where copies(): this rank's tensor that later calls send from, in one of the device's allocations that
  /// lives as long. What is sent has the same place in every rank's tensor. Collective over the group, not in
  /// a steady step.
  virtual void share(const Tensor& /*mine*/) {}
  /// Where copies(): parts [size - 1, count] receives the other ranks' send [size * count] at this rank's
  /// place, in rank order.
  virtual Ticket exchange(Stream& after, const Tensor& send, const Tensor& parts);

  /// Later work of `stream` sees the collective's result; on the CPU the call returns when it is there.
  virtual void wait(Stream& stream, Ticket& ticket) = 0;
};

}  // namespace lapidary
