// RMS norms and the fused ends of the half layers. One block holds one row in registers, so every operand is
// read once and every result written once; weight gradients stay in registers while a block walks over its
// rows and are added in a second, ordered pass.
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

/// Calls f(k, at) for the packs of the row that this thread owns.
template <class S, class F>
__device__ inline void for_packs(int n, F&& f) {
#pragma unroll
  for (int k = 0; k < S::K; ++k) {
    const int at = (static_cast<int>(threadIdx.x) + k * static_cast<int>(blockDim.x)) * S::W;
    if (at < n) f(k, at);
  }
}

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

/// Blocks of a kernel that walks over rows that share a multiprocessor.
template <class S>
constexpr int kLoopBlocks = S::K == 1 ? 2 : 1;

template <class T, class S>
__global__ void __launch_bounds__(S::kMaxThreads, kLoopBlocks<S>)
    rms_norm_backward(const T* dy, std::int64_t dy_stride, const T* x, std::int64_t x_stride,
                      const float* rstd, const T* weight, T* dx, std::int64_t dx_stride, bool add_to_dx,
                      float* partial, std::int64_t rows, int n) {
  float dw[S::K][S::W] = {};
  Row<T, S> next_g, next_in;
  const auto load_ahead = [&](std::int64_t r) {
    if (r >= rows) return;
    next_g.load(dy + r * dy_stride, n);
    next_in.load(x + r * x_stride, n);
  };
  load_ahead(blockIdx.x);
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const Row<T, S> g = next_g, in = next_in;
    load_ahead(r + gridDim.x);
    const float scale = rstd[r];
    float dot[1] = {0.0f};
    float gw[S::K][S::W];
    for_packs<S>(n, [&](int k, int at) {
      Pack<T, S::W> w;
      if (weight) w = Pack<T, S::W>::load(weight + at);
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        const float xi = in.pack[k].get(i), gi = g.pack[k].get(i);
        gw[k][i] = weight ? gi * w.get(i) : gi;
        dw[k][i] += gi * xi * scale;
        dot[0] += gw[k][i] * xi;
      }
    });
    if (!dx) continue;
    block_sum(dot);
    const float pull = scale * scale * scale * dot[0] / static_cast<float>(n);
    for_packs<S>(n, [&](int k, int at) {
      T* to = dx + r * dx_stride + at;
      Pack<T, S::W> before;
      if (add_to_dx) before = Pack<T, S::W>::load(to);
      float out[S::W];
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        out[i] = scale * gw[k][i] - pull * in.pack[k].get(i);
        if (add_to_dx) out[i] += before.get(i);
      }
      Pack<T, S::W>::from(out).store(to);
    });
  }
  if (!partial) return;
  for_packs<S>(n, [&](int k, int at) {
#pragma unroll
    for (int i = 0; i < S::W; ++i) partial[static_cast<std::int64_t>(blockIdx.x) * n + at + i] = dw[k][i];
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
  float kept[S::K][S::W];
  for_packs<S>(n, [&](int k, int at) {
    const auto w = Pack<T, S::W>::load(branch_weight + at);
#pragma unroll
    for (int i = 0; i < S::W; ++i) {
      const float norm = rounded<T>(b.pack[k].get(i) * b_rstd * w.get(i));
      float x = rounded<T>(skip.pack[k].get(i) + norm);
      if (scale) x = rounded<T>(x * factor);
      kept[k][i] = x;
      sum[0] += x * x;
    }
    Pack<T, S::W>::from(kept[k]).store(out + base + at);
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
    for (int i = 0; i < S::W; ++i) y[i] = kept[k][i] * n_rstd * w.get(i);
    Pack<T, S::W>::from(y).store(next + base + at);
  });
}

template <class T>
struct ResidualNormGradients {
  const T *d_out, *d_next, *out, *branch, *branch_weight, *scale, *next_weight;
  const float *branch_rstd, *next_rstd;
  T *d_residual, *d_branch;
  float* partial;  ///< per block: d_branch_weight [n], then d_next_weight [n]
  std::int64_t rows;
  int n;
};

template <class T, class S, bool kNext>
__global__ void __launch_bounds__(S::kMaxThreads, kLoopBlocks<S>)
    residual_norm_backward(ResidualNormGradients<T> p) {
  const int n = p.n;
  const float inverse_n = 1.0f / static_cast<float>(n);
  const float factor = p.scale ? to_float(*p.scale) : 1.0f;
  float dwb[S::K][S::W] = {}, dwn[kNext ? S::K : 1][S::W] = {};
  Row<T, S> next_d, next_dn, next_o, next_b;
  const auto load_ahead = [&](std::int64_t r) {
    if (r >= p.rows) return;
    next_d.load(p.d_out + r * n, n);
    if (kNext) next_dn.load(p.d_next + r * n, n), next_o.load(p.out + r * n, n);
    next_b.load(p.branch + r * n, n);
  };
  load_ahead(blockIdx.x);
  for (std::int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
    const std::int64_t base = r * n;
    const Row<T, S> d = next_d, dn = next_dn, o = next_o, b = next_b;
    load_ahead(r + gridDim.x);
    float pull = 0.0f, n_rstd = 0.0f;
    if constexpr (kNext) {
      n_rstd = p.next_rstd[r];
      float dot[1] = {0.0f};
      for_packs<S>(n, [&](int k, int at) {
        const auto w = Pack<T, S::W>::load(p.next_weight + at);
#pragma unroll
        for (int i = 0; i < S::W; ++i) {
          const float go = dn.pack[k].get(i) * o.pack[k].get(i);
          dwn[k][i] += go * n_rstd;
          dot[0] += go * w.get(i);
        }
      });
      block_sum(dot);
      pull = n_rstd * n_rstd * n_rstd * dot[0] * inverse_n;
    }
    const float b_rstd = p.branch_rstd[r];
    float g[S::K][S::W];
    float dot[1] = {0.0f};
    for_packs<S>(n, [&](int k, int at) {
      const auto wb = Pack<T, S::W>::load(p.branch_weight + at);
      Pack<T, S::W> wn;
      if constexpr (kNext) wn = Pack<T, S::W>::load(p.next_weight + at);
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        float x = d.pack[k].get(i);
        if constexpr (kNext) x += n_rstd * dn.pack[k].get(i) * wn.get(i) - pull * o.pack[k].get(i);
        g[k][i] = x * factor;
        const float gb = g[k][i] * b.pack[k].get(i);
        dwb[k][i] += gb * b_rstd;
        dot[0] += gb * wb.get(i);
      }
      Pack<T, S::W>::from(g[k]).store(p.d_residual + base + at);
    });
    block_sum(dot);
    const float b_pull = b_rstd * b_rstd * b_rstd * dot[0] * inverse_n;
    for_packs<S>(n, [&](int k, int at) {
      const auto wb = Pack<T, S::W>::load(p.branch_weight + at);
      float out[S::W];
#pragma unroll
      for (int i = 0; i < S::W; ++i) out[i] = b_rstd * g[k][i] * wb.get(i) - b_pull * b.pack[k].get(i);
      Pack<T, S::W>::from(out).store(p.d_branch + base + at);
    });
  }
  float* mine = p.partial + static_cast<std::int64_t>(blockIdx.x) * n;
  float* other = p.partial + static_cast<std::int64_t>(gridDim.x + blockIdx.x) * n;
  for_packs<S>(n, [&](int k, int at) {
#pragma unroll
    for (int i = 0; i < S::W; ++i) {
      mine[at + i] = dwb[k][i];
      if constexpr (kNext) other[at + i] = dwn[k][i];
    }
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

float* scratch_floats(const Tensor& scratch) {
  return reinterpret_cast<float*>(scratch.data());
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

void RmsNormBackward::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = x.rows(), n = x.cols();
  if (rows == 0) return;
  // Without a weight gradient nothing is kept between rows: one block per row balances best.
  const std::int64_t blocks = d_weight ? partial_rows(rows) : rows;
  float* partial = d_weight ? scratch_floats(scratch) : nullptr;
  const bool vector = aligned(16, {&dy, &x, &weight, &dx});
  with_row_loop("RmsNormBackward", x.dtype(), vector, n, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    rms_norm_backward<T, S>
        <<<static_cast<unsigned>(blocks), S::threads("RmsNormBackward", n), 0, cuda_stream(stream)>>>(
            ptr<T>(dy), dy.row_stride(), ptr<T>(x), x.row_stride(), ptr<float>(rstd), ptr_or_null<T>(weight),
            ptr_or_null<T>(dx), dx ? dx.row_stride() : 0, add_to_dx, partial, rows, static_cast<int>(n));
  });
  launched("RmsNormBackward");
  if (d_weight) add_row_sums(stream, partial, blocks, n, d_weight);
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

void ResidualNormBackward::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t rows = d_out.rows(), n = d_out.cols();
  if (rows == 0) return;
  const std::int64_t blocks = partial_rows(rows);
  float* partial = scratch_floats(scratch);
  const bool vector =
      aligned(16, {&d_out, &d_next, &out, &branch, &branch_weight, &next_weight, &d_residual, &d_branch});
  with_row_loop("ResidualNormBackward", d_out.dtype(), vector, n, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const ResidualNormGradients<T> p{ptr<T>(d_out),
                                     ptr_or_null<T>(d_next),
                                     ptr_or_null<T>(out),
                                     ptr<T>(branch),
                                     ptr<T>(branch_weight),
                                     ptr_or_null<T>(scale),
                                     ptr_or_null<T>(next_weight),
                                     ptr<float>(branch_rstd),
                                     ptr_or_null<float>(next_rstd),
                                     ptr<T>(d_residual),
                                     ptr<T>(d_branch),
                                     partial,
                                     rows,
                                     static_cast<int>(n)};
    const auto grid = static_cast<unsigned>(blocks);
    const int threads = S::threads("ResidualNormBackward", n);
    if (next_weight) {
      residual_norm_backward<T, S, true><<<grid, threads, 0, cuda_stream(stream)>>>(p);
    } else {
      residual_norm_backward<T, S, false><<<grid, threads, 0, cuda_stream(stream)>>>(p);
    }
  });
  launched("ResidualNormBackward");
  add_row_sums(stream, partial, blocks, n, d_branch_weight);
  if (next_weight) add_row_sums(stream, partial + blocks * n, blocks, n, d_next_weight);
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
  float* partial = scratch_floats(scratch);
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
  add_row_sums(stream, partial, blocks, n, d_weight);
  add_row_sums(stream, partial + blocks * n, blocks, n, d_bias);
}

}  // namespace lapidary
