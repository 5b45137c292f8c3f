#include "parallel/peer_board.h"

#include <cuda_runtime.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <random>

#include "kernels/check.h"
#include "parallel/mpi_check.h"

namespace lapidary {

namespace {

constexpr const char* kName = "peer copies";
constexpr std::size_t kLine = 128;  // a flag's own cache line

using StreamValue = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);

struct StreamValues {
  StreamValue write = reinterpret_cast<StreamValue>(driver_function("cuStreamWriteValue32"));
  StreamValue wait = reinterpret_cast<StreamValue>(driver_function("cuStreamWaitValue32"));
  bool found() const { return write != nullptr && wait != nullptr; }
};

const StreamValues& stream_values() {
  static const StreamValues values;
  return values;
}

void driver_ok(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) [[likely]]
    return;
  throw Error(fmt::format("{}: CUDA driver error {} in {}", kName, static_cast<int>(result), what),
              ExitCode::peer_lost);
}

bool all_of(MPI_Comm group, bool mine) {
  int all = mine ? 1 : 0;
  mpi_check(MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, group), "set-up", kName);
  return all == 1;
}

bool on_one_node(MPI_Comm group) {
  MPI_Comm node = MPI_COMM_NULL;
  int size = 0, together = 0;
  mpi_check(MPI_Comm_split_type(group, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node), "set-up", kName);
  mpi_check(MPI_Comm_size(group, &size), "set-up", kName);
  mpi_check(MPI_Comm_size(node, &together), "set-up", kName);
  mpi_check(MPI_Comm_free(&node), "set-up", kName);
  return all_of(group, size == together);
}

}  // namespace

void* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  constexpr unsigned int kVersion = 12000;
  if (cudaGetDriverEntryPointByVersion(name, &function, kVersion, cudaEnableDefault, &result) !=
      cudaSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  return result == cudaDriverEntryPointSuccess ? function : nullptr;
}

std::unique_ptr<PeerBoard> PeerBoard::open(MPI_Comm group) {
  if (!on_one_node(group)) return nullptr;
  std::unique_ptr<PeerBoard> board(new PeerBoard);
  int ranks = 0;
  mpi_check(MPI_Comm_rank(group, &board->rank_), "set-up", kName);
  mpi_check(MPI_Comm_size(group, &ranks), "set-up", kName);
  std::array<char, 64> name{};
  if (board->rank_ == 0) {
    std::random_device random;
    const std::string text = fmt::format("/lapidary-{}-{:08x}{:08x}", getpid(), random(), random());
    text.copy(name.data(), name.size() - 1);
  }
  mpi_check(MPI_Bcast(name.data(), static_cast<int>(name.size()), MPI_CHAR, 0, group), "set-up", kName);
  // The first rank creates the memory before the others look for it; its name goes when all have it.
  bool mapped = board->rank_ == 0 && board->map(name.data(), true, ranks);
  mpi_check(MPI_Barrier(group), "set-up", kName);
  if (board->rank_ != 0) mapped = board->map(name.data(), false, ranks);
  const bool all = all_of(group, mapped && stream_values().found());
  if (board->rank_ == 0) (void)shm_unlink(name.data());
  return all ? std::move(board) : nullptr;
}

bool PeerBoard::map(const std::string& name, bool create, int ranks) {
  const int file = shm_open(name.c_str(), create ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, 0600);
  if (file < 0) return false;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t used = static_cast<std::size_t>(ranks) * kFlags * kLine;
  bytes_ = (used + page - 1) / page * page;
  const bool sized = !create || ftruncate(file, static_cast<off_t>(bytes_)) == 0;
  void* at = sized ? mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  (void)close(file);
  if (at == MAP_FAILED) return false;
  host_ = at;
  constexpr unsigned kMode = cudaHostRegisterMapped | cudaHostRegisterPortable;
  registered_ = cudaHostRegister(host_, bytes_, kMode) == cudaSuccess;
  void* device = nullptr;
  const bool reached = registered_ && cudaHostGetDevicePointer(&device, host_, 0) == cudaSuccess;
  if (!reached) (void)cudaGetLastError();
  device_ = reinterpret_cast<CUdeviceptr>(device);
  return reached;
}

PeerBoard::~PeerBoard() {
  if (registered_) (void)cudaHostUnregister(host_);
  if (host_ != nullptr) (void)munmap(host_, bytes_);
}

CUdeviceptr PeerBoard::address(int rank, Flag flag) const {
  return device_ + static_cast<std::size_t>(rank * kFlags + flag) * kLine;
}

void PeerBoard::set(const Stream& stream, Flag flag, std::uint32_t value) const {
  driver_ok(stream_values().write(static_cast<CUstream>(stream.native()), address(rank_, flag), value,
                                  CU_STREAM_WRITE_VALUE_DEFAULT),
            "cuStreamWriteValue32");
}

void PeerBoard::wait(const Stream& stream, int rank, Flag flag, std::uint32_t value) const {
  driver_ok(stream_values().wait(static_cast<CUstream>(stream.native()), address(rank, flag), value,
                                 CU_STREAM_WAIT_VALUE_GEQ),
            "cuStreamWaitValue32");
}

}  // namespace lapidary
