#include "parallel/mpi_communicator.h"

#include <chrono>
#include <exception>
#include <thread>

#include "parallel/local_communicator.h"
#include "parallel/mpi_check.h"

namespace lapidary {

namespace {

// Of `incoming` and of `outgoing`. Large enough that the network's bandwidth is reached with a few ranks,
// small enough that a sum runs in the processor's cache.
constexpr std::size_t kStagingBytes = std::size_t{4} << 20;
constexpr std::chrono::seconds kDropDeadline{2};

}  // namespace

std::size_t mpi_staging_bytes(int size, Device device) {
  if (size == 1) return 0;
  return device == Device::cpu ? kStagingBytes : 2 * kStagingBytes;
}

MpiCommunicator::MpiCommunicator(MPI_Comm group, std::string name, Backend& backend) {
  group_.comm = group;
  group_.name = std::move(name);
  group_.backend = &backend;
  mpi_check(MPI_Comm_set_errhandler(group, MPI_ERRORS_RETURN), "set-up", group_.name);
  mpi_check(MPI_Comm_rank(group, &group_.rank), "set-up", group_.name);
  mpi_check(MPI_Comm_size(group, &group_.size), "set-up", group_.name);
  if (backend.device() != Device::cpu) group_.copies = backend.make_stream(group_.name.c_str());
  const std::size_t all = mpi_staging_bytes(group_.size, backend.device());
  group_.staging = kStagingBytes;
  group_.incoming = static_cast<std::byte*>(backend.allocate_host(all));
  if (group_.staged()) group_.outgoing = group_.incoming + kStagingBytes;
}

MpiCommunicator::~MpiCommunicator() {
  // After a failure the peers may never come to free theirs, and an abandoned operation may still write.
  if (communication_abandoned()) return;
  group_.backend->release_host(group_.incoming);
  if (std::uncaught_exceptions() == 0) MPI_Comm_free(&group_.comm);
}

Ticket MpiCommunicator::all_gather(Stream& after, const Tensor& send, const Tensor& recv) {
  check_all_gather(*this, send, recv);
  return submit(after, make_all_gather(group_, send, recv));
}

Ticket MpiCommunicator::reduce_scatter(Stream& after, const Tensor& send, const Tensor& recv) {
  check_reduce_scatter(*this, send, recv);
  return submit(after, make_reduce_scatter(group_, send, recv));
}

Ticket MpiCommunicator::all_reduce(Stream& after, const Tensor& data, Reduction reduction) {
  check_all_reduce(*this, data);
  return submit(after, make_all_reduce(group_, data, reduction));
}

void MpiCommunicator::wait(Stream&, Ticket& ticket) {
  const auto* operation = static_cast<const MpiOperation*>(ticket.pending.get());
  while (operation != nullptr && !operation->done()) {
    progress();
    if (!operation->done()) std::this_thread::yield();
  }
  ticket = {};
}

Ticket MpiCommunicator::submit(Stream& after, std::unique_ptr<MpiOperation> operation) {
  if (group_.staged()) group_.backend->synchronize(after);
  std::shared_ptr<MpiOperation> pending(operation.release(), [this](MpiOperation* dropped) {
    drop(dropped);
    delete dropped;
  });
  queue_.push_back(pending.get());
  progress();
  return {{}, std::move(pending)};
}

// Starts what may start, in order: an exclusive operation holds up those behind it. The order of the requests
// on the communicator is thereby the order of the calls, which is the same on every rank.
void MpiCommunicator::progress() {
  for (auto next = queue_.begin(); next != queue_.end();) {
    MpiOperation* operation = *next;
    if (!operation->started()) operation->start();
    if (operation->advance()) {
      next = queue_.erase(next);
    } else if (operation->exclusive()) {
      break;
    } else {
      ++next;
    }
  }
}

void MpiCommunicator::drop(MpiOperation* operation) noexcept {
  try {
    const auto deadline = std::chrono::steady_clock::now() + kDropDeadline;
    while (!operation->done() && !communication_abandoned()) {
      progress();
      if (std::chrono::steady_clock::now() > deadline) break;
      std::this_thread::yield();
    }
  } catch (const std::exception&) {  // the exception that is under way tells more
  }
  if (operation->done()) return;
  abandon_communication();
  std::erase(queue_, operation);
}

std::unique_ptr<Communicator> split_communicator(MPI_Comm parent, int color, const std::string& name,
                                                 Backend& backend) {
  MPI_Comm group = MPI_COMM_NULL;
  int rank = 0, size = 0;
  mpi_check(MPI_Comm_rank(parent, &rank), "set-up", name);
  mpi_check(MPI_Comm_split(parent, color, rank, &group), "set-up", name);
  mpi_check(MPI_Comm_size(group, &size), "set-up", name);
  if (size > 1) return std::make_unique<MpiCommunicator>(group, name, backend);
  mpi_check(MPI_Comm_free(&group), "set-up", name);
  return std::make_unique<LocalCommunicator>(name);
}

}  // namespace lapidary
