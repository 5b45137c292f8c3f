// RMS norms, the fused ends of the half layers, layer norms and their backward (that of the others:
// norm_backward.cu). One block holds one row in registers, so every operand is read once and every result
// written once; weight gradients stay in registers while a block walks over its rows and are added in a
// second, ordered pass.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/partials.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

/// The packs of one row that this thread holds; packs beyond the row are zero.
template <class T, class S>
struct Row {
  Pack<T, S::W> pack[S::K];

  __device__ void load(const T* row, int n) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
      const int at = (static_cast<int>(threadIdx.x) + k * static_cast<int>(blockDim.x)) * S::W;
      if (at < n) {
        pack[k] = Pack<T, S::W>::load(row + at);
      } else {
#pragma unroll
        for (int i = 0; i < Pack<T, S::W>::kWords; ++i) pack[k].word[i] = 0;
      }
    }
  }
};

template <class T, class S>
__device__ inline float square_sum(const Row<T, S>& row) {
  float sum[1] = {0.0f};
#pragma unroll
  for (int k = 0; k < S::K; ++k) {
#pragma unroll
    for (int i = 0; i < S::W; ++i) sum[0] += row.pack[k].get(i) * row.pack[k].get(i);
  }
  block_sum(sum);
  return sum[0];
}

template <class T, class S>
__global__ void rms_norm(const T* x, std::int64_t x_stride, const T* weight, T* y, std::int64_t y_stride,
                         float* rstd, int n, float eps) {
  const std::int64_t r = blockIdx.x;
  Row<T, S> row;
  row.load(x + r * x_stride, n);
  const float scale = rsqrtf(square_sum<T, S>(row) / static_cast<float>(n) + eps);
  if (threadIdx.x == 0) rstd[r] = scale;
  for_packs<S>(n, [&](int k, int at) {
    float out[S::W];
#pragma unroll
    for (int i = 0; i < S::W; ++i) out[i] = row.pack[k].get(i) * scale;
    if (weight) {
      const auto w = Pack<T, S::W>::load(weight + at);
#pragma unroll
      for (int i = 0; i < S::W; ++i) out[i] *= w.get(i);
    }
    Pack<T, S::W>::from(out).store(y + r * y_stride + at);
  });
}

template <class T, class S>
__global__ void residual_norm(const T* residual, const T* branch, const T* branch_weight, const T* scale,
                              const T* next_weight, T* out, T* next, float* branch_rstd, float* next_rstd,
                              int n, float eps) {
  const std::int64_t r = blockIdx.x, base = r * n;
  Row<T, S> skip, b;
  b.load(branch + base, n);
  skip.load(residual + base, n);
  const float factor = scale ? to_float(*scale) : 1.0f;
  const float b_rstd = rsqrtf(square_sum<T, S>(b) / static_cast<float>(n) + eps);
  float sum[1] = {0.0f};
  for_packs<S>(n, [&](int k, int at) {
    const auto w = Pack<T, S::W>::load(branch_weight + at);
    float x[S::W];
#pragma unroll
    for (int i = 0; i < S::W; ++i) {
      const float norm = rounded<T>(b.pack[k].get(i) * b_rstd * w.get(i));
      x[i] = rounded<T>(skip.pack[k].get(i) + norm);
      if (scale) x[i] = rounded<T>(x[i] * factor);
      sum[0] += x[i] * x[i];
    }
    skip.pack[k] = Pack<T, S::W>::from(x);  // exact: x is rounded
    skip.pack[k].store(out + base + at);
  });
  if (threadIdx.x == 0) branch_rstd[r] = b_rstd;
  if (!next_weight) return;
  block_sum(sum);
  const float n_rstd = rsqrtf(sum[0] / static_cast<float>(n) + eps);
  if (threadIdx.x == 0) next_rstd[r] = n_rstd;
  for_packs<S>(n, [&](int k, int at) {
    const auto w = Pack<T, S::W>::load(next_weight + at);
    float y[S::W];
#pragma unroll
    for (int i = 0; i < S::W; ++i) y[i] = skip.pack[k].get(i) * n_rstd * w.get(i);
    Pack<T, S::W>::from(y).store(next + base + at);
  });
}

template <class T, class S>
__global__ void layer_norm(const T* x, const T* weight, const T* bias, T* y, float* mean, float* rstd, int n,
                           float eps) {
  const std::int64_t r = blockIdx.x, base = r * n;
  Row<T, S> row;
  row.load(x + base, n);
  float sum[1] = {0.0f};
  for_packs<S>(n, [&](int k, int) {
#pragma unroll
    for (int i = 0; i < S::W; ++i) sum[0] += row.pack[k].get(i);
  });
  block_sum(sum);
  const float m = sum[0] / static_cast<float>(n);
  float square[1] = {0.0f};
  for_packs<S>(n, [&](int k, int) {
#pragma unroll
    for (int i = 0; i < S::W; ++i) square[0] += (row.pack[k].get(i) - m) * (row.pack[k].get(i) - m);
  });
  block_sum(square);
  const float scale = rsqrtf(square[0] / static_cast<float>(n) + eps);
  if (threadIdx.x == 0) mean[r] = m, rstd[r] = scale;
  for_packs<S>(n, [&](int k, int at) {
    const auto w = Pack<T, S::W>::load(weight + at), b = Pack<T, S::W>::load(bias + at);
    float out[S::W];
#pragma unroll
    for (int i = 0; i < S::W; ++i) out[i] = (row.pack[k].get(i) - m) * scale * w.get(i) + b.get(i);
    Pack<T, S::W>::from(out).store(y + base + at);
  });
}

template <class T, class S>
__global__ void layer_norm_backward(const T* dy, const T* x, const float* mean, const float* rstd,
                                    const T* weight, T* dx, float* partial, std::int64_t rows, int n) {
  float dw[S::K][S::W] = {}, db[S::K][S::W] = {};
  const float inverse_n = 1.0f / static_cast<float>(n);
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const std::int64_t base = r * n;
    Row<T, S> g, in;
    g.load(dy + base, n);
    in.load(x + base, n);
    const float m = mean[r], scale = rstd[r];
    float gw[S::K][S::W];
    float sums[2] = {0.0f, 0.0f};
    for_packs<S>(n, [&](int k, int at) {
      const auto w = Pack<T, S::W>::load(weight + at);
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        const float gi = g.pack[k].get(i), xi = (in.pack[k].get(i) - m) * scale;
        gw[k][i] = gi * w.get(i);
        dw[k][i] += gi * xi;
        db[k][i] += gi;
        sums[0] += gw[k][i];
        sums[1] += gw[k][i] * xi;
      }
    });
    if (!dx) continue;
    block_sum(sums);
    for_packs<S>(n, [&](int k, int at) {
      float out[S::W];
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        const float xi = (in.pack[k].get(i) - m) * scale;
        out[i] = scale * (gw[k][i] - sums[0] * inverse_n - xi * sums[1] * inverse_n);
      }
      Pack<T, S::W>::from(out).store(dx + base + at);
    });
  }
  float* mine = partial + static_cast<std::int64_t>(blockIdx.x) * n;
  float* other = partial + static_cast<std::int64_t>(gridDim.x + blockIdx.x) * n;
  for_packs<S>(n, [&](int k, int at) {
#pragma unroll
    for (int i = 0; i < S::W; ++i) mine[at + i] = dw[k][i], other[at + i] = db[k][i];
  });
}

}  // namespace

void RmsNorm::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = x.rows(), n = x.cols();
  if (rows == 0) return;
  with_row_type("RmsNorm", x.dtype(), aligned(16, {&x, &weight, &y}), [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    using S = RowShape<T, vector>;
    rms_norm<T, S><<<static_cast<unsigned>(rows), S::threads("RmsNorm", n), 0, cuda_stream(stream)>>>(
        ptr<T>(x), x.row_stride(), ptr_or_null<T>(weight), ptr<T>(y), y.row_stride(), ptr<float>(rstd),
        static_cast<int>(n), static_cast<float>(eps));
  });
  launched("RmsNorm");
}

void ResidualNorm::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = residual.rows(), n = residual.cols();
  if (rows == 0) return;
  const bool vector = aligned(16, {&residual, &branch, &branch_weight, &next_weight, &out, &next});
  with_row_type("ResidualNorm", residual.dtype(), vector, [&](auto type, auto is_vector) {
    using T = typename decltype(type)::type;
    using S = RowShape<T, is_vector>;
    residual_norm<T, S>
        <<<static_cast<unsigned>(rows), S::threads("ResidualNorm", n), 0, cuda_stream(stream)>>>(
            ptr<T>(residual), ptr<T>(branch), ptr<T>(branch_weight), ptr_or_null<T>(scale),
            ptr_or_null<T>(next_weight), ptr<T>(out), ptr_or_null<T>(next), ptr<float>(branch_rstd),
            ptr_or_null<float>(next_rstd), static_cast<int>(n), static_cast<float>(eps));
  });
  launched("ResidualNorm");
}

void LayerNorm::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = x.rows(), n = x.cols();
  if (rows == 0) return;
  with_row_type("LayerNorm", x.dtype(), aligned(16, {&x, &weight, &bias, &y}), [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    using S = RowShape<T, vector>;
    layer_norm<T, S><<<static_cast<unsigned>(rows), S::threads("LayerNorm", n), 0, cuda_stream(stream)>>>(
        ptr<T>(x), ptr<T>(weight), ptr<T>(bias), ptr<T>(y), ptr<float>(mean), ptr<float>(rstd),
        static_cast<int>(n), static_cast<float>(eps));
  });
  launched("LayerNorm");
}

void LayerNormBackward::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = x.rows(), n = x.cols();
  if (rows == 0) return;
  const std::int64_t blocks = partial_rows(rows);
  float* partial = reinterpret_cast<float*>(scratch.data());
  const bool vector = aligned(16, {&dy, &x, &weight, &dx});
  with_row_type("LayerNormBackward", x.dtype(), vector, [&](auto type, auto is_vector) {
    using T = typename decltype(type)::type;
    using S = RowShape<T, is_vector>;
    layer_norm_backward<T, S>
        <<<static_cast<unsigned>(blocks), S::threads("LayerNormBackward", n), 0, cuda_stream(stream)>>>(
            ptr<T>(dy), ptr<T>(x), ptr<float>(mean), ptr<float>(rstd), ptr<T>(weight), ptr_or_null<T>(dx),
            partial, rows, static_cast<int>(n));
  });
  launched("LayerNormBackward");
  add_row_sums(stream, partial, blocks, n, d_weight, d_bias);
}

}  // namespace lapidary
