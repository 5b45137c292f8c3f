// Collectives over MPI as sequences of rounds. A round posts requests on host memory (the tensors themselves
// on the CPU, a bounded staging block for GPU tensors and for the parts that are to be summed); when they
// complete, the next round follows.
#pragma once
#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/tensor.h"
#include "parallel/communicator.h"

namespace lapidary {

/// What the operations of one communicator share.
struct MpiGroup {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 1;
  std::string name;
  Backend* backend = nullptr;
  std::unique_ptr<Stream> copies;  ///< between device and host; none on the CPU
  std::byte* incoming = nullptr;   ///< parts of the other ranks before they are summed
  std::byte* outgoing = nullptr;   ///< a GPU tensor's image on the host; none on the CPU
  std::size_t staging = 0;         ///< bytes of incoming and of outgoing

  bool staged() const { return copies != nullptr; }
};

/// Equally long blocks in host memory.
struct HostBlocks {
  std::byte* base = nullptr;
  std::int64_t stride = 0;  ///< bytes from one block to the next
};

class MpiOperation {
 public:
  MpiOperation(MpiGroup& group, const char* name, DType dtype, std::int64_t count, std::int64_t piece);
  virtual ~MpiOperation();
  MpiOperation(const MpiOperation&) = delete;
  MpiOperation& operator=(const MpiOperation&) = delete;

  void start();
  /// Goes on if the current round's requests are complete. True when everything is done.
  bool advance();
  bool started() const { return started_; }
  bool done() const { return done_; }
  /// The next operation must wait: this one uses the staging or has rounds that are not posted yet.
  virtual bool exclusive() const { return true; }
  const char* name() const { return name_; }

 protected:
  virtual void post() = 0;
  /// The round's requests are complete; true if it posted more for the same round.
  virtual bool finish_round() = 0;

  void check(int code) const;
  MPI_Request* new_request();
  /// A block of `elements` whose successor begins `stride` bytes later; lives until the round is complete.
  MPI_Datatype block_type(std::int64_t elements, std::int64_t stride);
  std::int64_t bytes(std::int64_t elements) const {
    return elements * static_cast<std::int64_t>(size_of(dtype_));
  }

  /// Elements [begin_, begin_ + length_) of each of `blocks` parts of `tensor`, to be read by MPI ..
  HostBlocks read(const Tensor& tensor, int blocks);
  /// .. or to be written, and brought to the tensor by write() afterwards.
  HostBlocks place(const Tensor& tensor, int blocks) const;
  void write(const Tensor& tensor, int blocks);

  MpiGroup& group_;
  const char* name_;
  DType dtype_;
  std::int64_t count_;       ///< elements of a block over all rounds
  std::int64_t piece_;       ///< most elements of a block in a round
  std::int64_t begin_ = 0;   ///< this round's first element
  std::int64_t length_ = 0;  ///< and how many

 private:
  void complete_requests();
  std::byte* device_block(const Tensor& tensor, int blocks, int block) const;

  std::vector<MPI_Request> requests_;
  std::vector<MPI_Datatype> types_;
  bool started_ = false, done_ = false;
};

std::unique_ptr<MpiOperation> make_all_gather(MpiGroup& group, const Tensor& send, const Tensor& recv);
std::unique_ptr<MpiOperation> make_reduce_scatter(MpiGroup& group, const Tensor& send, const Tensor& recv);
std::unique_ptr<MpiOperation> make_all_reduce(MpiGroup& group, const Tensor& data, Reduction reduction);

}  // namespace lapidary
