// Sums over ranks and sums of squares: both walk once over a gradient, and the blocks' partial sums of
// squares are added in order.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/partials.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kThreads = static_cast<int>(kRankSumThreads);
constexpr int kAddThreads = 1024;
constexpr auto kBlocks = static_cast<unsigned>(kNormBlocks);

template <class T>
__device__ inline double square(T x) {
  double y;
  if constexpr (std::is_same_v<T, double>) {
    y = x;
  } else {
    y = to_float(x);
  }
  return y * y;
}

/// The sum of x over the block's threads, added in a fixed order.
__device__ inline void store_block_sum(double x, double* to) {
  __shared__ double shared[32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  if (warp > 0) return;
  x = warp_sum(lane < static_cast<int>(blockDim.x) / 32 ? shared[lane] : 0.0);
  if (lane == 0) *to = x;
}

/// One f64 per block. A block's elements lie apart by the whole grid; the order of additions is fixed.
template <class T>
__global__ void __launch_bounds__(kThreads) squared_norm(const T* x, std::int64_t n, double* partial) {
  constexpr int kAhead = 8;
  double sum = 0.0;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += stride * kAhead) {
    T ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) ahead[k] = i + k * stride < n ? x[i + k * stride] : T(0.0f);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) sum += square(ahead[k]);
  }
  store_block_sum(sum, partial + blockIdx.x);
}

/// Packs of eight bf16, the form of every large gradient.
__global__ void __launch_bounds__(kThreads)
    squared_norm_packed(const Bf16* x, std::int64_t packs, double* partial) {
  constexpr int kAhead = 4, W = 8;
  double sum = 0.0;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs;
       i += stride * kAhead) {
    Pack<Bf16, W> ahead[kAhead] = {};
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (i + k * stride < packs) ahead[k] = Pack<Bf16, W>::load(x + (i + k * stride) * W);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
#pragma unroll
      for (int w = 0; w < W; ++w) sum += square(ahead[k].get(w));
    }
  }
  store_block_sum(sum, partial + blockIdx.x);
}

template <bool kAdd>
__global__ void __launch_bounds__(kAddThreads) add_squares(const double* partial, int parts, double* total) {
  double sum[1] = {0.0};
  for (int i = static_cast<int>(threadIdx.x); i < parts; i += kAddThreads) sum[0] += partial[i];
  block_sum(sum);
  if (threadIdx.x == 0) *total = kAdd ? *total + sum[0] : sum[0];
}

template <class T>
struct RankParts {
  const T *own, *others;
  T* out;
  std::int64_t n;
  int rank, others_count;
  bool accumulate;
  double* squares;  // one per block; null: not wanted
};

/// kPacks packs per thread, a block's width apart. The loads of two ranks are on their way before the first
/// is added: with one at a time a sum of two ranks ran at 0.92 of the rate of a copy.
template <class T, int W>
__global__ void __launch_bounds__(kThreads) rank_sum(const __grid_constant__ RankParts<T> p) {
  constexpr int kPacks = static_cast<int>(kRankSumPacks), kRanks = 2;
  const auto at = [&](int k) {
    return ((static_cast<std::int64_t>(blockIdx.x) * kPacks + k) * kThreads + threadIdx.x) * W;
  };
  using P = Pack<T, W>;
  float sum[kPacks][W] = {};
  const auto add = [&](int k, const P& pack) {
#pragma unroll
    for (int i = 0; i < W; ++i) sum[k][i] += pack.get(i);
  };
  P before[kPacks] = {};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (p.accumulate && at(k) < p.n) before[k] = P::load(p.out + at(k));
  }
  for (int first = 0; first <= p.others_count; first += kRanks) {
    P parts[kRanks][kPacks] = {};
#pragma unroll
    for (int j = 0; j < kRanks; ++j) {
      const int r = first + j;
      const T* part =
          r == p.rank ? p.own : p.others + static_cast<std::int64_t>(r < p.rank ? r : r - 1) * p.n;
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (r <= p.others_count && at(k) < p.n) parts[j][k] = P::load(part + at(k));
      }
    }
#pragma unroll
    for (int j = 0; j < kRanks; ++j) {
      if (first + j > p.others_count) break;
#pragma unroll
      for (int k = 0; k < kPacks; ++k) add(k, parts[j][k]);
    }
  }
  double squares = 0.0;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (at(k) >= p.n) continue;
    if (p.accumulate) add(k, before[k]);
    const auto pack = P::from(sum[k]);
    pack.store(p.out + at(k));
#pragma unroll
    for (int i = 0; i < W; ++i) squares += square(pack.get(i));
  }
  if (p.squares != nullptr) store_block_sum(squares, p.squares + blockIdx.x);
}

}  // namespace

void SquaredNorm::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t n = x.numel();
  if (n == 0) return;
  auto* partial = reinterpret_cast<double*>(scratch.data());
  const cudaStream_t native = cuda_stream(stream);
  if (x.dtype() == DType::f64) {
    squared_norm<double><<<kBlocks, kThreads, 0, native>>>(ptr<double>(x), n, partial);
  } else if (x.dtype() == DType::bf16 && n % 8 == 0 && reinterpret_cast<std::uintptr_t>(x.data()) % 16 == 0) {
    squared_norm_packed<<<kBlocks, kThreads, 0, native>>>(ptr<Bf16>(x), n / 8, partial);
  } else {
    with_float_type("SquaredNorm", x.dtype(), [&](auto type) {
      using T = typename decltype(type)::type;
      squared_norm<T><<<kBlocks, kThreads, 0, native>>>(ptr<T>(x), n, partial);
    });
  }
  launched("SquaredNorm");
  add_squares<true><<<1, kAddThreads, 0, native>>>(partial, static_cast<int>(kBlocks), ptr<double>(sum));
  launched("SquaredNorm");
}

void RankSum::cuda(Stream& stream) const {
  check(*this);
  const cudaStream_t native = cuda_stream(stream);
  auto* partial = squares ? reinterpret_cast<double*>(scratch.data()) : nullptr;
  unsigned blocks = 0;
  with_row_type("RankSum", out.dtype(), aligned(16, {&own, &others, &out}), [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    constexpr int W = RowShape<T, vector>::W;
    const RankParts<T> p{.own = ptr<T>(own),
                         .others = ptr<T>(others),
                         .out = ptr<T>(out),
                         .n = out.numel(),
                         .rank = static_cast<int>(rank),
                         .others_count = static_cast<int>(others.rows()),
                         .accumulate = accumulate,
                         .squares = partial};
    blocks = blocks_for(ceil_div(p.n, W), kThreads * static_cast<int>(kRankSumPacks));
    rank_sum<T, W><<<blocks, kThreads, 0, native>>>(p);
  });
  launched("RankSum");
  if (!squares) return;
  add_squares<false><<<1, kAddThreads, 0, native>>>(partial, static_cast<int>(blocks), ptr<double>(squares));
  launched("RankSum");
}

}  // namespace lapidary
