#include "kernels/cpu/add_rows.h"

#include "kernels/cpu/element.h"

namespace lapidary {

namespace {

// Columns summed at a time: the sums stay in the first-level cache and on the stack.
constexpr std::int64_t kColumns = 256;

template <class T, class A>
void add_run(const RowAddition* begin, const RowAddition* end, std::int64_t c0, std::int64_t c1,
             const Tensor& rows, double scale, const Tensor& table) {
  double sums[kColumns] = {};
  for (const RowAddition* a = begin; a != end; ++a) {
    const T* from = row<T>(rows, a->source) + c0;
    for (std::int64_t j = 0; j < c1 - c0; ++j) sums[j] += static_cast<double>(load(from[j]));
  }
  A* to = row<A>(table, begin->target) + c0;
  for (std::int64_t j = 0; j < c1 - c0; ++j)
    to[j] = round_to<A>(static_cast<double>(load(to[j])) + scale * sums[j]);
}

}  // namespace

void add_rows(RowAddition* additions, std::int64_t count, const Tensor& rows, double scale,
              const Tensor& table) {
  std::sort(additions, additions + count);
  const std::int64_t columns = rows.cols();
  const std::int64_t stripes = (columns + kColumns - 1) / kColumns;
  with_float_type(rows.dtype(), [&]<class T>() {
    with_float_type(table.dtype(), [&]<class A>() {
#pragma omp parallel for schedule(static) if (count * columns >= kParallelElements)
      for (std::int64_t stripe = 0; stripe < stripes; ++stripe) {
        const std::int64_t c0 = stripe * kColumns, c1 = std::min(c0 + kColumns, columns);
        for (std::int64_t i = 0, next = 0; i < count; i = next) {
          while (next < count && additions[next].target == additions[i].target) ++next;
          add_run<T, A>(additions + i, additions + next, c0, c1, rows, scale, table);
        }
      }
    });
  });
}

}  // namespace lapidary
