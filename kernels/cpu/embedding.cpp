// Look-up in a shard of the vocabulary table and its gradient; rows moved to and from soft-token positions.
#include <cstring>

#include "kernels/cpu/add_rows.h"
#include "kernels/cpu/element.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

template <class T>
void lookup(const EmbeddingLookup& op) {
  using F = Compute<T>;
  const std::int64_t tokens = op.out.rows(), width = op.out.cols();
  const std::int32_t* ids = op.ids.as<std::int32_t>();
  const F scale = static_cast<F>(op.scale);
#pragma omp parallel for schedule(static) if (tokens * width >= kParallelElements)
  for (std::int64_t i = 0; i < tokens; ++i) {
    T* out = row<T>(op.out, i);
    const std::int64_t at = ids[i] - op.first_row;
    if (ids[i] < 0 || at < 0 || at >= op.table.rows()) {
      std::fill_n(out, width, T{});
      continue;
    }
    const T* from = row<T>(op.table, at);
    for (std::int64_t j = 0; j < width; ++j) out[j] = round_to<T>(load(from[j]) * scale);
  }
}

/// The index of row m, checked against the number of rows that it selects from.
std::int64_t checked_index(const char* op, const std::int32_t* index, std::int64_t m, std::int64_t rows) {
  require(index[m] >= 0 && index[m] < rows, "{}: index {} is {}, expected 0 to {}", op, m, index[m],
          rows - 1);
  return index[m];
}

}  // namespace

void EmbeddingLookup::cpu(Stream&) const {
  check(*this);
  with_float_type(table.dtype(), [&]<class T>() { lookup<T>(*this); });
}

void EmbeddingBackward::cpu(Stream&) const {
  check(*this);
  const std::int64_t tokens = ids.size(0);
  const std::int32_t* id = ids.as<std::int32_t>();
  RowAddition* additions = scratch_for<RowAddition>(scratch, tokens, "EmbeddingBackward");
  std::int64_t count = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t at = id[t] - first_row;
    if (id[t] < 0 || id[t] == padding_id || at < 0 || at >= d_table.rows()) continue;
    additions[count++] = {static_cast<std::int32_t>(at), static_cast<std::int32_t>(t)};
  }
  add_rows(additions, count, d_out, scale, d_table);
}

void ScatterRows::cpu(Stream&) const {
  check(*this);
  const std::size_t bytes = static_cast<std::size_t>(rows.cols()) * size_of(rows.dtype());
  for (std::int64_t m = 0; m < rows.rows(); ++m) {
    const std::int64_t at = checked_index("ScatterRows", index.as<std::int32_t>(), m, out.rows());
    std::memcpy(out.row_range(at, at + 1).data(), rows.row_range(m, m + 1).data(), bytes);
  }
}

void GatherRows::cpu(Stream&) const {
  check(*this);
  const std::size_t bytes = static_cast<std::size_t>(rows.cols()) * size_of(rows.dtype());
  for (std::int64_t m = 0; m < rows.rows(); ++m) {
    const std::int64_t at = checked_index("GatherRows", index.as<std::int32_t>(), m, in.rows());
    std::memcpy(rows.row_range(m, m + 1).data(), in.row_range(at, at + 1).data(), bytes);
  }
}

}  // namespace lapidary
