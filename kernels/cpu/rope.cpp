// Rotary tables, and the pass from the fused projection to normed and rotated heads with its backward
// (specification 3.4, 3.6).
#include <cmath>

#include "kernels/cpu/element.h"
#include "kernels/cpu/rms_row.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr std::int64_t kMaxHeadDim = 1024;

template <class F>
void rope_table(const RopeTable& op) {
  const std::int64_t tokens = op.positions.size(0), pairs = op.frequencies.size(0);
  const std::int32_t* positions = op.positions.as<std::int32_t>();
  const float* frequencies = op.frequencies.as<float>();
  F* cos = op.cos.as<F>();
  F* sin = op.sin.as<F>();
#pragma omp parallel for schedule(static) if (tokens * pairs >= kParallelElements / 8)
  for (std::int64_t i = 0; i < tokens; ++i) {
    for (std::int64_t j = 0; j < pairs; ++j) {
      // The angle is rounded to float32, as the reference's is; its functions are then taken exactly.
      const F angle = static_cast<F>(positions[i]) * static_cast<F>(frequencies[j]);
      cos[i * pairs + j] = static_cast<F>(std::cos(static_cast<double>(angle)));
      sin[i * pairs + j] = static_cast<F>(std::sin(static_cast<double>(angle)));
    }
  }
}

/// Rotation of one head: its first `pairs` components j with j + dim / 2.
template <class F>
struct Rotation {
  const F* cos;
  const F* sin;
  std::int64_t pairs, half;
};

template <class T, class F>
void norm_and_rotate(const T* x, F rstd, const T* weight, const Rotation<F>& r, T* out) {
  const auto normed = [&](std::int64_t j) { return load(x[j]) * rstd * load(weight[j]); };
  for (std::int64_t j = 0; j < r.pairs; ++j) {
    const F a = normed(j), b = normed(j + r.half);
    out[j] = round_to<T>(a * r.cos[j] - b * r.sin[j]);
    out[j + r.half] = round_to<T>(b * r.cos[j] + a * r.sin[j]);
  }
  for (std::int64_t j = r.pairs; j < r.half; ++j) {
    out[j] = round_to<T>(normed(j));
    out[j + r.half] = round_to<T>(normed(j + r.half));
  }
}

template <class T>
void forward(const QkvNormRope& op) {
  using F = Compute<T>;
  const QkvSizes s = sizes_of(op);
  const T* q_weight = op.q_weight.as<T>();
  const T* k_weight = op.k_weight.as<T>();
#pragma omp parallel for schedule(static) if (s.tokens * s.columns >= kParallelElements)
  for (std::int64_t i = 0; i < s.tokens; ++i) {
    const T* x = row<T>(op.qkv, i);
    F* rstd = row<F>(op.rstd, i);
    const Rotation<F> rotation{row<F>(op.cos, i), row<F>(op.sin, i), s.pairs, s.dim / 2};
    for (std::int64_t h = 0; h < s.heads + s.kv_heads; ++h) {
      const bool is_q = h < s.heads;
      T* out = is_q ? row<T>(op.q, i) + h * s.dim : row<T>(op.k, i) + (h - s.heads) * s.dim;
      rstd[h] = rms_rstd<F>(x + h * s.dim, s.dim, op.eps);
      norm_and_rotate(x + h * s.dim, rstd[h], is_q ? q_weight : k_weight, rotation, out);
    }
    for (std::int64_t h = 0; h < s.kv_heads; ++h) {
      const T* v = x + s.v_column + h * s.dim;
      T* out = row<T>(op.v, i) + h * s.dim;
      const F r = rstd[s.heads + s.kv_heads + h] = rms_rstd<F>(v, s.dim, op.eps);
      for (std::int64_t j = 0; j < s.dim; ++j) out[j] = round_to<T>(load(v[j]) * r);
    }
  }
}

/// The gradient before the rotation, for component j of a head whose rotated gradient is d.
template <class T, class F>
F unrotated(const T* d, std::int64_t j, const Rotation<F>& r) {
  const std::int64_t pair = j < r.half ? j : j - r.half;
  if (pair >= r.pairs) return load(d[j]);
  return j < r.half ? load(d[j]) * r.cos[pair] + load(d[j + r.half]) * r.sin[pair]
                    : load(d[j]) * r.cos[pair] - load(d[pair]) * r.sin[pair];
}

/// out = gradient of one head of the projection through norm and rotation; d_weight += its part.
template <class T, class F>
void head_backward(const T* x, F rstd, const T* weight, const T* d, const Rotation<F>& r, F* out,
                   double* d_weight) {
  const std::int64_t dim = 2 * r.half;
  for (std::int64_t j = 0; j < dim; ++j) {
    const F dy = unrotated(d, j, r);
    d_weight[j] += static_cast<double>(dy) * static_cast<double>(load(x[j])) * static_cast<double>(rstd);
    out[j] = dy * load(weight[j]);
  }
  const RmsRowBackward<F> back =
      rms_row_backward<F>(rstd, dim, sum_of(dim, [&](std::int64_t j) { return out[j] * load(x[j]); }));
  for (std::int64_t j = 0; j < dim; ++j) out[j] = back(out[j], load(x[j]));
}

/// out (+)= gradient of one head through the norm without weight.
template <class T, class F>
void value_backward(const T* x, F rstd, const T* d, std::int64_t dim, bool add, F* out) {
  const RmsRowBackward<F> back =
      rms_row_backward<F>(rstd, dim, sum_of(dim, [&](std::int64_t j) { return load(d[j]) * load(x[j]); }));
  for (std::int64_t j = 0; j < dim; ++j) out[j] = (add ? out[j] : F{0}) + back(load(d[j]), load(x[j]));
}

template <class T>
void backward(const QkvNormRopeBackward& op) {
  using F = Compute<T>;
  const QkvSizes s = sizes_of(op);
  require(s.dim <= kMaxHeadDim, "QkvNormRopeBackward: head dimension {}, expected at most {}", s.dim,
          kMaxHeadDim);
  double* partial =
      scratch_for<double>(op.scratch, row_sum_count(s.tokens, 2 * s.dim), "QkvNormRopeBackward");
  const T* q_weight = op.q_weight.as<T>();
  const T* k_weight = op.k_weight.as<T>();
  sum_rows(s.tokens, s.columns, 2 * s.dim, partial, [&](std::int64_t i, double* sums) {
    const T* x = row<T>(op.qkv, i);
    const F* rstd = row<F>(op.rstd, i);
    T* d_x = row<T>(op.d_qkv, i);
    const Rotation<F> rotation{row<F>(op.cos, i), row<F>(op.sin, i), s.pairs, s.dim / 2};
    F buffer[kMaxHeadDim];
    const auto store = [&](std::int64_t column) {
      for (std::int64_t j = 0; j < s.dim; ++j) d_x[column + j] = round_to<T>(buffer[j]);
    };
    for (std::int64_t h = 0; h < s.heads; ++h) {
      head_backward(x + h * s.dim, rstd[h], q_weight, row<T>(op.d_q, i) + h * s.dim, rotation, buffer, sums);
      store(h * s.dim);
    }
    for (std::int64_t h = 0; h < s.kv_heads; ++h) {
      const std::int64_t k_column = (s.heads + h) * s.dim, v_column = s.v_column + h * s.dim;
      const F v_rstd = rstd[s.heads + s.kv_heads + h];
      const T* d_v = row<T>(op.d_v, i) + h * s.dim;
      head_backward(x + k_column, rstd[s.heads + h], k_weight, row<T>(op.d_k, i) + h * s.dim, rotation,
                    buffer, sums + s.dim);
      if (op.shared_kv) value_backward(x + v_column, v_rstd, d_v, s.dim, true, buffer);
      store(k_column);
      if (op.shared_kv) continue;
      value_backward(x + v_column, v_rstd, d_v, s.dim, false, buffer);
      store(v_column);
    }
  });
  add_row_sums(s.tokens, 2 * s.dim, partial, 0, op.d_q_weight);
  add_row_sums(s.tokens, 2 * s.dim, partial, s.dim, op.d_k_weight);
}

}  // namespace

void RopeTable::cpu(Stream&) const {
  check(*this);
  if (cos.dtype() == DType::f64) {
    rope_table<double>(*this);
  } else {
    rope_table<float>(*this);
  }
}

void QkvNormRope::cpu(Stream&) const {
  check(*this);
  with_float_type(q.dtype(), [&]<class T>() { forward<T>(*this); });
}

void QkvNormRopeBackward::cpu(Stream&) const {
  check(*this);
  with_float_type(d_q.dtype(), [&]<class T>() { backward<T>(*this); });
}

}  // namespace lapidary
