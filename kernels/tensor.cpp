#include "kernels/tensor.h"

#include "kernels/check.h"

// Views are made in every operation and typed pointers in inner loops: what a message needs is put together
// only when there is one, so these checks are not require().

namespace lapidary {

Tensor::Tensor(void* data, DType dtype, std::initializer_list<std::int64_t> shape)
    : data_(data), dtype_(dtype), dims_(static_cast<int>(shape.size())), row_numel_(1) {
  require(shape.size() >= 1 && shape.size() <= 4, "a tensor has 1 to 4 dimensions, not {}", shape.size());
  std::size_t dim = 0;
  for (const std::int64_t n : shape) {
    require(n >= 0, "dimension {} of a tensor is {}", dim, n);
    shape_[dim] = n;
    if (dim > 0) row_numel_ *= n;
    ++dim;
  }
  row_stride_ = row_numel_;
}

Tensor Tensor::row_range(std::int64_t begin, std::int64_t end) const {
  if (begin < 0 || begin > end || end > rows()) fail("rows [{}, {}) of {}", begin, end, describe());
  Tensor out = *this;
  out.data_ =
      static_cast<std::byte*>(data_) + static_cast<std::size_t>(begin * row_stride_) * size_of(dtype_);
  out.shape_[0] = end - begin;
  return out;
}

Tensor Tensor::col_range(std::int64_t begin, std::int64_t end) const {
  if (dims_ != 2 || begin < 0 || begin > end || end > cols())
    fail("columns [{}, {}) of {}", begin, end, describe());
  Tensor out = *this;
  out.data_ = static_cast<std::byte*>(data_) + static_cast<std::size_t>(begin) * size_of(dtype_);
  out.shape_[1] = out.row_numel_ = end - begin;
  return out;
}

Tensor Tensor::reshape(std::initializer_list<std::int64_t> shape) const {
  Tensor out(data_, dtype_, shape);
  if (out.numel() != numel()) fail("{} cannot be seen as {}", describe(), out.describe());
  if (!contiguous()) {
    if (out.rows() != rows()) fail("strided {} cannot be seen as {}", describe(), out.describe());
    out.row_stride_ = row_stride_;
  }
  return out;
}

Tensor Tensor::flat_range(std::int64_t begin, std::int64_t count) const {
  if (!contiguous() || begin < 0 || count < 0 || begin + count > numel())
    fail("elements [{}, {}) of {}", begin, begin + count, describe());
  return Tensor(static_cast<std::byte*>(data_) + static_cast<std::size_t>(begin) * size_of(dtype_), dtype_,
                {count});
}

std::string Tensor::describe() const {
  std::string out = name_of(dtype_);
  out += " [";
  for (int dim = 0; dim < dims_; ++dim) out += (dim ? ", " : "") + std::to_string(size(dim));
  return out + "]";
}

void Tensor::expect(DType dtype) const {
  if (dtype != dtype_) fail("tensor is {}, expected elements of {}", describe(), name_of(dtype));
}

}  // namespace lapidary
