#include "kernels/op_check.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"

namespace lapidary {

namespace {

bool is_float(DType t) {
  return t == DType::f32 || t == DType::bf16 || t == DType::f64;
}

std::string describe_shape(OpCheck::Shape shape) {
  std::string out = "[";
  for (const std::int64_t n : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(n);
  return out + "]";
}

std::int64_t row_bytes(const Tensor& t) {
  return t.cols() * static_cast<std::int64_t>(size_of(t.dtype()));
}

std::int64_t stride_bytes(const Tensor& t) {
  return (t.contiguous() ? t.cols() : t.row_stride()) * static_cast<std::int64_t>(size_of(t.dtype()));
}

std::int64_t extent_bytes(const Tensor& t) {
  return (t.rows() - 1) * stride_bytes(t) + row_bytes(t);
}

}  // namespace

bool overlap(const Tensor& a, const Tensor& b) {
  if (!a || !b || a.numel() == 0 || b.numel() == 0) return false;
  const std::int64_t distance = static_cast<std::byte*>(b.data()) - static_cast<std::byte*>(a.data());
  if (distance >= extent_bytes(a) || -distance >= extent_bytes(b)) return false;
  const std::int64_t stride = stride_bytes(a);
  if ((a.contiguous() && b.contiguous()) || stride != stride_bytes(b)) return true;
  // Column blocks of one matrix: compare the columns. `offset` is where b's rows begin within a's period.
  const std::int64_t offset = ((distance % stride) + stride) % stride;
  return offset < row_bytes(a) || offset + row_bytes(b) > stride;
}

void OpCheck::dims(Field field, int dims) const {
  require(static_cast<bool>(field.tensor), "{}: {} is not given, expected {} dimensions", op_, field.name,
          dims);
  require(field.tensor.dims() == dims, "{}: {} is {}, expected {} dimensions", op_, field.name,
          field.tensor.describe(), dims);
}

void OpCheck::float_type(Field field) const {
  require(static_cast<bool>(field.tensor), "{}: {} is not given", op_, field.name);
  require(is_float(field.tensor.dtype()), "{}: {} is {}, expected f32, bf16 or f64", op_, field.name,
          field.tensor.describe());
}

void OpCheck::type(Field field, DType expected) const {
  require(static_cast<bool>(field.tensor), "{}: {} is not given, expected {}", op_, field.name,
          name_of(expected));
  require(field.tensor.dtype() == expected, "{}: {} is {}, expected elements of {}", op_, field.name,
          field.tensor.describe(), name_of(expected));
}

void OpCheck::contiguous(Field field) const {
  require(field.tensor.contiguous(), "{}: {} is {} with rows {} elements apart, expected contiguous rows",
          op_, field.name, field.tensor.describe(), field.tensor.row_stride());
}

void OpCheck::shape(Field field, Shape expected) const {
  const Tensor& t = field.tensor;
  require(static_cast<bool>(t), "{}: {} is not given, expected {}", op_, field.name,
          describe_shape(expected));
  bool same = t.dims() == static_cast<int>(expected.size());
  int dim = 0;
  for (const std::int64_t n : expected) {
    same = same && t.size(dim) == n;
    ++dim;
    if (!same) break;
  }
  require(same, "{}: {} is {}, expected {}", op_, field.name, t.describe(), describe_shape(expected));
}

void OpCheck::rows(Field field, DType dtype, Shape expected) const {
  shape(field, expected);
  type(field, dtype);
}

void OpCheck::tensor(Field field, DType dtype, Shape expected) const {
  rows(field, dtype, expected);
  contiguous(field);
}

void OpCheck::optional(Field field, DType dtype, Shape expected) const {
  if (field.tensor) tensor(field, dtype, expected);
}

void OpCheck::gradient(Field field, Shape expected) const {
  shape(field, expected);
  float_type(field);
  contiguous(field);
}

void OpCheck::flat(Field field, std::int64_t count) const {
  require(static_cast<bool>(field.tensor), "{}: {} is not given, expected {} elements", op_, field.name,
          count);
  require(field.tensor.numel() == count, "{}: {} is {}, expected {} elements", op_, field.name,
          field.tensor.describe(), count);
  contiguous(field);
}

void OpCheck::same_rows(Field field, Field as) const {
  require(field.tensor && as.tensor, "{}: {} is not given", op_, field.tensor ? as.name : field.name);
  require(field.tensor.rows() == as.tensor.rows() && field.tensor.cols() == as.tensor.cols(),
          "{}: {} is {}, expected the rows and columns of {}, which is {}", op_, field.name,
          field.tensor.describe(), as.name, as.tensor.describe());
}

void OpCheck::that(bool ok, const char* what) const {
  require(ok, "{}: {}", op_, what);
}

void OpCheck::aliases(std::initializer_list<Field> inputs, std::initializer_list<Field> outputs,
                      std::initializer_list<std::pair<const char*, const char*>> allowed) const {
  const auto check_pair = [&](const Field& out, const Field& other) {
    if (!overlap(out.tensor, other.tensor)) return;
    const bool same_view = out.tensor.data() == other.tensor.data() &&
                           out.tensor.row_stride() == other.tensor.row_stride() &&
                           out.tensor.dtype() == other.tensor.dtype();
    const bool may = std::any_of(allowed.begin(), allowed.end(), [&](const auto& pair) {
      return std::strcmp(pair.first, out.name) == 0 && std::strcmp(pair.second, other.name) == 0;
    });
    require(may && same_view, "{}: {} shares memory with {}, expected {}", op_, out.name, other.name,
            may ? "the same view or none of it" : "separate memory");
  };
  for (const Field* out = outputs.begin(); out != outputs.end(); ++out) {
    for (const Field& in : inputs) check_pair(*out, in);
    for (const Field* other = outputs.begin(); other != out; ++other) check_pair(*out, *other);
  }
}

}  // namespace lapidary
