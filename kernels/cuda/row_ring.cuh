// Rows on their way to shared memory ahead of their use: how a block that walks over rows keeps enough bytes
// in flight to use all of the memory's bandwidth while it waits for its own reductions.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary {

/// The rows of one of all the walkers of a grid: every `step`-th, so that all walk along one front and memory
/// sees long runs of neighbouring addresses.
struct WalkedRows {
  int row, step, end;
  __device__ WalkedRows(int rows, int walker, int walkers)
      : row(walker * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)),
        step(static_cast<int>(gridDim.x) * walkers),
        end(rows) {}
  __device__ bool more() const { return row < end; }
};

/// How a ring lies in shared memory; made on the host.
struct RingShape {
  int n;          ///< elements of a row
  int row_bytes;  ///< a row's place, a multiple of 16
  int stages;
  std::int64_t bytes;  ///< of shared memory

  static constexpr int kMaxStages = 8;
  static constexpr int kHeader = 128;  ///< a barrier a stage, to a multiple of 128
  /// More bytes in flight would make memory slower, not faster.
  static constexpr std::size_t kShared = std::size_t{140} << 10;

  /// Where the first ring's rows begin. A kernel that is done with them may use their memory for n floats, if
  /// it reads two tensors or more; that of the barriers serves nothing else [mbarrier.inval].
  __device__ static float* rows(char* shared) { return reinterpret_cast<float*>(shared + kHeader); }

  /// walkers: of a block, each with a ring of its own.
  RingShape(const char* op, std::int64_t length, std::size_t element, int tensors, int walkers)
      : n(static_cast<int>(length)), row_bytes(static_cast<int>(ceil_div(n * element, 16) * 16)) {
    const std::size_t stage = static_cast<std::size_t>(row_bytes) * static_cast<std::size_t>(tensors);
    const std::size_t room = kShared / static_cast<std::size_t>(walkers) - kHeader;
    stages = static_cast<int>(std::min<std::size_t>(kMaxStages, room / stage));
    if (stages == 0)
      throw Error(std::string(op) + ": rows of " + std::to_string(n) +
                  " elements are longer than the GPU kernel's shared memory holds");
    bytes =
        ceil_div(static_cast<std::int64_t>(kHeader + static_cast<std::size_t>(stages) * stage), 128) * 128;
  }
};

/// The threads of a block that walk over rows together: `threads` neighbours, a multiple of 32.
struct Walker {
  int number, threads, thread;

  __device__ explicit Walker(int walkers)
      : number(0), threads(static_cast<int>(blockDim.x) / walkers), thread(static_cast<int>(threadIdx.x)) {
    if (walkers > 1 && thread >= threads) number = 1, thread -= threads;
  }
  __device__ void sync() const {
    hopper::named_sync(static_cast<std::uint32_t>(1 + number), static_cast<std::uint32_t>(threads));
  }
};

/// A ring of stages, each one row of each of kTensors tensors. The walker's threads own the packs of a row
/// (RowShape S) and each reads only its own. Vector shapes travel by bulk copies that the first warp starts;
/// others are copied by each thread for itself.
template <class T, class S, int kTensors>
class RowRing {
 public:
  static constexpr bool kBulk = S::W > 1;

  struct Source {
    const T* data;
    std::int64_t stride;
  };

  /// All threads of the walker; starts the copies of its first rows.
  __device__ RowRing(const RingShape& shape, char* shared, const Source (&sources)[kTensors],
                     const Walker& walker, const WalkedRows& rows)
      : shape_(shape), shared_(shared + walker.number * shape.bytes), walker_(walker), rows_(rows) {
#pragma unroll
    for (int i = 0; i < kTensors; ++i) sources_[i] = sources[i];
    if constexpr (kBulk) {
      if (walker.thread == 0) {
        for (int i = 0; i < shape.stages; ++i) hopper::barrier_init(full(i), 1);
        hopper::fence_barrier_init();
      }
      walker.sync();
      if (starts_copies()) {
        for (int i = 0; i < shape.stages; ++i) bring(i, i);
      }
      __syncwarp();
    }
  }

  /// The row that wait() waits for.
  __device__ int row() const {
    return rows_.row;
  }
  __device__ bool more() const {
    return rows_.more();
  }

  __device__ void wait() {
    if constexpr (kBulk) {
      hopper::wait(full(stage_), phase_);
    } else {
      copy();
    }
  }

  /// Pack at element `at` of the row, of tensor i.
  __device__ Pack<T, S::W> get(int i, int at) const {
    return Pack<T, S::W>::load(place(stage_, i) + at);
  }

  /// Once a row, behind a barrier of the walker that follows wait(): no thread reads the row before any more,
  /// and another takes its place.
  __device__ void refill() {
    if constexpr (kBulk) {
      if (freed_ >= 0 && starts_copies()) bring(shape_.stages - 1, freed_);
      __syncwarp();
    }
  }

  /// This thread has read what it needs of the row.
  __device__ void next() {
    rows_.row += rows_.step;
    if constexpr (kBulk) {
      if (shape_.stages == 1) {  // nothing else to wait for while the next row comes
        walker_.sync();
        if (starts_copies()) bring(0, 0);
        __syncwarp();
      } else {
        freed_ = stage_;
      }
      if (++stage_ == shape_.stages) stage_ = 0, phase_ ^= 1;
    }
  }

 private:
  __device__ bool starts_copies() const {
    // One elected thread: then the copies' operands need no search for lanes that differ.
    return walker_.thread < 32 && hopper::elect_one();
  }
  __device__ std::uint32_t full(int stage) const {
    return hopper::shared_address(shared_) + static_cast<std::uint32_t>(stage) * 8;
  }
  __device__ T* place(int stage, int i) const {
    return reinterpret_cast<T*>(shared_ + RingShape::kHeader + (stage * kTensors + i) * shape_.row_bytes);
  }

  /// Brings the row `ahead` behind the present one, if there is one.
  __device__ void bring(int ahead, int stage) const {
    const int row = rows_.row + ahead * rows_.step;
    if (row >= rows_.end) return;
    const auto bytes = static_cast<std::uint32_t>(shape_.row_bytes);
    hopper::arrive_expect(full(stage), bytes * kTensors);
#pragma unroll
    for (int i = 0; i < kTensors; ++i)
      hopper::bulk_load(hopper::shared_address(place(stage, i)), sources_[i].data + row * sources_[i].stride,
                        bytes, full(stage));
  }

  __device__ void copy() const {
#pragma unroll
    for (int i = 0; i < kTensors; ++i) {
      for (int at = walker_.thread; at < shape_.n; at += walker_.threads)
        place(0, i)[at] = sources_[i].data[rows_.row * sources_[i].stride + at];
    }
  }

  const RingShape& shape_;
  char* shared_;
  Source sources_[kTensors];
  const Walker& walker_;
  WalkedRows rows_;
  int stage_ = 0, freed_ = -1;
  std::uint32_t phase_ = 0;
};

/// Sums over a walker's threads, the same in each, with one barrier: consecutive ones use different shared
/// memory.
template <int kWalkers>
class WalkerSums {
 public:
  __device__ explicit WalkerSums(const Walker& walker) : walker_(walker) {}

  __device__ float operator()(float x) {
    __shared__ float shared[kWalkers][2][32];
    float* parts = shared[walker_.number][turn_];
    const int lane = walker_.thread % 32;
    x = warp_sum(x);
    if (lane == 0) parts[walker_.thread / 32] = x;
    walker_.sync();
    x = warp_sum(lane < walker_.threads / 32 ? parts[lane] : 0.0f);
    turn_ ^= 1;
    return x;
  }

 private:
  const Walker& walker_;
  int turn_ = 0;
};

/// As with_row_type for kernels that walk over rows through a ring: f(Type<T>, RowShape, walkers of a block).
/// Two walkers overlap each other's reductions; a block then has a multiprocessor to itself.
template <class F>
void with_row_ring(const char* op, DType dtype, bool vector, std::int64_t n, F&& f) {
  with_row_type(op, dtype, vector, [&](auto type, auto is_vector) {
    using T = typename decltype(type)::type;
    using Short = RowShape<T, is_vector, is_vector ? 2 : 8, 256>;
    if (n <= Short::kMaxThreads * Short::K * Short::W) return f(type, Short{}, Int<2>{});
    f(type, RowShape < T, is_vector, is_vector ? 4 : 9, 512 > {}, Int<1>{});
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
