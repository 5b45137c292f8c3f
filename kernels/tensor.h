// A non-owning view of numbers on a device: pointer, element type, shape. Passed by value.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/dtype.h"

namespace lapidary {

/// Up to four dimensions, row-major. Rows (the first dimension) may lie further apart than one row is long,
/// so that a column block of a matrix is a view too; everything inside a row is contiguous. A
/// default-constructed Tensor means "not given".
class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<std::int64_t> shape);

  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  int dims() const { return dims_; }
  std::int64_t size(int dim) const { return shape_[static_cast<std::size_t>(dim)]; }
  explicit operator bool() const { return dims_ > 0; }

  std::int64_t rows() const { return shape_[0]; }   ///< first dimension
  std::int64_t cols() const { return row_numel_; }  ///< elements of one row: product of the other dimensions
  std::int64_t row_stride() const { return row_stride_; }  ///< elements from one row to the next
  std::int64_t numel() const { return shape_[0] * row_numel_; }
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype_); }
  bool contiguous() const { return row_stride_ == row_numel_ || shape_[0] <= 1; }

  /// Rows [begin, end).
  Tensor row_range(std::int64_t begin, std::int64_t end) const;
  /// Columns [begin, end) of a two-dimensional tensor.
  Tensor col_range(std::int64_t begin, std::int64_t end) const;
  /// Same elements, another shape. A strided tensor may only split its columns: the first dimension stays.
  Tensor reshape(std::initializer_list<std::int64_t> shape) const;
  /// Contiguous elements [begin, begin + count) as one dimension.
  Tensor flat_range(std::int64_t begin, std::int64_t count) const;

  /// Typed pointer on the host or for a kernel; throws Error if T is not the element type.
  template <class T>
  T* as() const {
    expect(DTypeOf<T>::value);
    return static_cast<T*>(data_);
  }

  /// "bf16 [8192, 3840]".
  std::string describe() const;

 private:
  void expect(DType dtype) const;

  void* data_ = nullptr;
  DType dtype_ = DType::f32;
  int dims_ = 0;
  std::array<std::int64_t, 4> shape_{};
  std::int64_t row_numel_ = 0;
  std::int64_t row_stride_ = 0;
};

}  // namespace lapidary
