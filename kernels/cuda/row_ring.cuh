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
  static constexpr int kHeader = 16 * kMaxStages + 64;  ///< two barriers a stage, to a multiple of 128
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

/// A ring of stages; each holds kRows neighbouring rows of each of kTensors tensors. The block's last warp is
/// the producer, the others own the packs of a row (RowShape S), and each thread reads only its own. Vector
/// shapes travel by bulk copies; others are copied by each thread for itself.
template <class T, class S, int kTensors, int kRows>
class RowRing {
 public:
  static constexpr bool kBulk = S::W > 1;

  struct Source {
    const T* data;
    std::int64_t stride;
  };

  /// All threads of the block.
  __device__ RowRing(const RingShape& shape, char* shared, const Source (&sources)[kTensors],
                     const BlockRows& rows)
      : shape_(shape), shared_(shared), rows_(rows) {
#pragma unroll
    for (int i = 0; i < kTensors; ++i) sources_[i] = sources[i];
    if constexpr (kBulk) {
      if (threadIdx.x == 0) {
        for (int i = 0; i < shape.stages; ++i) {
          hopper::barrier_init(full(i), 1);
          hopper::barrier_init(empty(i), static_cast<std::uint32_t>(threads() / 32));
        }
        hopper::fence_barrier_init();
      }
      __syncthreads();
    }
  }

  /// Threads that own packs.
  __device__ static int threads() {
    return static_cast<int>(blockDim.x) - 32;
  }
  __device__ static bool produces() {
    return static_cast<int>(threadIdx.x) >= threads();
  }

  /// The producer warp: brings all of the block's rows.
  __device__ void produce() {
    if constexpr (kBulk) {
      // One elected thread: then the copies' operands need no search for lanes that differ.
      if (!hopper::elect_one()) return;
      for (std::int64_t row = rows_.begin; row < rows_.end; row += kRows) {
        hopper::wait(empty(stage_), phase_ ^ 1);
        bring(row);
        step();
      }
    }
  }

  /// Waits for the rows from `row` on, the next ones of the block.
  __device__ void wait(std::int64_t row) {
    if constexpr (kBulk) {
      hopper::wait(full(stage_), phase_);
    } else {
      copy(row);
    }
  }

  /// Pack at element `at` of row j of those rows, of tensor i.
  __device__ Pack<T, S::W> get(int i, int j, int at) const {
    return Pack<T, S::W>::load(place(i, j) + at);
  }

  /// This thread has read what it needs of those rows.
  __device__ void release() {
    if constexpr (kBulk) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) hopper::arrive(empty(stage_));
      step();
    }
  }

  /// Sums over the threads that own packs.
  template <int M>
  __device__ static void sum(float (&x)[M]) {
    sum_over_warps(x, threads() / 32, [] { hopper::named_sync(1, static_cast<std::uint32_t>(threads())); });
  }

 private:
  __device__ std::uint32_t full(int stage) const {
    return hopper::shared_address(shared_) + static_cast<std::uint32_t>(stage) * 16;
  }
  __device__ std::uint32_t empty(int stage) const {
    return full(stage) + 8;
  }
  __device__ T* place(int i, int j) const {
    return reinterpret_cast<T*>(shared_ + RingShape::kHeader +
                                ((stage_ * kTensors + i) * kRows + j) * shape_.row_bytes);
  }
  __device__ void step() {
    if (++stage_ == shape_.stages) stage_ = 0, phase_ ^= 1;
  }

  __device__ void bring(std::int64_t row) const {
    const auto count = static_cast<int>(min(std::int64_t{kRows}, rows_.end - row));
    const auto bytes = static_cast<std::uint32_t>(shape_.row_bytes);
    hopper::arrive_expect(full(stage_), bytes * static_cast<std::uint32_t>(count * kTensors));
#pragma unroll
    for (int i = 0; i < kTensors; ++i) {
      const T* from = sources_[i].data + row * sources_[i].stride;
      const std::uint32_t to = hopper::shared_address(place(i, 0));
      if (sources_[i].stride == shape_.n) {  // rows end to end
        hopper::bulk_load(to, from, bytes * static_cast<std::uint32_t>(count), full(stage_));
        continue;
      }
      for (int j = 0; j < count; ++j)
        hopper::bulk_load(to + bytes * static_cast<std::uint32_t>(j), from + j * sources_[i].stride, bytes,
                          full(stage_));
    }
  }

  __device__ void copy(std::int64_t row) const {
    for (int j = 0; j < kRows && row + j < rows_.end; ++j) {
#pragma unroll
      for (int i = 0; i < kTensors; ++i) {
        for (int at = static_cast<int>(threadIdx.x); at < shape_.n; at += threads())
          place(i, j)[at] = sources_[i].data[(row + j) * sources_[i].stride + at];
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

/// As with_row_type for kernels that walk over rows through a ring: f(Type<T>, RowShape). One pack a thread
/// where a block can hold the row so; a multiprocessor's registers then give 128 to each of 512 threads, the
/// producer's included.
template <class F>
void with_row_ring(const char* op, DType dtype, bool vector, std::int64_t n, F&& f) {
  with_row_type(op, dtype, vector, [&](auto type, auto is_vector) {
    using T = typename decltype(type)::type;
    constexpr int kThreads = 480, kPacks = is_vector ? 4 : 9;
    using Wide = RowShape<T, is_vector, 1, kThreads>;
    if (n <= Wide::kMaxThreads * Wide::W) return f(type, Wide{});
    f(type, RowShape<T, is_vector, kPacks, kThreads>{});
  });
}

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
