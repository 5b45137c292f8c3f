// The gated activation and its backward. Everything is elementwise: one pack per thread, read once.
#include "kernels/cuda/device.cuh"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr float kC = 0.7978845608028654f;  // sqrt(2 / pi)

struct Gelu {
  float value, slope;
};

/// gelu_tanh and its derivative (specification 3.5).
template <class T>
__device__ inline Gelu gelu(float z) {
  const float t = tanh_for<T>(kC * (z + 0.044715f * z * z * z));
  return {0.5f * z * (1.0f + t),
          0.5f * (1.0f + t) + 0.5f * z * (1.0f - t * t) * kC * (1.0f + 0.134145f * z * z)};
}

/// Row in x, packs of the row in y.
template <class T, int W>
__global__ void geglu(const T* gate_up, T* out, int width) {
  const std::int64_t row = blockIdx.x;
  const int at = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * W;
  if (at >= width) return;
  const T* in = gate_up + row * 2 * width + at;
  const auto gate = Pack<T, W>::load(in), up = Pack<T, W>::load(in + width);
  float y[W];
#pragma unroll
  for (int i = 0; i < W; ++i) y[i] = rounded<T>(gelu<T>(gate.get(i)).value) * up.get(i);
  Pack<T, W>::from(y).store(out + row * width + at);
}

template <class T, int W>
__global__ void geglu_backward(const T* d_out, const T* gate_up, T* d_gate_up, T* out, int width) {
  const std::int64_t row = blockIdx.x;
  const int at = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * W;
  if (at >= width) return;
  const std::int64_t wide = row * 2 * width + at, narrow = row * width + at;
  const auto d = Pack<T, W>::load(d_out + narrow);
  const auto gate = Pack<T, W>::load(gate_up + wide), up = Pack<T, W>::load(gate_up + wide + width);
  float d_gate[W], d_up[W], y[W];
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const Gelu g = gelu<T>(gate.get(i));
    const float value = rounded<T>(g.value);
    d_gate[i] = d.get(i) * up.get(i) * g.slope;
    d_up[i] = d.get(i) * value;
    y[i] = value * up.get(i);
  }
  Pack<T, W>::from(d_gate).store(d_gate_up + wide);
  Pack<T, W>::from(d_up).store(d_gate_up + wide + width);
  if (out) Pack<T, W>::from(y).store(out + narrow);
}

struct Launch {
  dim3 grid;
  int threads;
};

/// The row is cut evenly, so that no block is half empty.
Launch cut(std::int64_t rows, std::int64_t packs) {
  const std::int64_t pieces = ceil_div(packs, 256);
  return {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(pieces)),
          static_cast<int>(ceil_div(packs, pieces))};
}

}  // namespace

void GeGlu::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = out.rows(), width = out.cols();
  if (rows == 0 || width == 0) return;
  with_row_type("GeGlu", out.dtype(), aligned(16, {&gate_up, &out}), [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    constexpr int W = RowShape<T, vector>::W;
    const Launch launch = cut(rows, width / W);
    geglu<T, W><<<launch.grid, launch.threads, 0, cuda_stream(stream)>>>(ptr<T>(gate_up), ptr<T>(out),
                                                                         static_cast<int>(width));
  });
  launched("GeGlu");
}

void GeGluBackward::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = d_out.rows(), width = d_out.cols();
  if (rows == 0 || width == 0) return;
  const bool vector = aligned(16, {&d_out, &gate_up, &d_gate_up, &out});
  with_row_type("GeGluBackward", d_out.dtype(), vector, [&](auto type, auto is_vector) {
    using T = typename decltype(type)::type;
    constexpr int W = RowShape<T, is_vector>::W;
    const Launch launch = cut(rows, width / W);
    geglu_backward<T, W><<<launch.grid, launch.threads, 0, cuda_stream(stream)>>>(
        ptr<T>(d_out), ptr<T>(gate_up), ptr<T>(d_gate_up), ptr_or_null<T>(out), static_cast<int>(width));
  });
  launched("GeGluBackward");
}

}  // namespace lapidary
