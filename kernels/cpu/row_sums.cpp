#include "kernels/cpu/row_sums.h"

namespace lapidary {

void add_row_sums(std::int64_t rows, std::int64_t columns, const double* partial, std::int64_t first,
                  const Tensor& acc) {
  const std::int64_t runs = RowRuns(rows).runs;
  if (runs == 0) return;
  with_float_type(acc.dtype(), [&]<class A>() {
    A* out = acc.as<A>();
    for (std::int64_t j = 0; j < acc.numel(); ++j) {
      double sum = 0;
      for (std::int64_t run = 0; run < runs; ++run) sum += partial[run * columns + first + j];
      out[j] = round_to<A>(static_cast<double>(load(out[j])) + sum);
    }
  });
}

}  // namespace lapidary
