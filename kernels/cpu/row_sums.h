// Sums over rows (the gradients of weights) that do not depend on the number of threads: rows are cut into
// runs by their number alone, every run sums into its own doubles, and the runs are added in order.
#pragma once
#include <cstdint>

#include "kernels/cpu/element.h"

namespace lapidary {

/// How `rows` rows are cut.
struct RowRuns {
  static constexpr std::int64_t kMaxRuns = 32, kMinRows = 8;

  explicit RowRuns(std::int64_t count)
      : rows(count), runs(std::min(kMaxRuns, (count + kMinRows - 1) / kMinRows)) {}
  std::int64_t begin(std::int64_t run) const { return rows * run / runs; }
  std::int64_t end(std::int64_t run) const { return rows * (run + 1) / runs; }

  std::int64_t rows, runs;
};

/// Doubles of scratch that sum_rows needs for `rows` rows and `columns` sums.
inline std::int64_t row_sum_count(std::int64_t rows, std::int64_t columns) {
  return RowRuns(rows).runs * columns;
}

/// Calls body(i, sums) for every row i, where `sums` are the `columns` doubles of the row's run, zero before
/// its first row. Rows of one run come in order, runs in parallel. `width`: elements that a row's work
/// touches. partial: row_sum_count() doubles.
template <class Body>
void sum_rows(std::int64_t rows, std::int64_t width, std::int64_t columns, double* partial, Body body) {
  const RowRuns cut(rows);
#pragma omp parallel for schedule(static) if (rows * width >= kParallelElements)
  for (std::int64_t run = 0; run < cut.runs; ++run) {
    double* sums = partial + run * columns;
    std::fill(sums, sums + columns, 0.0);
    for (std::int64_t i = cut.begin(run); i < cut.end(run); ++i) body(i, sums);
  }
}

/// acc[j] += sum over the runs of column first + j. acc: f32, bf16 or f64 [n], contiguous.
void add_row_sums(std::int64_t rows, std::int64_t columns, const double* partial, std::int64_t first,
                  const Tensor& acc);

}  // namespace lapidary
