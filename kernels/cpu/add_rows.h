// Gradients of tables: many rows are added to few, repeatable and with one rounding per row.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace lapidary {

/// One addition: row `source` of the gradients to row `target` of the table. Compares by target, then source.
struct RowAddition {
  std::int32_t target, source;
  auto operator<=>(const RowAddition&) const = default;
};

/// table[target] += scale * sum of rows[source] over the additions of one target, summed in double in order
/// of source. Sorts `additions`. rows: any float type, [N, columns]; table: any float type, [R, columns].
void add_rows(RowAddition* additions, std::int64_t count, const Tensor& rows, double scale,
              const Tensor& table);

}  // namespace lapidary
