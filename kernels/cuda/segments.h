// Deterministic scatter-add of rows into a table, shared by the embedding's backward and the loss.
#pragma once
#include <cstdint>

#include "kernels/device.h"

namespace lapidary {

/// Which rows of the table every row of a gradient goes to.
struct IdRows {
  Tensor ids;  ///< i32 [N, per_row]; -1, padding_id and rows of other shards go nowhere
  std::int64_t first_row = 0;
  std::int32_t padding_id = -1;
  const float* weights = nullptr;  ///< [N, per_row] on the device, optional
  int per_row = 1;
};

/// d_table[ids[t, k] - first_row] += scale weights[t, k] d[t], summed in the order of (t, k). order: i32
/// [N, per_row] of scratch.
void add_rows_by_id(Stream& stream, const char* op, const IdRows& rows, const Tensor& d, double scale,
                    const Tensor& d_table, std::int32_t* order);

}  // namespace lapidary
