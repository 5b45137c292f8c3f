// LayerNorm with weight and bias, forward and backward (specification 4.1).
#include <cmath>

#include "kernels/cpu/element.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

template <class T>
void forward(const LayerNorm& op) {
  using F = Compute<T>;
  const std::int64_t rows = op.x.rows(), n = op.x.cols();
  const T* weight = op.weight.as<T>();
  const T* bias = op.bias.as<T>();
#pragma omp parallel for schedule(static) if (rows * n >= kParallelElements)
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* x = row<T>(op.x, i);
    T* y = row<T>(op.y, i);
    const double mean =
        sum_of(n, [&](std::int64_t j) { return static_cast<double>(load(x[j])); }) / static_cast<double>(n);
    const double variance = sum_of(n,
                                   [&](std::int64_t j) {
                                     const double d = static_cast<double>(load(x[j])) - mean;
                                     return d * d;
                                   }) /
                            static_cast<double>(n);
    const F m = op.mean.as<F>()[i] = static_cast<F>(mean);
    const F rstd = op.rstd.as<F>()[i] = static_cast<F>(1.0 / std::sqrt(variance + op.eps));
    for (std::int64_t j = 0; j < n; ++j)
      y[j] = round_to<T>((load(x[j]) - m) * rstd * load(weight[j]) + load(bias[j]));
  }
}

/// dx = rstd (g - mean(g) - x^ mean(g x^)) with g = dy w and x^ = (x - mean) rstd.
template <class T>
void backward(const LayerNormBackward& op) {
  using F = Compute<T>;
  const std::int64_t rows = op.x.rows(), n = op.x.cols();
  double* partial = scratch_for<double>(op.scratch, row_sum_count(rows, 2 * n), "LayerNormBackward");
  const T* weight = op.weight.as<T>();
  sum_rows(rows, n, 2 * n, partial, [&](std::int64_t i, double* sums) {
    const T* x = row<T>(op.x, i);
    const T* dy = row<T>(op.dy, i);
    const F mean = op.mean.as<F>()[i], rstd = op.rstd.as<F>()[i];
    const auto x_hat = [&](std::int64_t j) { return (load(x[j]) - mean) * rstd; };
    const auto g = [&](std::int64_t j) { return load(dy[j]) * load(weight[j]); };
    for (std::int64_t j = 0; j < n; ++j) {
      sums[j] += static_cast<double>(load(dy[j])) * static_cast<double>(x_hat(j));
      sums[n + j] += static_cast<double>(load(dy[j]));
    }
    if (!op.dx) return;
    const F mean_g = static_cast<F>(sum_of(n, g) / static_cast<double>(n));
    const F mean_gx =
        static_cast<F>(sum_of(n, [&](std::int64_t j) { return g(j) * x_hat(j); }) / static_cast<double>(n));
    T* dx = row<T>(op.dx, i);
    for (std::int64_t j = 0; j < n; ++j) dx[j] = round_to<T>(rstd * (g(j) - mean_g - x_hat(j) * mean_gx));
  });
  add_row_sums(rows, 2 * n, partial, 0, op.d_weight);
  add_row_sums(rows, 2 * n, partial, n, op.d_bias);
}

}  // namespace

void LayerNorm::cpu(Stream&) const {
  check(*this);
  with_float_type(x.dtype(), [&]<class T>() { forward<T>(*this); });
}

void LayerNormBackward::cpu(Stream&) const {
  check(*this);
  with_float_type(x.dtype(), [&]<class T>() { backward<T>(*this); });
}

}  // namespace lapidary
