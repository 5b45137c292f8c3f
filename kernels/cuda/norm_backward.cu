// Backward of the RMS norm and of the fused ends of the half layers. One block a multiprocessor walks over
// its rows, which a ring in shared memory brings ahead of their use, and keeps its part of the weight
// gradients in registers; a second, ordered pass adds the parts.
#include "kernels/cuda/partials.h"
#include "kernels/cuda/row_ring.cuh"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

/// Rows that share a block's barriers: two where their values leave room in the registers.
template <class S>
constexpr int kRowsAtOnce = S::K* S::W <= 8 ? 2 : 1;

/// One number a row, loaded one step of the walk ahead.
template <int R>
struct RowScalars {
  const float* from;
  std::int64_t end;
  float ahead[R];

  __device__ RowScalars(const float* values, const BlockRows& rows) : from(values), end(rows.end) {
    load(rows.begin);
  }
  __device__ void load(std::int64_t row) {
#pragma unroll
    for (int j = 0; j < R; ++j) ahead[j] = row + j < end ? from[row + j] : 0.0f;
  }
  __device__ void take(std::int64_t row, float (&out)[R]) {
#pragma unroll
    for (int j = 0; j < R; ++j) out[j] = ahead[j];
    load(row + R);
  }
};

/// This thread's packs of a weight, in float32; ones where there is none.
template <class T, class S>
struct Weights {
  float value[S::K][S::W];
  __device__ Weights(const T* weight, int n, int threads) {
    for_packs<S>(
        n,
        [&](int k, int at) {
          Pack<T, S::W> pack;
          if (weight) pack = Pack<T, S::W>::load(weight + at);
#pragma unroll
          for (int i = 0; i < S::W; ++i) value[k][i] = weight ? pack.get(i) : 1.0f;
        },
        threads);
  }
};

template <class S>
__device__ inline void store_sums(const float (&sums)[S::K][S::W], float* to, int n, int threads) {
  for_packs<S>(
      n,
      [&](int k, int at) {
#pragma unroll
        for (int i = 0; i < S::W; ++i) to[at + i] = sums[k][i];
      },
      threads);
}

template <class T>
struct RmsGradients {
  RingShape ring;
  const T *dy, *x, *weight;
  const float* rstd;
  T* dx;
  float* partial;  ///< [blocks, n], optional
  std::int64_t dy_stride, x_stride, dx_stride, rows;
};

template <class T, class S, bool kAdd>
__global__ void __launch_bounds__(S::kMaxThreads + 32, 1)
    rms_norm_backward(const __grid_constant__ RmsGradients<T> p) {
  constexpr int R = kRowsAtOnce<S>, kTensors = kAdd ? 3 : 2;
  enum { kDy, kX, kBefore };
  extern __shared__ __align__(128) char dynamic[];
  using Ring = RowRing<T, S, kTensors, R>;
  const int n = p.ring.n;
  const BlockRows rows(p.rows);
  typename Ring::Source sources[kTensors] = {{p.dy, p.dy_stride}, {p.x, p.x_stride}};
  if constexpr (kAdd) sources[kBefore] = {p.dx, p.dx_stride};
  Ring ring(p.ring, dynamic, sources, rows);
  if (Ring::produces()) return ring.produce();
  const int threads = Ring::threads();
  RowScalars<R> scales(p.rstd, rows);
  const Weights<T, S> w(p.weight, n, threads);
  float dw[S::K][S::W] = {};
  for (std::int64_t r = rows.begin; r < rows.end; r += R) {
    float scale[R], dot[R] = {};
    scales.take(r, scale);
    ring.wait(r);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (r + j >= rows.end) continue;
      for_packs<S>(
          n,
          [&](int k, int at) {
            const auto g = ring.get(kDy, j, at), x = ring.get(kX, j, at);
#pragma unroll
            for (int i = 0; i < S::W; ++i) {
              const float gx = g.get(i) * x.get(i);
              dw[k][i] += gx * scale[j];
              dot[j] += gx * w.value[k][i];
            }
          },
          threads);
    }
    if (p.dx) {
      Ring::sum(dot);
#pragma unroll
      for (int j = 0; j < R; ++j) {
        if (r + j >= rows.end) continue;
        const float pull = scale[j] * scale[j] * scale[j] * dot[j] / static_cast<float>(n);
        for_packs<S>(
            n,
            [&](int k, int at) {
              const auto g = ring.get(kDy, j, at), x = ring.get(kX, j, at);
              float out[S::W];
#pragma unroll
              for (int i = 0; i < S::W; ++i) out[i] = scale[j] * (g.get(i) * w.value[k][i]) - pull * x.get(i);
              if constexpr (kAdd) {
                const auto before = ring.get(kBefore, j, at);
#pragma unroll
                for (int i = 0; i < S::W; ++i) out[i] += before.get(i);
              }
              Pack<T, S::W>::from(out).store(p.dx + (r + j) * p.dx_stride + at);
            },
            threads);
      }
    }
    ring.release();
  }
  if (p.partial) store_sums<S>(dw, p.partial + static_cast<std::int64_t>(blockIdx.x) * n, n, threads);
}

template <class T>
struct ResidualGradients {
  RingShape ring;
  const T *d_out, *d_next, *out, *branch, *branch_weight, *scale, *next_weight;
  const float *branch_rstd, *next_rstd;
  T *d_residual, *d_branch;
  float* partial;  ///< per block: d_branch_weight [n]; then, behind all of them, d_next_weight [n]
  std::int64_t rows;
};

/// Sums over the block of d_next . (out w) for each of R rows, and the rows' parts of d(next_weight).
template <class S, int R, class Ring, class W>
__device__ inline void next_norm_dots(const Ring& ring, const W& w, const float (&rstd)[R], int valid, int n,
                                      int threads, int d_next, int out, float (&dw)[S::K][S::W],
                                      float (&dot)[R]) {
#pragma unroll
  for (int j = 0; j < R; ++j) {
    if (j >= valid) continue;
    for_packs<S>(
        n,
        [&](int k, int at) {
          const auto dn = ring.get(d_next, j, at), o = ring.get(out, j, at);
#pragma unroll
          for (int i = 0; i < S::W; ++i) {
            const float go = dn.get(i) * o.get(i);
            dw[k][i] += go * rstd[j];
            dot[j] += go * w.value[k][i];
          }
        },
        threads);
  }
  Ring::sum(dot);
}

template <class T, class S, bool kNext>
__global__ void __launch_bounds__(S::kMaxThreads + 32, 1)
    residual_norm_backward(const __grid_constant__ ResidualGradients<T> p) {
  constexpr int R = kRowsAtOnce<S>, kTensors = kNext ? 4 : 2;
  enum { kDOut, kBranch, kDNext, kOut };
  extern __shared__ __align__(128) char dynamic[];
  using Ring = RowRing<T, S, kTensors, R>;
  const int n = p.ring.n;
  const float inverse_n = 1.0f / static_cast<float>(n);
  const float factor = p.scale ? to_float(*p.scale) : 1.0f;
  const BlockRows rows(p.rows);
  typename Ring::Source sources[kTensors] = {{p.d_out, n}, {p.branch, n}};
  if constexpr (kNext) sources[kDNext] = {p.d_next, n}, sources[kOut] = {p.out, n};
  Ring ring(p.ring, dynamic, sources, rows);
  if (Ring::produces()) return ring.produce();
  const int threads = Ring::threads();
  RowScalars<R> branch_scales(p.branch_rstd, rows), next_scales(kNext ? p.next_rstd : p.branch_rstd, rows);
  const Weights<T, S> wb(p.branch_weight, n, threads), wn(p.next_weight, n, threads);
  float dwb[S::K][S::W] = {}, dwn[S::K][S::W] = {};
  for (std::int64_t r = rows.begin; r < rows.end; r += R) {
    const int valid = static_cast<int>(min(std::int64_t{R}, rows.end - r));
    float b_rstd[R], n_rstd[R], pull[R] = {};
    branch_scales.take(r, b_rstd);
    if constexpr (kNext) next_scales.take(r, n_rstd);
    ring.wait(r);
    if constexpr (kNext) {
      next_norm_dots<S>(ring, wn, n_rstd, valid, n, threads, kDNext, kOut, dwn, pull);
#pragma unroll
      for (int j = 0; j < R; ++j) pull[j] *= n_rstd[j] * n_rstd[j] * n_rstd[j] * inverse_n;
    }
    float g[R][S::K][S::W], dot[R] = {};
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (j >= valid) continue;
      for_packs<S>(
          n,
          [&](int k, int at) {
            const auto d = ring.get(kDOut, j, at), b = ring.get(kBranch, j, at);
            Pack<T, S::W> dn, o;
            if constexpr (kNext) dn = ring.get(kDNext, j, at), o = ring.get(kOut, j, at);
#pragma unroll
            for (int i = 0; i < S::W; ++i) {
              float x = d.get(i);
              if constexpr (kNext) x += n_rstd[j] * dn.get(i) * wn.value[k][i] - pull[j] * o.get(i);
              g[j][k][i] = x * factor;
              const float gb = g[j][k][i] * b.get(i);
              dwb[k][i] += gb * b_rstd[j];
              dot[j] += gb * wb.value[k][i];
            }
            Pack<T, S::W>::from(g[j][k]).store(p.d_residual + (r + j) * n + at);
          },
          threads);
    }
    Ring::sum(dot);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (j >= valid) continue;
      const float b_pull = b_rstd[j] * b_rstd[j] * b_rstd[j] * dot[j] * inverse_n;
      for_packs<S>(
          n,
          [&](int k, int at) {
            const auto b = ring.get(kBranch, j, at);
            float out[S::W];
#pragma unroll
            for (int i = 0; i < S::W; ++i)
              out[i] = b_rstd[j] * g[j][k][i] * wb.value[k][i] - b_pull * b.get(i);
            Pack<T, S::W>::from(out).store(p.d_branch + (r + j) * n + at);
          },
          threads);
    }
    ring.release();
  }
  store_sums<S>(dwb, p.partial + static_cast<std::int64_t>(blockIdx.x) * n, n, threads);
  if constexpr (kNext)
    store_sums<S>(dwn, p.partial + static_cast<std::int64_t>(gridDim.x + blockIdx.x) * n, n, threads);
}

}  // namespace

void RmsNormBackward::cuda(Stream& stream) const {
  check(*this);
  constexpr const char* kOp = "RmsNormBackward";
  const std::int64_t rows = x.rows(), n = x.cols(), blocks = ring_blocks(rows);
  if (rows == 0) return;
  auto* partial = d_weight ? reinterpret_cast<float*>(scratch.data()) : nullptr;
  const bool vector = aligned(16, {&dy, &x, &weight, &dx});
  with_row_ring(kOp, x.dtype(), vector, n, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const auto start = [&](auto adds) {
      constexpr int kTensors = adds ? 3 : 2;
      const RmsGradients<T> p{.ring = RingShape(kOp, n, sizeof(T), kTensors * kRowsAtOnce<S>),
                              .dy = ptr<T>(dy),
                              .x = ptr<T>(x),
                              .weight = ptr_or_null<T>(weight),
                              .rstd = ptr<float>(rstd),
                              .dx = ptr_or_null<T>(dx),
                              .partial = partial,
                              .dy_stride = dy.row_stride(),
                              .x_stride = x.row_stride(),
                              .dx_stride = dx ? dx.row_stride() : 0,
                              .rows = rows};
      launch_ring(kOp, rms_norm_backward<T, S, adds>, blocks, S::threads(kOp, n) + 32, p.ring.shared_bytes,
                  stream, p);
    };
    if (dx && add_to_dx) {
      start(std::true_type{});
    } else {
      start(std::false_type{});
    }
  });
  if (d_weight) add_row_sums(stream, partial, blocks, n, d_weight);
}

void ResidualNormBackward::cuda(Stream& stream) const {
  check(*this);
  constexpr const char* kOp = "ResidualNormBackward";
  const std::int64_t rows = d_out.rows(), n = d_out.cols(), blocks = ring_blocks(rows);
  if (rows == 0) return;
  auto* partial = reinterpret_cast<float*>(scratch.data());
  const bool vector =
      aligned(16, {&d_out, &d_next, &out, &branch, &branch_weight, &next_weight, &d_residual, &d_branch});
  with_row_ring(kOp, d_out.dtype(), vector, n, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const auto start = [&](auto next) {
      constexpr int kTensors = next ? 4 : 2;
      const ResidualGradients<T> p{.ring = RingShape(kOp, n, sizeof(T), kTensors * kRowsAtOnce<S>),
                                   .d_out = ptr<T>(d_out),
                                   .d_next = ptr_or_null<T>(d_next),
                                   .out = ptr_or_null<T>(out),
                                   .branch = ptr<T>(branch),
                                   .branch_weight = ptr<T>(branch_weight),
                                   .scale = ptr_or_null<T>(scale),
                                   .next_weight = ptr_or_null<T>(next_weight),
                                   .branch_rstd = ptr<float>(branch_rstd),
                                   .next_rstd = ptr_or_null<float>(next_rstd),
                                   .d_residual = ptr<T>(d_residual),
                                   .d_branch = ptr<T>(d_branch),
                                   .partial = partial,
                                   .rows = rows};
      launch_ring(kOp, residual_norm_backward<T, S, next>, blocks, S::threads(kOp, n) + 32,
                  p.ring.shared_bytes, stream, p);
    };
    if (next_weight) {
      start(std::true_type{});
    } else {
      start(std::false_type{});
    }
  });
  add_row_sums(stream, partial, blocks, n, d_branch_weight, next_weight ? d_next_weight : Tensor());
}

}  // namespace lapidary
