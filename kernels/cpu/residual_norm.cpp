// The end of a half layer, forward and backward (specification 3.3): post-norm of the branch, residual sum,
// layer scale, and the next pre-norm, in one pass over the row.
#include "kernels/cpu/element.h"
#include "kernels/cpu/rms_row.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

template <class T>
void forward(const ResidualNorm& op) {
  using F = Compute<T>;
  const std::int64_t rows = op.residual.rows(), n = op.residual.cols();
  const T* weight = op.branch_weight.as<T>();
  const T* next_weight = op.next_weight ? op.next_weight.as<T>() : nullptr;
  const T* scale = op.scale ? op.scale.as<T>() : nullptr;
#pragma omp parallel for schedule(static) if (rows * n >= kParallelElements)
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* residual = row<T>(op.residual, i);
    const T* branch = row<T>(op.branch, i);
    T* out = row<T>(op.out, i);
    const F rstd = op.branch_rstd.as<F>()[i] = rms_rstd<F>(branch, n, op.eps);
    for (std::int64_t j = 0; j < n; ++j) {
      const T norm = round_to<T>(load(branch[j]) * rstd * load(weight[j]));
      const T sum = round_to<T>(load(residual[j]) + load(norm));
      out[j] = scale ? round_to<T>(load(sum) * load(*scale)) : sum;
    }
    if (!next_weight) continue;
    T* next = row<T>(op.next, i);
    const F next_rstd = op.next_rstd.as<F>()[i] = rms_rstd<F>(out, n, op.eps);
    for (std::int64_t j = 0; j < n; ++j)
      next[j] = round_to<T>(load(out[j]) * next_rstd * load(next_weight[j]));
  }
}

/// g is rounded to T where it is stored; what flows into the branch and its weight is that stored g, as it
/// would be were the two halves separate operations.
template <class T>
void backward(const ResidualNormBackward& op) {
  using F = Compute<T>;
  const std::int64_t rows = op.d_out.rows(), n = op.d_out.cols();
  const bool has_next = static_cast<bool>(op.next_weight);
  const std::int64_t columns = has_next ? 2 * n : n;
  double* partial = scratch_for<double>(op.scratch, row_sum_count(rows, columns), "ResidualNormBackward");
  const T* weight = op.branch_weight.as<T>();
  const T* next_weight = has_next ? op.next_weight.as<T>() : nullptr;
  const F scale = op.scale ? load(*op.scale.as<T>()) : F{1};

  sum_rows(rows, n, columns, partial, [&](std::int64_t i, double* sums) {
    const T* d_out = row<T>(op.d_out, i);
    const T* branch = row<T>(op.branch, i);
    T* g = row<T>(op.d_residual, i);
    if (has_next) {
      const T* d_next = row<T>(op.d_next, i);
      const T* out = row<T>(op.out, i);
      const F rstd = op.next_rstd.as<F>()[i];
      const RmsRowBackward<F> back = rms_row_backward<F>(
          rstd, n,
          sum_of(n, [&](std::int64_t j) { return load(d_next[j]) * load(next_weight[j]) * load(out[j]); }));
      for (std::int64_t j = 0; j < n; ++j) {
        sums[n + j] += static_cast<double>(load(d_next[j])) * static_cast<double>(load(out[j])) *
                       static_cast<double>(rstd);
        const F norm = back(load(d_next[j]) * load(next_weight[j]), load(out[j]));
        g[j] = round_to<T>((load(d_out[j]) + norm) * scale);
      }
    } else {
      for (std::int64_t j = 0; j < n; ++j) g[j] = round_to<T>(load(d_out[j]) * scale);
    }
    const F rstd = op.branch_rstd.as<F>()[i];
    const RmsRowBackward<F> back = rms_row_backward<F>(
        rstd, n, sum_of(n, [&](std::int64_t j) { return load(g[j]) * load(weight[j]) * load(branch[j]); }));
    T* d_branch = row<T>(op.d_branch, i);
    for (std::int64_t j = 0; j < n; ++j) {
      sums[j] +=
          static_cast<double>(load(g[j])) * static_cast<double>(load(branch[j])) * static_cast<double>(rstd);
      d_branch[j] = round_to<T>(back(load(g[j]) * load(weight[j]), load(branch[j])));
    }
  });
  add_row_sums(rows, columns, partial, 0, op.d_branch_weight);
  if (has_next) add_row_sums(rows, columns, partial, n, op.d_next_weight);
}

}  // namespace

void ResidualNorm::cpu(Stream&) const {
  check(*this);
  with_float_type(residual.dtype(), [&]<class T>() { forward<T>(*this); });
}

void ResidualNormBackward::cpu(Stream&) const {
  check(*this);
  with_float_type(d_out.dtype(), [&]<class T>() { backward<T>(*this); });
}

}  // namespace lapidary
