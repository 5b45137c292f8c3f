// Fill, copy, add, biases, features: one pack per thread, rows in y (or all in x where rows lie end to end).
#include "kernels/adamw_update.h"
#include "kernels/cuda/dependent_launch.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/partials.h"
#include "kernels/dtype.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxGridY = 65535;

/// [rows, n] with row strides; one row where everything lies end to end.
struct Extent {
  std::int64_t rows, n;
};

Extent extent(std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  const bool flat =
      std::all_of(tensors.begin(), tensors.end(), [](const Tensor* x) { return x->contiguous(); });
  return flat ? Extent{1, first.numel()} : Extent{first.rows(), first.cols()};
}

dim3 grid_for(const Extent& e, int pack) {
  return dim3(blocks_for(ceil_div(e.n, pack), kThreads), static_cast<unsigned>(std::min(e.rows, kMaxGridY)));
}

/// Calls f(row, column) for the packs of an extent that this thread owns.
template <int W, class F>
__device__ inline void for_elements(Extent e, F&& f) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * W;
  if (at >= e.n) return;
  for (std::int64_t r = blockIdx.y; r < e.rows; r += gridDim.y) f(r, at);
}

template <class U>
__global__ void fill(U* x, std::int64_t stride, Extent e, U value) {
  for_elements<1>(e, [&](std::int64_t r, std::int64_t at) { x[r * stride + at] = value; });
}

template <class U>
void fill_with(Stream& stream, const Tensor& x, U value) {
  const Extent e = extent({&x});
  fill<U><<<grid_for(e, 1), kThreads, 0, cuda_stream(stream)>>>(static_cast<U*>(x.data()), x.row_stride(), e,
                                                                value);
  launched("Fill");
}

/// out = in, or out += in.
template <class T, class A, int W, bool kAdd>
__global__ void convert(const T* in, std::int64_t in_stride, A* out, std::int64_t out_stride, Extent e) {
  for_elements<W>(e, [&](std::int64_t r, std::int64_t at) {
    const auto x = Pack<T, W>::load(in + r * in_stride + at);
    A* to = out + r * out_stride + at;
    float y[W];
#pragma unroll
    for (int i = 0; i < W; ++i) y[i] = x.get(i);
    if constexpr (kAdd) {
      const auto before = Pack<A, W>::load(to);
#pragma unroll
      for (int i = 0; i < W; ++i) y[i] += before.get(i);
    }
    Pack<A, W>::from(y).store(to);
  });
}

template <bool kAdd>
void convert_to(Stream& stream, const char* op, const Tensor& in, const Tensor& out) {
  const Extent e = extent({&in, &out});
  if (e.n == 0 || e.rows == 0) return;
  with_float_type(op, in.dtype(), [&](auto from) {
    with_float_type(op, out.dtype(), [&](auto to) {
      using T = typename decltype(from)::type;
      using A = typename decltype(to)::type;
      // Four elements: 16 bytes of float32, 8 of bf16.
      const auto fits = [](const Tensor& x) {
        const std::size_t size = 4 * size_of(x.dtype());
        const std::size_t stride = static_cast<std::size_t>(x.row_stride()) * size_of(x.dtype());
        return reinterpret_cast<std::uintptr_t>(x.data()) % size == 0 &&
               (x.contiguous() || stride % size == 0);
      };
      const auto go = [&](auto width) {
        constexpr int W = width;
        convert<T, A, W, kAdd><<<grid_for(e, W), kThreads, 0, cuda_stream(stream)>>>(
            ptr<T>(in), in.row_stride(), ptr<A>(out), out.row_stride(), e);
      };
      if (e.n % 4 == 0 && fits(in) && fits(out)) {
        go(Int<4>{});
      } else {
        go(Int<1>{});
      }
    });
  });
  launched(op);
}

template <class T, int W>
__global__ void add_bias(T* x, const T* bias, Extent e) {
  for_elements<W>(e, [&](std::int64_t r, std::int64_t at) {
    const auto a = Pack<T, W>::load(x + r * e.n + at), b = Pack<T, W>::load(bias + at);
    float y[W];
#pragma unroll
    for (int i = 0; i < W; ++i) y[i] = a.get(i) + b.get(i);
    Pack<T, W>::from(y).store(x + r * e.n + at);
  });
}

/// partial[block of rows, column]: one thread per column walks over the block's rows.
template <class T>
__global__ void column_sums(const T* x, std::int64_t rows, std::int64_t n, float* partial) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= n) return;
  const std::int64_t begin = blockIdx.y * kBiasRows, end = min(rows, begin + kBiasRows);
  float sum = 0.0f;
#pragma unroll 8
  for (std::int64_t r = begin; r < end; ++r) sum += to_float(x[r * n + column]);
  partial[blockIdx.y * n + column] = sum;
}

/// d[column] += the partial sums of the column: 32 groups of rows, each in order, then the groups by a tree.
/// Blocks of y = 1 do the same for `other` and the rows that follow.
template <class A>
__global__ void __launch_bounds__(1024)
    add_partials(const float* partial, std::int64_t rows, std::int64_t n, A* d, A* other) {
  constexpr int kColumns = 32, kGroups = 32;
  __shared__ float shared[kGroups][kColumns + 1];
  const int lane = static_cast<int>(threadIdx.x) % kColumns, group = static_cast<int>(threadIdx.x) / kColumns;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kColumns;
  if (blockIdx.y > 0) partial += rows * n, d = other;
  // What no kernel before writes any more is loaded while the last of them ends.
  const bool owns = lane == 0 && first + group < n;
  const float before = owns ? to_float(d[first + group]) : 0.0f;
  hopper::wait_for_previous();
  float sum = 0.0f;
  if (first + lane < n) {
#pragma unroll 8
    for (std::int64_t r = group; r < rows; r += kGroups) sum += partial[r * n + first + lane];
  }
  shared[group][lane] = sum;
  __syncthreads();
  sum = warp_sum(shared[lane][group]);
  if (owns) d[first + group] = from_float<A>(before + sum);
}

template <class T>
__global__ void convert_features(const std::uint8_t* in, T* out, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) out[i] = from_float<T>(static_cast<float>(in[i]) * (1.0f / 255.0f));
}

template <class T>
__global__ void convert_features(const std::int16_t* in, T* out, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) out[i] = from_float<T>(static_cast<float>(in[i]) * 0x1p-15f);
}

/// Two normal numbers share a block of random bits; one thread makes both.
template <class T>
__global__ void fill_normal(T* out, std::int64_t n, double mean, double std, std::uint64_t seed,
                            std::uint64_t sequence, std::int64_t first_index) {
  const std::int64_t pair = first_index / 2 + static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t even = 2 * pair - first_index;
  if (even >= n) return;
  const PhiloxBlock block = normal_block(seed, sequence, static_cast<std::uint64_t>(pair));
  const double radius = sqrt(-2.0 * log(uniform_above_zero(block)));
  double sine, cosine;
  sincospi(2.0 * uniform_below_one(block), &sine, &cosine);
  const auto rounded_once = [](double x) {
    if constexpr (std::is_same_v<T, float>) {
      return static_cast<float>(x);
    } else {
      return __double2bfloat16(x);
    }
  };
  if (even >= 0) out[even] = rounded_once(mean + std * radius * cosine);
  if (even + 1 < n) out[even + 1] = rounded_once(mean + std * radius * sine);
}

}  // namespace

void add_row_sums(Stream& stream, const float* partial, std::int64_t rows, std::int64_t n, const Tensor& d,
                  const Tensor& other) {
  with_float_type("a weight gradient", d.dtype(), [&](auto type) {
    using A = typename decltype(type)::type;
    launch_dependent("sums of a weight gradient", add_partials<A>, dim3(blocks_for(n, 32), other ? 2 : 1),
                     1024, 0, cuda_stream(stream), partial, rows, n, ptr<A>(d), ptr_or_null<A>(other));
  });
  launched("sums of a weight gradient");
}

void Fill::cuda(Stream& stream) const {
  check(*this);
  if (x.numel() == 0) return;
  if (value == 0.0 && x.contiguous()) {
    cuda_ok(cudaMemsetAsync(x.data(), 0, x.bytes(), cuda_stream(stream)), "Fill");
    return;
  }
  switch (x.dtype()) {
    case DType::f64:
      return fill_with(stream, x, value);
    case DType::f32:
      return fill_with(stream, x, static_cast<float>(value));
    case DType::bf16:
      return fill_with(stream, x, bf16(static_cast<float>(value)).bits);
    case DType::i64:
      return fill_with(stream, x, static_cast<std::int64_t>(value));
    case DType::i32:
      return fill_with(stream, x, static_cast<std::int32_t>(value));
    case DType::i16:
      return fill_with(stream, x, static_cast<std::int16_t>(value));
    case DType::u8:
      return fill_with(stream, x, static_cast<std::uint8_t>(value));
  }
}

void Copy::cuda(Stream& stream) const {
  check(*this);
  if (in.dtype() != out.dtype()) return convert_to<false>(stream, "Copy", in, out);
  if (in.numel() == 0) return;
  const std::size_t size = size_of(in.dtype()), row = static_cast<std::size_t>(in.cols()) * size;
  if (in.contiguous() && out.contiguous()) {
    cuda_ok(cudaMemcpyAsync(out.data(), in.data(), in.bytes(), cudaMemcpyDeviceToDevice, cuda_stream(stream)),
            "Copy");
  } else {
    cuda_ok(
        cudaMemcpy2DAsync(out.data(), static_cast<std::size_t>(out.row_stride()) * size, in.data(),
                          static_cast<std::size_t>(in.row_stride()) * size, row,
                          static_cast<std::size_t>(in.rows()), cudaMemcpyDeviceToDevice, cuda_stream(stream)),
        "Copy");
  }
}

void Add::cuda(Stream& stream) const {
  check(*this);
  convert_to<true>(stream, "Add", in, out);
}

void AddBias::cuda(Stream& stream) const {
  check(*this);
  const Extent e{x.rows(), x.cols()};
  if (x.numel() == 0) return;
  with_row_type("AddBias", x.dtype(), aligned(16, {&x, &bias}), [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    constexpr int W = RowShape<T, vector>::W;
    add_bias<T, W><<<grid_for(e, W), kThreads, 0, cuda_stream(stream)>>>(ptr<T>(x), ptr<T>(bias), e);
  });
  launched("AddBias");
}

void BiasBackward::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = dy.rows(), n = dy.cols();
  if (dy.numel() == 0) return;
  float* partial = reinterpret_cast<float*>(scratch.data());
  const std::int64_t parts = bias_partial_rows(rows);
  with_float_type("BiasBackward", dy.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const dim3 grid(blocks_for(n, kThreads), static_cast<unsigned>(parts));
    column_sums<T><<<grid, kThreads, 0, cuda_stream(stream)>>>(ptr<T>(dy), rows, n, partial);
  });
  launched("BiasBackward");
  add_row_sums(stream, partial, parts, n, d_bias);
}

void ConvertFeatures::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t n = in.numel();
  if (n == 0) return;
  if (in.dtype() == DType::f32) return convert_to<false>(stream, "ConvertFeatures", in, out);
  with_float_type("ConvertFeatures", out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const unsigned blocks = blocks_for(n, kThreads);
    if (in.dtype() == DType::u8) {
      convert_features<T>
          <<<blocks, kThreads, 0, cuda_stream(stream)>>>(ptr<std::uint8_t>(in), ptr<T>(out), n);
    } else {
      convert_features<T>
          <<<blocks, kThreads, 0, cuda_stream(stream)>>>(ptr<std::int16_t>(in), ptr<T>(out), n);
    }
  });
  launched("ConvertFeatures");
}

void FillNormal::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t n = out.numel();
  if (n == 0) return;
  with_float_type("FillNormal", out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    fill_normal<T><<<blocks_for(n / 2 + 1, kThreads), kThreads, 0, cuda_stream(stream)>>>(
        ptr<T>(out), n, mean, std, seed, this->stream, first_index);
  });
  launched("FillNormal");
}

}  // namespace lapidary
