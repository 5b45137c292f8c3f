// The vision and audio embedders' own operations: stored features to numbers, bias, grid positions
// (specification 4.1, 5.2).
#include "kernels/cpu/add_rows.h"
#include "kernels/cpu/element.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

template <class S, class T>
void convert(const ConvertFeatures& op, Compute<T> scale) {
  const std::int64_t count = op.in.numel();
  const S* in = op.in.as<S>();
  T* out = op.out.as<T>();
#pragma omp parallel for schedule(static) if (count >= kParallelElements)
  for (std::int64_t i = 0; i < count; ++i) out[i] = round_to<T>(static_cast<Compute<T>>(in[i]) * scale);
}

/// Column and row of patch m, checked against the table.
std::pair<std::int32_t, std::int32_t> grid_cell(const char* op, const Tensor& xy, std::int64_t m,
                                                std::int64_t cells) {
  const std::int32_t* at = row<std::int32_t>(xy, m);
  require(at[0] >= 0 && at[0] < cells && at[1] >= 0 && at[1] < cells,
          "{}: patch {} is at column {}, row {}, expected 0 to {}", op, m, at[0], at[1], cells - 1);
  return {at[0], at[1]};
}

template <class T>
void add_grid(const GridEmbedding& op) {
  const std::int64_t width = op.x.cols();
  for (std::int64_t m = 0; m < op.x.rows(); ++m) {
    const auto [column, line] = grid_cell("GridEmbedding", op.xy, m, op.table.size(0));
    const T* a = row<T>(op.table, column);
    const T* b = row<T>(op.table, line) + width;
    T* x = row<T>(op.x, m);
    for (std::int64_t j = 0; j < width; ++j)
      x[j] = round_to<T>(load(x[j]) + load(round_to<T>(load(a[j]) + load(b[j]))));
  }
}

}  // namespace

void ConvertFeatures::cpu(Stream&) const {
  check(*this);
  with_float_type(out.dtype(), [&]<class T>() {
    using F = Compute<T>;
    if (in.dtype() == DType::u8) return convert<std::uint8_t, T>(*this, static_cast<F>(1.0f / 255.0f));
    if (in.dtype() == DType::i16) return convert<std::int16_t, T>(*this, F(1) / F(32768));
    convert<float, T>(*this, F(1));
  });
}

void AddBias::cpu(Stream&) const {
  check(*this);
  with_float_type(x.dtype(), [&]<class T>() {
    const T* b = bias.as<T>();
#pragma omp parallel for schedule(static) if (x.numel() >= kParallelElements)
    for (std::int64_t i = 0; i < x.rows(); ++i) {
      T* line = row<T>(x, i);
      for (std::int64_t j = 0; j < x.cols(); ++j) line[j] = round_to<T>(load(line[j]) + load(b[j]));
    }
  });
}

void BiasBackward::cpu(Stream&) const {
  check(*this);
  const std::int64_t rows = dy.rows(), n = dy.cols();
  double* partial = scratch_for<double>(scratch, row_sum_count(rows, n), "BiasBackward");
  with_float_type(dy.dtype(), [&]<class T>() {
    sum_rows(rows, n, n, partial, [&](std::int64_t i, double* sums) {
      const T* d = row<T>(dy, i);
      for (std::int64_t j = 0; j < n; ++j) sums[j] += static_cast<double>(load(d[j]));
    });
  });
  add_row_sums(rows, n, partial, 0, d_bias);
}

void GridEmbedding::cpu(Stream&) const {
  check(*this);
  with_float_type(x.dtype(), [&]<class T>() { add_grid<T>(*this); });
}

void GridEmbeddingBackward::cpu(Stream&) const {
  check(*this);
  const std::int64_t patches = d.rows(), cells = d_table.size(0), width = d.cols();
  RowAddition* additions = scratch_for<RowAddition>(scratch, 2 * patches, "GridEmbeddingBackward");
  for (std::int64_t m = 0; m < patches; ++m) {
    const auto [column, line] = grid_cell("GridEmbeddingBackward", xy, m, cells);
    additions[2 * m] = {2 * column, static_cast<std::int32_t>(m)};
    additions[2 * m + 1] = {2 * line + 1, static_cast<std::int32_t>(m)};
  }
  add_rows(additions, 2 * patches, d, 1.0, Tensor(d_table.data(), d_table.dtype(), {2 * cells, width}));
}

}  // namespace lapidary
