// The vocabulary in which every operation states what its tensors must be. Both backends check through it, so
// a wrong shape gives the same message on every device: operation, field, what was found, what was expected.
#pragma once
#include <initializer_list>
#include <utility>

#include "kernels/tensor.h"

namespace lapidary {

/// Checks for one call of one operation. Every method throws Error where its condition does not hold.
class OpCheck {
 public:
  using Shape = std::initializer_list<std::int64_t>;
  struct Field {
    const char* name;
    const Tensor& tensor;
  };

  explicit OpCheck(const char* op) : op_(op) {}

  /// Given, with this number of dimensions. Call first for the fields that sizes are read from.
  void dims(Field field, int dims) const;
  /// One of the types in which activations are kept: f32, bf16, f64.
  void float_type(Field field) const;
  void type(Field field, DType expected) const;
  void contiguous(Field field) const;

  /// Given, of this type and shape, contiguous.
  void tensor(Field field, DType dtype, Shape shape) const;
  /// As tensor(); rows may lie further apart than one row is long.
  void rows(Field field, DType dtype, Shape shape) const;
  /// As tensor(), or not given.
  void optional(Field field, DType dtype, Shape shape) const;
  /// A gradient of weights: of this shape, contiguous, f32, bf16 or f64.
  void gradient(Field field, Shape shape) const;
  /// Contiguous numbers of any shape, `count` in all.
  void flat(Field field, std::int64_t count) const;

  /// Equal numbers of rows and of columns.
  void same_rows(Field field, Field as) const;

  /// Fails with "<op>: <what>" unless ok.
  void that(bool ok, const char* what) const;

  /// No output shares memory with an input or another output, except for the allowed pairs, which must then
  /// be exactly the same view. Fields that are not given share nothing.
  void aliases(std::initializer_list<Field> inputs, std::initializer_list<Field> outputs,
               std::initializer_list<std::pair<const char*, const char*>> allowed = {}) const;

 private:
  void shape(Field field, Shape expected) const;
  const char* op_;
};

/// True if the two views share at least one byte. Column blocks of one matrix do not.
bool overlap(const Tensor& a, const Tensor& b);

/// Type of what accompanies activations of type T in higher precision (rstd, log-sum-exp, tables): f32, or
/// f64 for f64.
constexpr DType wide_type(DType activations) {
  return activations == DType::f64 ? DType::f64 : DType::f32;
}

}  // namespace lapidary
