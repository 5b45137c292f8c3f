// Tensor maps: how TMA sees a matrix or a tensor in global memory.
#pragma once
#include <cuda.h>

#include <array>
#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/tensor.h"

namespace lapidary {

/// What a tensor map describes: `dims` dimensions, the fastest first. Passed to kernels by value, as a
/// `const __grid_constant__ CUtensorMap`.
struct TensorMapShape {
  void* data = nullptr;  ///< 16-byte aligned
  DType dtype = DType::bf16;
  int dims = 2;                                 ///< 2 to 4
  std::array<std::int64_t, 4> size{};           ///< elements
  std::array<std::int64_t, 4> stride{1};        ///< elements from one index to the next; stride[0] is 1, the
                                                ///< others whole multiples of 16 bytes
  std::array<std::int64_t, 4> box{1, 1, 1, 1};  ///< elements that one instruction copies, at most 256 a
                                                ///< dimension, box[0] whole multiples of 16 bytes
  bool swizzle = true;                          ///< 128-byte swizzle: box[0] is at most 128 bytes
};

/// Throws Error where the driver refuses the shape. The driver's function is found at run time: nothing links
/// libcuda, and a build starts where there is no driver.
CUtensorMap make_tensor_map(const TensorMapShape& shape);

/// Of a two-dimensional tensor: boxes of box_rows x box_cols.
CUtensorMap make_tensor_map(const Tensor& x, std::int64_t box_rows, std::int64_t box_cols,
                            bool swizzle = true);

}  // namespace lapidary
