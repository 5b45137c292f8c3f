#include "parallel/mpi_operation.h"

#include <algorithm>

#include "kernels/check.h"
#include "parallel/mpi_check.h"
#include "parallel/rank_reduction.h"

namespace lapidary {

namespace {

// On the CPU an all-gather needs no staging; a request's length must only fit MPI's int counts.
constexpr std::int64_t kLongestRequest = std::int64_t{256} << 20;
// Above this an all-reduce over three or more ranks sums each part on one rank and gathers the sums.
constexpr std::int64_t kSmallAllReduce = std::int64_t{64} << 10;

// Most elements of a block so that `blocks` of them fit the staging; whole cache lines where there are many.
std::int64_t piece_of(const MpiGroup& group, DType dtype, int blocks) {
  const std::int64_t fit = static_cast<std::int64_t>(group.staging / size_of(dtype)) / blocks;
  return std::max<std::int64_t>(fit > 64 ? fit / 64 * 64 : fit, 1);
}

class AllGather final : public MpiOperation {
 public:
  AllGather(MpiGroup& group, const Tensor& send, const Tensor& recv)
      : MpiOperation(group, "all_gather", send.dtype(), send.numel(),
                     group.staged() ? piece_of(group, send.dtype(), group.size) : send.numel()),
        send_(send),
        recv_(recv) {}

  bool exclusive() const override { return group_.staged(); }

 private:
  void post() override {
    if (group_.staged()) return post_staged();
    const HostBlocks to = place(recv_, group_.size);
    auto* from = static_cast<std::byte*>(send_.data());
    const bool in_place = from == to.base + group_.rank * to.stride;
    const std::int64_t longest = kLongestRequest / static_cast<std::int64_t>(size_of(dtype_));
    for (std::int64_t at = 0; at < count_; at += longest) {
      const std::int64_t n = std::min(longest, count_ - at);
      const void* mine = in_place ? MPI_IN_PLACE : from + bytes(at);
      gather(mine, n, {to.base + bytes(at), to.stride});
    }
  }

  void post_staged() {
    const HostBlocks to = place(recv_, group_.size);
    group_.backend->copy_to_host(*group_.copies, to.base + group_.rank * to.stride,
                                 static_cast<std::byte*>(send_.data()) + bytes(begin_),
                                 static_cast<std::size_t>(bytes(length_)));
    group_.backend->synchronize(*group_.copies);
    gather(MPI_IN_PLACE, length_, to);
  }

  void gather(const void* mine, std::int64_t n, const HostBlocks& to) {
    check(MPI_Iallgather(mine, static_cast<int>(bytes(n)), MPI_BYTE, to.base, 1, block_type(n, to.stride),
                         group_.comm, new_request()));
  }

  bool finish_round() override {
    write(recv_, group_.size);
    return false;
  }

  Tensor send_, recv_;
};

class ReduceScatter final : public MpiOperation {
 public:
  ReduceScatter(MpiGroup& group, const Tensor& send, const Tensor& recv)
      : MpiOperation(group, "reduce_scatter", send.dtype(), recv.numel(),
                     piece_of(group, send.dtype(), group.size)),
        send_(send),
        recv_(recv) {}

 private:
  void post() override {
    const HostBlocks from = read(send_, group_.size);
    check(MPI_Ialltoall(from.base, 1, block_type(length_, from.stride), group_.incoming, 1,
                        block_type(length_, bytes(length_)), group_.comm, new_request()));
  }

  bool finish_round() override {
    reduce_ranks(group_.incoming, group_.size, length_, dtype_, Reduction::sum, place(recv_, 1).base);
    write(recv_, 1);
    return false;
  }

  Tensor send_, recv_;
};

// Every rank gets all parts and sums them itself: one exchange, for small tensors and pairs of ranks.
class GatheredAllReduce final : public MpiOperation {
 public:
  GatheredAllReduce(MpiGroup& group, const Tensor& data, Reduction reduction)
      : MpiOperation(group, "all_reduce", data.dtype(), data.numel(),
                     piece_of(group, data.dtype(), group.size)),
        data_(data),
        reduction_(reduction) {}

 private:
  void post() override {
    check(MPI_Iallgather(read(data_, 1).base, static_cast<int>(bytes(length_)), MPI_BYTE, group_.incoming, 1,
                         block_type(length_, bytes(length_)), group_.comm, new_request()));
  }

  bool finish_round() override {
    reduce_ranks(group_.incoming, group_.size, length_, dtype_, reduction_, place(data_, 1).base);
    write(data_, 1);
    return false;
  }

  Tensor data_;
  Reduction reduction_;
};

// Every rank sums one part of the piece, then the sums are gathered.
class SplitAllReduce final : public MpiOperation {
 public:
  SplitAllReduce(MpiGroup& group, const Tensor& data, Reduction reduction)
      : MpiOperation(group, "all_reduce", data.dtype(), data.numel(),
                     piece_of(group, data.dtype(), group.size) * group.size),
        data_(data),
        reduction_(reduction) {}

 private:
  // Part r of the piece: equal lengths but for the last ones.
  void cut() {
    const std::int64_t part = (length_ + group_.size - 1) / group_.size;
    lengths_.clear();
    offsets_.clear();
    for (int rank = 0; rank < group_.size; ++rank) {
      const std::int64_t first = std::min(length_, rank * part);
      lengths_.push_back(static_cast<int>(bytes(std::min(part, length_ - first))));
      offsets_.push_back(static_cast<int>(bytes(first)));
    }
    mine_ = lengths_[static_cast<std::size_t>(group_.rank)];
    received_.assign(lengths_.size(), mine_);
    places_.clear();
    for (int rank = 0; rank < group_.size; ++rank) places_.push_back(rank * mine_);
  }

  void post() override {
    cut();
    gathering_ = false;
    piece_on_host_ = read(data_, 1).base;
    check(MPI_Ialltoallv(piece_on_host_, lengths_.data(), offsets_.data(), MPI_BYTE, group_.incoming,
                         received_.data(), places_.data(), MPI_BYTE, group_.comm, new_request()));
  }

  bool finish_round() override {
    if (gathering_) {
      write(data_, 1);
      return false;
    }
    gathering_ = true;
    reduce_ranks(group_.incoming, group_.size, mine_ / static_cast<std::int64_t>(size_of(dtype_)), dtype_,
                 reduction_, piece_on_host_ + offsets_[static_cast<std::size_t>(group_.rank)]);
    check(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_BYTE, piece_on_host_, lengths_.data(), offsets_.data(),
                          MPI_BYTE, group_.comm, new_request()));
    return true;
  }

  Tensor data_;
  Reduction reduction_;
  std::vector<int> lengths_, offsets_;  // bytes of every rank's part, in the piece
  std::vector<int> received_, places_;  // my part from every rank, in the staging
  int mine_ = 0;
  bool gathering_ = false;
  std::byte* piece_on_host_ = nullptr;
};

}  // namespace

MpiOperation::MpiOperation(MpiGroup& group, const char* name, DType dtype, std::int64_t count,
                           std::int64_t piece)
    : group_(group), name_(name), dtype_(dtype), count_(count), piece_(piece) {}

MpiOperation::~MpiOperation() {
  for (MPI_Datatype& type : types_) MPI_Type_free(&type);
}

void MpiOperation::start() {
  started_ = true;
  length_ = std::min(piece_, count_);
  done_ = count_ == 0;
  if (!done_) post();
}

bool MpiOperation::advance() {
  if (done_) return true;
  int complete = 0;
  check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &complete, MPI_STATUSES_IGNORE));
  if (!complete) return false;
  complete_requests();
  if (finish_round()) return false;
  begin_ += length_;
  length_ = std::min(piece_, count_ - begin_);
  done_ = length_ == 0;
  if (!done_) post();
  return done_;
}

void MpiOperation::complete_requests() {
  requests_.clear();
  for (MPI_Datatype& type : types_) check(MPI_Type_free(&type));
  types_.clear();
}

void MpiOperation::check(int code) const {
  mpi_check(code, name_, group_.name);
}

MPI_Request* MpiOperation::new_request() {
  return &requests_.emplace_back(MPI_REQUEST_NULL);
}

MPI_Datatype MpiOperation::block_type(std::int64_t elements, std::int64_t stride) {
  MPI_Datatype block = MPI_DATATYPE_NULL;
  check(MPI_Type_contiguous(static_cast<int>(bytes(elements)), MPI_BYTE, &block));
  MPI_Datatype& spaced = types_.emplace_back(MPI_DATATYPE_NULL);
  const int code = MPI_Type_create_resized(block, 0, stride, &spaced);
  MPI_Type_free(&block);
  check(code);
  check(MPI_Type_commit(&spaced));
  return spaced;
}

std::byte* MpiOperation::device_block(const Tensor& tensor, int blocks, int block) const {
  const std::int64_t whole = tensor.numel() / blocks;
  return static_cast<std::byte*>(tensor.data()) + bytes(block * whole + begin_);
}

HostBlocks MpiOperation::place(const Tensor& tensor, int blocks) const {
  if (group_.staged()) return {group_.outgoing, bytes(length_)};
  return {device_block(tensor, blocks, 0), bytes(tensor.numel() / blocks)};
}

HostBlocks MpiOperation::read(const Tensor& tensor, int blocks) {
  const HostBlocks host = place(tensor, blocks);
  if (!group_.staged()) return host;
  for (int block = 0; block < blocks; ++block) {
    group_.backend->copy_to_host(*group_.copies, host.base + block * host.stride,
                                 device_block(tensor, blocks, block),
                                 static_cast<std::size_t>(bytes(length_)));
  }
  group_.backend->synchronize(*group_.copies);
  return host;
}

void MpiOperation::write(const Tensor& tensor, int blocks) {
  if (!group_.staged()) return;
  const HostBlocks host = place(tensor, blocks);
  for (int block = 0; block < blocks; ++block) {
    group_.backend->copy_to_device(*group_.copies, device_block(tensor, blocks, block),
                                   host.base + block * host.stride, static_cast<std::size_t>(bytes(length_)));
  }
  group_.backend->synchronize(*group_.copies);
}

std::unique_ptr<MpiOperation> make_all_gather(MpiGroup& group, const Tensor& send, const Tensor& recv) {
  return std::make_unique<AllGather>(group, send, recv);
}

std::unique_ptr<MpiOperation> make_reduce_scatter(MpiGroup& group, const Tensor& send, const Tensor& recv) {
  return std::make_unique<ReduceScatter>(group, send, recv);
}

std::unique_ptr<MpiOperation> make_all_reduce(MpiGroup& group, const Tensor& data, Reduction reduction) {
  const bool small = group.size == 2 || static_cast<std::int64_t>(data.bytes()) <= kSmallAllReduce;
  if (small) return std::make_unique<GatheredAllReduce>(group, data, reduction);
  return std::make_unique<SplitAllReduce>(group, data, reduction);
}

}  // namespace lapidary
