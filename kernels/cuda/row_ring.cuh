// Rows on their way to shared memory ahead of their use: how a block that walks over rows keeps enough bytes
// in flight to use all of the memory's bandwidth while it waits for its own reductions.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary {

/// Rows [begin, end) of this block: as even as can be.
struct BlockRows {
  std::int64_t begin, end;
  __device__ explicit BlockRows(std::int64_t rows)
      : begin(rows * blockIdx.x / gridDim.x), end(rows * (blockIdx.x + 1) / gridDim.x) {}
};

/// How a ring lies in shared memory; made on the host.
struct RingShape {
  int n;          ///< elements of a row
  int row_bytes;  ///< a row's place, a multiple of 16
  int stages;
  std::size_t shared_bytes;

  static constexpr int kMaxStages = 4;
  static constexpr int kHeader = 16 * kMaxStages;  ///< the barriers
  static constexpr std::size_t kShared = std::size_t{220} << 10;

  RingShape(const char* op, std::int64_t length, std::size_t element, int rows_of_a_stage)
      : n(static_cast<int>(length)), row_bytes(static_cast<int>(ceil_div(n * element, 16) * 16)) {
    const std::size_t stage = static_cast<std::size_t>(row_bytes) * static_cast<std::size_t>(rows_of_a_stage);
    stages = static_cast<int>(std::min<std::size_t>(kMaxStages, (kShared - kHeader) / stage));
    if (stages == 0)
      throw Error(std::string(op) + ": rows of " + std::to_string(n) +
                  " elements are longer than the GPU kernel's shared memory holds");
    shared_bytes = kHeader + static_cast<std::size_t>(stages) * stage;
  }
};

/// A ring of stages; each holds kRows neighbouring rows of each of kTensors tensors. The thread that owns a
/// pack of a row (RowShape S) reads only that pack. Vector shapes travel by bulk copies that one thread
/// starts; others are copied by each thread for itself.
template <class T, class S, int kTensors, int kRows>
class RowRing {
 public:
  static constexpr bool kBulk = S::W > 1;

  struct Source {
    const T* data;
    std::int64_t stride;
  };

  /// All threads of the block. Fills the stages with the block's first rows.
  __device__ RowRing(const RingShape& shape, char* shared, const Source (&sources)[kTensors],
                     const BlockRows& rows)
      : shape_(shape), shared_(shared), rows_(rows) {
#pragma unroll
    for (int i = 0; i < kTensors; ++i) sources_[i] = sources[i];
    if constexpr (kBulk) {
      if (threadIdx.x == 0) {
        for (int i = 0; i < shape.stages; ++i) hopper::barrier_init(barrier(i), 1);
        hopper::fence_barrier_init();
      }
      __syncthreads();
    }
    for (int i = 0; i < shape.stages; ++i) fill(rows.begin + i * kRows, i);
  }

  /// Waits for the rows that the ring is at.
  __device__ void wait() const {
    if constexpr (kBulk) hopper::wait(barrier(stage_), phase_);
  }

  /// Pack at element `at` of row j of those rows, of tensor i.
  __device__ Pack<T, S::W> get(int i, int j, int at) const {
    return Pack<T, S::W>::load(place(stage_, i, j) + at);
  }

  /// `row`: the first row that the ring is at. On to the next kRows, once all threads are past their reads;
  /// the stage that becomes free is filled again.
  __device__ void next(std::int64_t row) {
    if constexpr (kBulk) __syncthreads();
    fill(row + shape_.stages * kRows, stage_);
    if (++stage_ == shape_.stages) stage_ = 0, phase_ ^= 1;
  }

 private:
  __device__ std::uint32_t barrier(int stage) const {
    return hopper::shared_address(shared_) + static_cast<std::uint32_t>(stage) * 8;
  }
  __device__ T* place(int stage, int i, int j) const {
    return reinterpret_cast<T*>(shared_ + RingShape::kHeader +
                                ((stage * kRows + j) * kTensors + i) * shape_.row_bytes);
  }

  __device__ void fill(std::int64_t row, int stage) const {
    const int count = static_cast<int>(min(std::int64_t{kRows}, rows_.end - row));
    if (count <= 0) return;
    if constexpr (kBulk) {
      if (threadIdx.x != 0) return;
      const auto bytes = static_cast<std::uint32_t>(shape_.row_bytes);
      hopper::arrive_expect(barrier(stage), bytes * static_cast<std::uint32_t>(count * kTensors));
      for (int j = 0; j < count; ++j) {
#pragma unroll
        for (int i = 0; i < kTensors; ++i)
          hopper::bulk_load(hopper::shared_address(place(stage, i, j)),
                            sources_[i].data + (row + j) * sources_[i].stride, bytes, barrier(stage));
      }
    } else {
      for (int j = 0; j < count; ++j) {
#pragma unroll
        for (int i = 0; i < kTensors; ++i) {
          for (int at = static_cast<int>(threadIdx.x); at < shape_.n; at += static_cast<int>(blockDim.x))
            place(stage, i, j)[at] = sources_[i].data[(row + j) * sources_[i].stride + at];
        }
      }
    }
  }

  const RingShape& shape_;
  char* shared_;
  Source sources_[kTensors];
  BlockRows rows_;
  int stage_ = 0;
  std::uint32_t phase_ = 0;
};

/// Allows a kernel its shared memory (once a kernel) and starts it.
template <class... Parameters, class... Arguments>
void launch_ring(const char* op, void (*kernel)(Parameters...), std::int64_t blocks, int threads,
                 std::size_t shared_bytes, Stream& stream, const Arguments&... arguments) {
  cuda_ok(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          op);
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes,
           cuda_stream(stream)>>>(arguments...);
  launched(op);
}

}  // namespace lapidary
