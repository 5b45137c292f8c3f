// Flags that the GPUs of a node set and wait for without their hosts: a page of memory shared by the
// processes of a group, which every rank's GPU reads and writes in the order of its streams.
#pragma once
#include <cuda.h>
#include <mpi.h>

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/device.h"

namespace lapidary {

class PeerBoard {
 public:
  /// Null on every rank where one of them cannot take part (another node, no shared memory, a GPU without
  /// stream memory operations). Collective over `group`.
  static std::unique_ptr<PeerBoard> open(MPI_Comm group);
  ~PeerBoard();
  PeerBoard(const PeerBoard&) = delete;
  PeerBoard& operator=(const PeerBoard&) = delete;

  enum Flag : std::uint8_t { kReady, kDone };
  static constexpr int kFlags = 2;

  /// When the stream's work so far is complete, this rank's flag becomes `value`.
  void set(const Stream& stream, Flag flag, std::uint32_t value) const;
  /// Later work of the stream waits until the flag of `rank` is `value` or later (numbers wrap around).
  void wait(const Stream& stream, int rank, Flag flag, std::uint32_t value) const;

 private:
  PeerBoard() = default;
  bool map(const std::string& name, bool create, int ranks);
  CUdeviceptr address(int rank, Flag flag) const;

  int rank_ = 0;
  std::size_t bytes_ = 0;
  void* host_ = nullptr;
  bool registered_ = false;
  CUdeviceptr device_ = 0;
};

/// A function of the GPU driver by its name; null where the driver has none.
void* driver_function(const char* name);

}  // namespace lapidary
