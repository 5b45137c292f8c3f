// Backward of the RMS norm and of the fused ends of the half layers. One block a multiprocessor walks over
// its rows, which rings in shared memory bring ahead of their use, and keeps its part of the weight gradients
// in registers; a second, ordered pass adds the parts.
#include "kernels/cuda/partials.h"
#include "kernels/cuda/row_ring.cuh"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

/// One number a row, loaded a row ahead.
struct RowScalars {
  const float* from;
  int step, end;
  float ahead;

  __device__ RowScalars(const float* values, const WalkedRows& rows)
      : from(values),
        step(rows.step),
        end(rows.end),
        ahead(values && rows.more() ? values[rows.row] : 0.0f) {}
  __device__ float take(int row) {
    const float out = ahead;
    if (row + step < end) ahead = from[row + step];
    return out;
  }
};

/// for_packs among a walker's threads.
template <class S, class F>
__device__ inline void for_walker_packs(const Walker& walker, int n, F&& f) {
  for_packs<S>(n, f, walker.thread, walker.threads);
}

/// This thread's packs of a weight; ones where there is none.
template <class T, class S>
struct Weights {
  Pack<T, S::W> pack[S::K];

  __device__ Weights(const T* weight, const Walker& walker, int n) {
    float ones[S::W];
#pragma unroll
    for (int i = 0; i < S::W; ++i) ones[i] = 1.0f;
    for_walker_packs<S>(walker, n, [&](int k, int at) {
      pack[k] = weight ? Pack<T, S::W>::load(weight + at) : Pack<T, S::W>::from(ones);
    });
  }
  __device__ float get(int k, int i) const {
    return pack[k].get(i);
  }
};

/// Adds the walkers' sums in order and leaves the block's part. shared: n floats that no walker uses any
/// more.
template <class S>
__device__ inline void store_sums(float (&sums)[S::K][S::W], const Walker& walker, int walkers, float* shared,
                                  float* to, int n) {
  const auto each = [&](auto&& f) {
    for_walker_packs<S>(walker, n, [&](int k, int at) {
#pragma unroll
      for (int i = 0; i < S::W; ++i) f(sums[k][i], at + i);
    });
  };
  if (walkers > 1) {
    __syncthreads();
    if (walker.number == 1) each([&](float& sum, int at) { shared[at] = sum; });
    __syncthreads();
    if (walker.number == 1) return;
    each([&](float& sum, int at) { sum += shared[at]; });
  }
  for_walker_packs<S>(walker, n, [&](int k, int at) { store_floats(to, at, sums[k]); });
}

template <class T>
struct RmsGradients {
  RingShape ring;
  const T *dy, *x, *weight;
  const float* rstd;
  T* dx;
  float* partial;  ///< [blocks, n], optional
  std::int64_t dy_stride, x_stride, dx_stride;
  int rows;
};

template <class T, class S, int kWalkers, bool kAdd>
__global__ void __launch_bounds__(S::kMaxThreads* kWalkers, 1)
    rms_norm_backward(const __grid_constant__ RmsGradients<T> p) {
  constexpr int kTensors = kAdd ? 3 : 2;
  enum { kDy, kX, kBefore };
  extern __shared__ __align__(128) char dynamic[];
  hopper::launch_dependents();  // the sums of the parts
  using Ring = RowRing<T, S, kTensors>;
  const int n = p.ring.n;
  const float inverse_n = 1.0f / static_cast<float>(n);
  const Walker walker(kWalkers);
  const WalkedRows rows(p.rows, walker.number, kWalkers);
  typename Ring::Source sources[kTensors] = {{p.dy, p.dy_stride}, {p.x, p.x_stride}};
  if constexpr (kAdd) sources[kBefore] = {p.dx, p.dx_stride};
  Ring ring(p.ring, dynamic, sources, walker, rows);
  RowScalars scales(p.rstd, rows);
  const Weights<T, S> w(p.weight, walker, n);
  WalkerSums<kWalkers> total(walker);
  float dw[S::K][S::W] = {};
  for (; ring.more(); ring.next()) {
    const float scale = scales.take(ring.row());
    float dot = 0.0f;
    ring.wait();
    for_walker_packs<S>(walker, n, [&](int k, int at) {
      const auto g = ring.get(kDy, at), x = ring.get(kX, at);
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        const float gx = g.get(i) * x.get(i);
        dw[k][i] += gx * scale;
        dot += gx * w.get(k, i);
      }
    });
    dot = total(dot);
    ring.refill();
    if (!p.dx) continue;
    const float pull = scale * scale * scale * dot * inverse_n;
    T* to = p.dx + ring.row() * p.dx_stride;
    for_walker_packs<S>(walker, n, [&](int k, int at) {
      const auto g = ring.get(kDy, at), x = ring.get(kX, at);
      float out[S::W];
#pragma unroll
      for (int i = 0; i < S::W; ++i) out[i] = scale * (g.get(i) * w.get(k, i)) - pull * x.get(i);
      if constexpr (kAdd) {
        const auto before = ring.get(kBefore, at);
#pragma unroll
        for (int i = 0; i < S::W; ++i) out[i] += before.get(i);
      }
      Pack<T, S::W>::from(out).store(to + at);
    });
  }
  if (!p.partial) return;
  store_sums<S>(dw, walker, kWalkers, RingShape::rows(dynamic),
                p.partial + static_cast<std::int64_t>(blockIdx.x) * n, n);
}

template <class T>
struct ResidualGradients {
  RingShape ring;
  const T *d_out, *d_next, *out, *branch, *branch_weight, *scale, *next_weight;
  const float *branch_rstd, *next_rstd;
  T *d_residual, *d_branch;
  float* partial;  ///< per block: d_branch_weight [n]; then, behind all of them, d_next_weight [n]
  int rows;
};

template <class T, class S, int kWalkers, bool kNext>
__global__ void __launch_bounds__(S::kMaxThreads* kWalkers, 1)
    residual_norm_backward(const __grid_constant__ ResidualGradients<T> p) {
  constexpr int kTensors = kNext ? 4 : 2;
  enum { kDOut, kBranch, kDNext, kOut };
  extern __shared__ __align__(128) char dynamic[];
  hopper::launch_dependents();  // the sums of the parts
  using Ring = RowRing<T, S, kTensors>;
  const int n = p.ring.n;
  const float inverse_n = 1.0f / static_cast<float>(n);
  const float factor = p.scale ? to_float(*p.scale) : 1.0f;
  const Walker walker(kWalkers);
  const WalkedRows rows(p.rows, walker.number, kWalkers);
  typename Ring::Source sources[kTensors] = {{p.d_out, n}, {p.branch, n}};
  if constexpr (kNext) sources[kDNext] = {p.d_next, n}, sources[kOut] = {p.out, n};
  Ring ring(p.ring, dynamic, sources, walker, rows);
  RowScalars branch_scales(p.branch_rstd, rows), next_scales(p.next_rstd, rows);
  const Weights<T, S> wb(p.branch_weight, walker, n), wn(p.next_weight, walker, n);
  WalkerSums<kWalkers> total(walker);
  float dwb[S::K][S::W] = {}, dwn[S::K][S::W] = {};
  for (; ring.more(); ring.next()) {
    const float b_rstd = branch_scales.take(ring.row());
    float n_rstd = 0.0f, pull = 0.0f;
    if constexpr (kNext) n_rstd = next_scales.take(ring.row());
    ring.wait();
    if constexpr (kNext) {
      for_walker_packs<S>(walker, n, [&](int k, int at) {
        const auto dn = ring.get(kDNext, at), o = ring.get(kOut, at);
#pragma unroll
        for (int i = 0; i < S::W; ++i) {
          const float go = dn.get(i) * o.get(i);
          dwn[k][i] += go * n_rstd;
          pull += go * wn.get(k, i);
        }
      });
      pull = total(pull) * (n_rstd * n_rstd * n_rstd * inverse_n);
      ring.refill();
    }
    float g[S::K][S::W], dot = 0.0f;  // g: times branch_weight once the residual's gradient is stored
    T* to_residual = p.d_residual + std::int64_t{n} * ring.row();
    for_walker_packs<S>(walker, n, [&](int k, int at) {
      const auto d = ring.get(kDOut, at), b = ring.get(kBranch, at);
      Pack<T, S::W> dn, o;
      if constexpr (kNext) dn = ring.get(kDNext, at), o = ring.get(kOut, at);
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        float x = d.get(i);
        if constexpr (kNext) {
          x += n_rstd * dn.get(i) * wn.get(k, i);
          x -= pull * o.get(i);
        }
        g[k][i] = x * factor;
      }
      Pack<T, S::W>::from(g[k]).store(to_residual + at);
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        dwb[k][i] += g[k][i] * b.get(i) * b_rstd;
        g[k][i] *= wb.get(k, i);
        dot += g[k][i] * b.get(i);
      }
    });
    dot = total(dot);
    if constexpr (!kNext) ring.refill();
    const float b_pull = b_rstd * b_rstd * b_rstd * dot * inverse_n;
    T* to_branch = p.d_branch + std::int64_t{n} * ring.row();
    for_walker_packs<S>(walker, n, [&](int k, int at) {
      const auto b = ring.get(kBranch, at);
      float out[S::W];
#pragma unroll
      for (int i = 0; i < S::W; ++i) out[i] = b_rstd * g[k][i] - b_pull * b.get(i);
      Pack<T, S::W>::from(out).store(to_branch + at);
    });
  }
  float* shared = RingShape::rows(dynamic);
  store_sums<S>(dwb, walker, kWalkers, shared, p.partial + static_cast<std::int64_t>(blockIdx.x) * n, n);
  if constexpr (kNext)
    store_sums<S>(dwn, walker, kWalkers, shared,
                  p.partial + static_cast<std::int64_t>(gridDim.x + blockIdx.x) * n, n);
}

}  // namespace

void RmsNormBackward::cuda(Stream& stream) const {
  check(*this);
  constexpr const char* kOp = "RmsNormBackward";
  const std::int64_t rows = x.rows(), n = x.cols(), blocks = ring_blocks(rows);
  if (rows == 0) return;
  auto* partial = d_weight ? reinterpret_cast<float*>(scratch.data()) : nullptr;
  const bool vector = aligned(16, {&dy, &x, &weight, &dx});
  with_row_ring(kOp, x.dtype(), vector, n, [&](auto type, auto shape, auto walkers) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const auto start = [&](auto adds) {
      constexpr int kTensors = adds ? 3 : 2;
      const RmsGradients<T> p{.ring = RingShape(kOp, n, sizeof(T), kTensors, walkers),
                              .dy = ptr<T>(dy),
                              .x = ptr<T>(x),
                              .weight = ptr_or_null<T>(weight),
                              .rstd = ptr<float>(rstd),
                              .dx = ptr_or_null<T>(dx),
                              .partial = partial,
                              .dy_stride = dy.row_stride(),
                              .x_stride = x.row_stride(),
                              .dx_stride = dx ? dx.row_stride() : 0,
                              .rows = static_cast<int>(rows)};
      launch_ring(kOp, rms_norm_backward<T, S, walkers, adds>, blocks, walkers * S::threads(kOp, n),
                  static_cast<std::size_t>(walkers * p.ring.bytes), stream, p);
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
  with_row_ring(kOp, d_out.dtype(), vector, n, [&](auto type, auto shape, auto walkers) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const auto start = [&](auto next) {
      constexpr int kTensors = next ? 4 : 2;
      const ResidualGradients<T> p{.ring = RingShape(kOp, n, sizeof(T), kTensors, walkers),
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
                                   .rows = static_cast<int>(rows)};
      launch_ring(kOp, residual_norm_backward<T, S, walkers, next>, blocks, walkers * S::threads(kOp, n),
                  static_cast<std::size_t>(walkers * p.ring.bytes), stream, p);
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
