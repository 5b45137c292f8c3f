// RMSNorm and its backward (specification 3.2).
#include <cmath>

#include "kernels/cpu/element.h"
#include "kernels/cpu/rms_row.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

template <class T>
void forward(const RmsNorm& op) {
  using F = Compute<T>;
  const std::int64_t rows = op.x.rows(), n = op.x.cols();
  const T* weight = op.weight ? op.weight.as<T>() : nullptr;
  F* rstds = op.rstd.as<F>();
#pragma omp parallel for schedule(static) if (rows * n >= kParallelElements)
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* x = row<T>(op.x, i);
    T* y = row<T>(op.y, i);
    const F rstd = rstds[i] = rms_rstd<F>(x, n, op.eps);
    if (weight) {
      for (std::int64_t j = 0; j < n; ++j) y[j] = round_to<T>(load(x[j]) * rstd * load(weight[j]));
    } else {
      for (std::int64_t j = 0; j < n; ++j) y[j] = round_to<T>(load(x[j]) * rstd);
    }
  }
}

template <class T>
void backward(const RmsNormBackward& op) {
  using F = Compute<T>;
  const std::int64_t rows = op.x.rows(), n = op.x.cols();
  const std::int64_t columns = op.d_weight ? n : 0;
  double* partial = scratch_for<double>(op.scratch, row_sum_count(rows, columns), "RmsNormBackward");
  const T* weight = op.weight ? op.weight.as<T>() : nullptr;
  const F* rstds = op.rstd.as<F>();
  sum_rows(rows, n, columns, partial, [&](std::int64_t i, double* d_weight) {
    const T* x = row<T>(op.x, i);
    const T* dy = row<T>(op.dy, i);
    if (op.d_weight) {
      const double rstd = static_cast<double>(rstds[i]);
      for (std::int64_t j = 0; j < n; ++j)
        d_weight[j] += static_cast<double>(load(dy[j])) * static_cast<double>(load(x[j])) * rstd;
    }
    if (!op.dx) return;
    const auto g = [&](std::int64_t j) { return weight ? load(dy[j]) * load(weight[j]) : load(dy[j]); };
    const RmsRowBackward<F> back =
        rms_row_backward<F>(rstds[i], n, sum_of(n, [&](std::int64_t j) { return g(j) * load(x[j]); }));
    T* dx = row<T>(op.dx, i);
    if (op.add_to_dx) {
      for (std::int64_t j = 0; j < n; ++j) dx[j] = round_to<T>(load(dx[j]) + back(g(j), load(x[j])));
    } else {
      for (std::int64_t j = 0; j < n; ++j) dx[j] = round_to<T>(back(g(j), load(x[j])));
    }
  });
  if (op.d_weight) add_row_sums(rows, columns, partial, 0, op.d_weight);
}

}  // namespace

void RmsNorm::cpu(Stream&) const {
  check(*this);
  with_float_type(x.dtype(), [&]<class T>() { forward<T>(*this); });
}

void RmsNormBackward::cpu(Stream&) const {
  check(*this);
  with_float_type(x.dtype(), [&]<class T>() { backward<T>(*this); });
}

}  // namespace lapidary
