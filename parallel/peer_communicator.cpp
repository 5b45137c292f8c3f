#include "parallel/peer_communicator.h"

#include <cuda_runtime.h>

#include <array>
#include <cstring>
#include <exception>
#include <map>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "parallel/local_communicator.h"
#include "parallel/mpi_check.h"
#include "parallel/peer_board.h"

namespace lapidary {

namespace {

void cuda_check(cudaError_t result, const char* what, const std::string& communicator) {
  if (result == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();
  throw Error(fmt::format("{} on communicator '{}': {} ({})", what, communicator, cudaGetErrorName(result),
                          cudaGetErrorString(result)),
              ExitCode::peer_lost);
}

/// A device allocation as another process can open it, and a place inside it.
struct Exported {
  cudaIpcMemHandle_t allocation{};
  std::uint64_t offset = 0;
  std::uint64_t valid = 0;
};

Exported export_memory(const void* data) {
  using AddressRange = CUresult (*)(CUdeviceptr*, std::size_t*, CUdeviceptr);
  static const auto range = reinterpret_cast<AddressRange>(driver_function("cuMemGetAddressRange"));
  Exported out;
  CUdeviceptr begin = 0;
  std::size_t bytes = 0;
  const auto at = reinterpret_cast<CUdeviceptr>(data);
  if (range == nullptr || range(&begin, &bytes, at) != CUDA_SUCCESS) return out;
  if (cudaIpcGetMemHandle(&out.allocation, reinterpret_cast<void*>(begin)) != cudaSuccess) {
    (void)cudaGetLastError();
    return out;
  }
  out.offset = at - begin;
  out.valid = 1;
  return out;
}

/// The other ranks' allocations in this process.
class OpenAllocations {
 public:
  OpenAllocations() = default;
  ~OpenAllocations() { close(); }
  OpenAllocations(const OpenAllocations&) = delete;
  OpenAllocations& operator=(const OpenAllocations&) = delete;

  void close() {
    for (const auto& [key, data] : open_) (void)cudaIpcCloseMemHandle(data);
    open_.clear();
  }
  /// Null where it cannot be opened.
  std::byte* open(int rank, const Exported& memory) {
    if (memory.valid == 0) return nullptr;
    Key key{rank, {}};
    std::memcpy(key.second.data(), &memory.allocation, sizeof memory.allocation);
    const auto found = open_.find(key);
    if (found != open_.end()) return static_cast<std::byte*>(found->second) + memory.offset;
    void* data = nullptr;
    if (cudaIpcOpenMemHandle(&data, memory.allocation, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) {
      (void)cudaGetLastError();
      return nullptr;
    }
    open_[key] = data;
    return static_cast<std::byte*>(data) + memory.offset;
  }

 private:
  using Key = std::pair<int, std::array<char, sizeof(cudaIpcMemHandle_t)>>;
  std::map<Key, void*> open_;
};

/// Copies run on the communicator's own stream. Each collective has a number: a rank sets `ready` to it when
/// what it sends is complete, reads from the others when they have, sets `done`, and the ticket waits until
/// all have read from it.
class PeerCommunicator final : public Communicator {
 public:
  PeerCommunicator(std::unique_ptr<Communicator> base, MPI_Comm group, std::unique_ptr<PeerBoard> board,
                   Backend& backend)
      : base_(std::move(base)),
        group_(group),
        board_(std::move(board)),
        stream_(backend.make_stream(base_->name().c_str())) {}
  ~PeerCommunicator() override {
    if (std::uncaught_exceptions() == 0) (void)MPI_Comm_free(&group_);
  }
  PeerCommunicator(const PeerCommunicator&) = delete;
  PeerCommunicator& operator=(const PeerCommunicator&) = delete;

  int rank() const override { return base_->rank(); }
  int size() const override { return base_->size(); }
  const std::string& name() const override { return base_->name(); }
  bool copies() const override { return true; }

  void share(const Tensor& mine) override {
    require(try_share(mine), "communicator '{}': the other ranks' memory cannot be mapped", name());
  }

  /// Tries it; the same answer on every rank.
  bool can_map(Backend& backend) {
    constexpr std::int64_t kTried = std::int64_t{2} << 20;
    void* data = backend.allocate(static_cast<std::size_t>(kTried));
    const bool can = try_share(Tensor(data, DType::u8, {kTried}));
    shared_.clear();
    allocations_.close();
    mpi_check(MPI_Barrier(group_), "share", name());  // nobody maps it any more
    backend.release(data);
    return can;
  }
  std::unique_ptr<Communicator> give_back_base() { return std::move(base_); }

  /// As share(); false on every rank where it fails on one.
  bool try_share(const Tensor& mine) {
    const Exported sent = export_memory(mine.data());
    std::vector<Exported> received(static_cast<std::size_t>(size()));
    mpi_check(MPI_Allgather(&sent, sizeof sent, MPI_BYTE, received.data(), sizeof sent, MPI_BYTE, group_),
              "share", name());
    Shared shared{static_cast<const std::byte*>(mine.data()), mine.bytes(), {}};
    int good = 1;
    for (int r = 0; r < size(); ++r) {
      shared.others.push_back(r == rank() ? nullptr
                                          : allocations_.open(r, received[static_cast<std::size_t>(r)]));
      if (r != rank() && shared.others.back() == nullptr) good = 0;
    }
    mpi_check(MPI_Allreduce(MPI_IN_PLACE, &good, 1, MPI_INT, MPI_MIN, group_), "share", name());
    if (good == 1) shared_.push_back(std::move(shared));
    return good == 1;
  }

  Ticket all_gather(Stream& after, const Tensor& send, const Tensor& recv) override {
    const Shared* shared = find(send);
    if (shared == nullptr) return base_->all_gather(after, send, recv);
    check_all_gather(*this, send, recv);
    const std::int64_t n = send.numel();
    const auto place = [&](int r) { return recv.flat_range(r * n, n); };
    begin(after);
    if (place(rank()).data() != send.data()) copy(place(rank()), send.data());
    for_others([&](int r) { copy(place(r), shared->at(r, send)); });
    return end();
  }

  Ticket exchange(Stream& after, const Tensor& send, const Tensor& parts) override {
    check_exchange(*this, send, parts);
    const Shared* shared = find(send);
    require(shared != nullptr, "exchange on communicator '{}': {} was not shared", name(), send.describe());
    const Tensor mine = send.flat_range(rank() * parts.cols(), parts.cols());
    begin(after);
    for_others([&](int r) {
      const std::int64_t row = r < rank() ? r : r - 1;
      copy(parts.row_range(row, row + 1), shared->at(r, mine));
    });
    return end();
  }

  Ticket reduce_scatter(Stream& after, const Tensor& send, const Tensor& recv) override {
    return base_->reduce_scatter(after, send, recv);
  }
  Ticket all_reduce(Stream& after, const Tensor& data, Reduction reduction) override {
    return base_->all_reduce(after, data, reduction);
  }

  void wait(Stream& stream, Ticket& ticket) override {
    if (ticket.pending != copied_) return base_->wait(stream, ticket);
    stream.backend().wait(stream, ticket.done);
    ticket = {};
  }

 private:
  struct Shared {
    const std::byte* begin;
    std::size_t bytes;
    std::vector<const std::byte*> others;  // by rank; null at this one

    bool holds(const Tensor& x) const {
      const auto* at = static_cast<const std::byte*>(x.data());
      return at >= begin && at + x.bytes() <= begin + bytes;
    }
    /// Where rank r has what this rank has at x.
    const void* at(int r, const Tensor& x) const {
      return others[static_cast<std::size_t>(r)] + (static_cast<const std::byte*>(x.data()) - begin);
    }
  };

  /// The newest: memory that was given back may have been shared again.
  const Shared* find(const Tensor& x) const {
    for (auto shared = shared_.rbegin(); shared != shared_.rend(); ++shared) {
      if (shared->holds(x)) return &*shared;
    }
    return nullptr;
  }

  void begin(Stream& after) {
    Backend& backend = after.backend();
    backend.wait(*stream_, backend.record(after));
    board_->set(*stream_, PeerBoard::kReady, ++number_);
  }

  /// copy(r) for the other ranks, each when it is ready. They begin with different ones.
  template <class F>
  void for_others(const F& copy) {
    for (int i = 1; i < size(); ++i) {
      const int r = (rank() + i) % size();
      board_->wait(*stream_, r, PeerBoard::kReady, number_);
      copy(r);
    }
  }

  Ticket end() {
    board_->set(*stream_, PeerBoard::kDone, number_);
    for (int r = 0; r < size(); ++r) {
      if (r != rank()) board_->wait(*stream_, r, PeerBoard::kDone, number_);
    }
    return {stream_->backend().record(*stream_), copied_};
  }

  void copy(const Tensor& to, const void* from) {
    cuda_check(cudaMemcpyAsync(to.data(), from, to.bytes(), cudaMemcpyDeviceToDevice,
                               static_cast<cudaStream_t>(stream_->native())),
               "copy", name());
  }

  std::unique_ptr<Communicator> base_;
  MPI_Comm group_;
  std::unique_ptr<PeerBoard> board_;
  std::unique_ptr<Stream> stream_;
  OpenAllocations allocations_;
  std::vector<Shared> shared_;
  std::uint32_t number_ = 0;
  const std::shared_ptr<void> copied_ = std::make_shared<int>(0);  // marks this class's tickets
};

}  // namespace

std::unique_ptr<Communicator> add_peer_copies(std::unique_ptr<Communicator> base, MPI_Comm parent, int color,
                                              Backend& backend) {
  MPI_Comm group = MPI_COMM_NULL;
  mpi_check(MPI_Comm_split(parent, color, base->rank(), &group), "set-up", base->name());
  std::unique_ptr<PeerBoard> board = PeerBoard::open(group);
  if (board == nullptr) {
    mpi_check(MPI_Comm_free(&group), "set-up", base->name());
    return base;
  }
  auto peers = std::make_unique<PeerCommunicator>(std::move(base), group, std::move(board), backend);
  if (peers->can_map(backend)) return peers;
  return peers->give_back_base();
}

}  // namespace lapidary
