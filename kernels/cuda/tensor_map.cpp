#include "kernels/cuda/tensor_map.h"

#include "kernels/check.h"
#include "kernels/cuda/check.h"

namespace lapidary {

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                            CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode encoder() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    constexpr unsigned int kVersion = 12000;  // the first CUDA that has it
    cuda_ok(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kVersion, cudaEnableDefault,
                                             &result),
            "looking for cuTensorMapEncodeTiled in the driver");
    require(result == cudaDriverEntryPointSuccess && function != nullptr,
            "the GPU driver has no cuTensorMapEncodeTiled; expected a driver for CUDA 12.0 or later");
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

CUtensorMapDataType map_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::bf16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::i32:
      return CU_TENSOR_MAP_DATA_TYPE_INT32;
    default:
      fail("tensor maps take f32, bf16 and i32, not {}", name_of(dtype));
  }
}

}  // namespace

CUtensorMap make_tensor_map(const TensorMapShape& shape) {
  require(shape.dims >= 2 && shape.dims <= 4, "a tensor map of {} dimensions, expected 2 to 4", shape.dims);
  std::array<cuuint64_t, 4> size{}, stride{};
  std::array<cuuint32_t, 4> box{}, step{1, 1, 1, 1};
  for (std::size_t i = 0; i < static_cast<std::size_t>(shape.dims); ++i) {
    size[i] = static_cast<cuuint64_t>(shape.size[i]);
    box[i] = static_cast<cuuint32_t>(shape.box[i]);
    if (i > 0) stride[i - 1] = static_cast<cuuint64_t>(shape.stride[i]) * size_of(shape.dtype);
  }
  CUtensorMap map{};
  const CUresult status =
      encoder()(&map, map_type(shape.dtype), static_cast<cuuint32_t>(shape.dims), shape.data, size.data(),
                stride.data(), box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                shape.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(
      status == CUDA_SUCCESS,
      "the driver refuses a tensor map (CUresult {}): {} at {}, size {} x {} x {} x {}, strides {}, {}, {} "
      "bytes, box {} x {} x {} x {}",
      static_cast<int>(status), name_of(shape.dtype), shape.data, size[0], size[1], size[2], size[3],
      stride[0], stride[1], stride[2], box[0], box[1], box[2], box[3]);
  return map;
}

CUtensorMap make_tensor_map(const Tensor& x, std::int64_t box_rows, std::int64_t box_cols, bool swizzle) {
  // The stride of a single row means nothing, but has to be one that the driver takes.
  const std::int64_t stride = x.rows() > 1 ? x.row_stride() : (x.cols() + 15) / 16 * 16;
  return make_tensor_map({.data = x.data(),
                          .dtype = x.dtype(),
                          .dims = 2,
                          .size = {x.cols(), x.rows()},
                          .stride = {1, stride},
                          .box = {box_cols, box_rows},
                          .swizzle = swizzle});
}

}  // namespace lapidary
