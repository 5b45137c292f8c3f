// What the kernels of this folder share: packed loads and stores, reductions, and the choice between a
// vector path (128-bit accesses) and a scalar path for shapes that are not aligned for it.
#pragma once
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/check.h"
#include "kernels/tensor.h"

namespace lapidary {

using Bf16 = __nv_bfloat16;

// ------------------------------------------------------------------------------------------ numbers

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(Bf16 x) {
  return __bfloat162float(x);
}

template <class T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// x as it is after a rounding to T.
template <class T>
__device__ inline float rounded(float x) {
  return to_float(from_float<T>(x));
}

/// W elements of T that are loaded and stored by one instruction.
template <class T, int W>
struct Pack {
  static constexpr int kBytes = W * static_cast<int>(sizeof(T));
  static constexpr int kWords = kBytes >= 4 ? kBytes / 4 : 1;
  using Raw = std::conditional_t<
      kBytes == 16, uint4,
      std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, unsigned, unsigned short>>>;
  static_assert(sizeof(Raw) == kBytes, "a pack is 2, 4, 8 or 16 bytes");
  unsigned word[kWords];

  __device__ static Pack load(const T* p) {
    Pack out;
    const Raw raw = *reinterpret_cast<const Raw*>(p);
    if constexpr (kBytes == 16) {
      out.word[0] = raw.x, out.word[1] = raw.y, out.word[2] = raw.z, out.word[3] = raw.w;
    } else if constexpr (kBytes == 8) {
      out.word[0] = raw.x, out.word[1] = raw.y;
    } else {
      out.word[0] = raw;
    }
    return out;
  }

  /// To global memory. By intrinsics: the compiler splits some plain stores of structs into their members.
  __device__ void store(T* p) const {
    if constexpr (kBytes == 16) {
      __stwb(reinterpret_cast<uint4*>(p), make_uint4(word[0], word[1], word[2], word[3]));
    } else if constexpr (kBytes == 8) {
      __stwb(reinterpret_cast<uint2*>(p), make_uint2(word[0], word[1]));
    } else {
      *reinterpret_cast<Raw*>(p) = static_cast<Raw>(word[0]);
    }
  }

  __device__ float get(int i) const {
    if constexpr (std::is_same_v<T, float>) {
      return __uint_as_float(word[i]);
    } else {
      const unsigned w = word[i / 2];
      return __uint_as_float(i % 2 ? w & 0xffff0000u : w << 16);
    }
  }

  __device__ static Pack from(const float (&x)[W]) {
    Pack out;
    if constexpr (std::is_same_v<T, float>) {
#pragma unroll
      for (int i = 0; i < W; ++i) out.word[i] = __float_as_uint(x[i]);
    } else if constexpr (W == 1) {
      out.word[0] = __bfloat16_as_ushort(__float2bfloat16_rn(x[0]));
    } else {
#pragma unroll
      for (int i = 0; i < W; i += 2) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x[i], x[i + 1]);
        out.word[i / 2] = static_cast<unsigned>(__bfloat16_as_ushort(pair.x)) |
                          static_cast<unsigned>(__bfloat16_as_ushort(pair.y)) << 16;
      }
    }
    return out;
  }
};

/// Elements that one instruction moves: at most 16 bytes.
template <class T, int W>
constexpr int kMoved = W* static_cast<int>(sizeof(T)) <= 16 ? W : 16 / static_cast<int>(sizeof(T));

template <class T, int W>
__device__ inline void load_floats(const T* p, std::int64_t i, float (&x)[W]) {
  constexpr int kStep = kMoved<T, W>;
#pragma unroll
  for (int at = 0; at < W; at += kStep) {
    const auto pack = Pack<T, kStep>::load(p + i + at);
#pragma unroll
    for (int w = 0; w < kStep; ++w) x[at + w] = pack.get(w);
  }
}

template <class T, int W>
__device__ inline void store_floats(T* p, std::int64_t i, const float (&x)[W]) {
  constexpr int kStep = kMoved<T, W>;
#pragma unroll
  for (int at = 0; at < W; at += kStep) {
    float piece[kStep];
#pragma unroll
    for (int w = 0; w < kStep; ++w) piece[w] = x[at + w];
    Pack<T, kStep>::from(piece).store(p + i + at);
  }
}

// --------------------------------------------------------------------------------------- reductions

template <class V>
__device__ inline V warp_sum(V x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

/// Sums of M values over the block, whose size is a multiple of 32, the same in every thread, added in a
/// fixed order. Ends with all past their reads, so that it may be called again at once.
template <int M, class V>
__device__ inline void block_sum(V (&x)[M]) {
  __shared__ V shared[M][32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll
  for (int i = 0; i < M; ++i) x[i] = warp_sum(x[i]);
  if (warps == 1) return;
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < M; ++i) shared[i][warp] = x[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < M; ++i) x[i] = warp_sum(lane < warps ? shared[i][lane] : V(0));
  __syncthreads();
}

__device__ inline float block_max(float x) {
  __shared__ float shared[32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  x = warp_max(x);
  if (warps == 1) return x;
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_max(lane < warps ? shared[lane] : -INFINITY);
  __syncthreads();
  return x;
}

// ------------------------------------------------------------------------------------------- launches

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

template <class T>
T* ptr(const Tensor& x) {
  if constexpr (std::is_same_v<std::remove_const_t<T>, Bf16>) {
    return reinterpret_cast<T*>(x.as<bf16>());
  } else {
    return x.as<std::remove_const_t<T>>();
  }
}

/// As ptr, null where the tensor is not given.
template <class T>
T* ptr_or_null(const Tensor& x) {
  return x ? ptr<T>(x) : nullptr;
}

template <class T>
struct Type {
  using type = T;
};
template <int I>
using Int = std::integral_constant<int, I>;

[[noreturn]] inline void refuse(const char* op, DType dtype) {
  throw Error(std::string(op) + ": " + name_of(dtype) + " is not computed on the GPU (f32 and bf16 are)");
}

/// Calls f with the element type of the activations or gradients: float or Bf16.
template <class F>
void with_float_type(const char* op, DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(Type<float>{});
    case DType::bf16:
      return f(Type<Bf16>{});
    default:
      refuse(op, dtype);
  }
}

/// True where every given tensor starts and strides on `bytes` and its rows are whole packs.
inline bool aligned(int bytes, std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [bytes](const Tensor* x) {
    if (!*x) return true;
    const std::size_t size = size_of(x->dtype());
    const bool flat = x->dims() == 1;
    const auto row = static_cast<std::size_t>(flat ? x->numel() : x->cols()) * size;
    const auto stride = static_cast<std::size_t>(flat ? 0 : x->row_stride()) * size;
    return (reinterpret_cast<std::uintptr_t>(x->data()) | row | stride) % static_cast<std::size_t>(bytes) ==
           0;
  });
}

/// How one block holds one row in registers: W elements per pack, up to K packs per thread.
template <class T, bool kVector, int kPacks = kVector ? 4 : 8, int kThreads = 512>
struct RowShape {
  static constexpr int W = kVector ? 16 / static_cast<int>(sizeof(T)) : 1;
  static constexpr int K = kPacks;
  static constexpr int kMaxThreads = kThreads;

  static int threads(const char* op, std::int64_t n) {
    const std::int64_t packs = ceil_div(n, W);
    const std::int64_t threads = std::max<std::int64_t>(32, ceil_div(ceil_div(packs, K), 32) * 32);
    if (threads > kMaxThreads)
      throw Error(std::string(op) + ": rows of " + std::to_string(n) + " elements are longer than the " +
                  std::to_string(kMaxThreads * K * W) + " that the GPU kernel holds");
    return static_cast<int>(threads);
  }
};

/// Calls f(k, at) for the packs of the row that this thread, one of `threads`, owns.
template <class S, class F>
__device__ inline void for_packs(int n, F&& f, int thread = static_cast<int>(threadIdx.x),
                                 int threads = static_cast<int>(blockDim.x)) {
#pragma unroll
  for (int k = 0; k < S::K; ++k) {
    const int at = (thread + k * threads) * S::W;
    if (at < n) f(k, at);
  }
}

/// Calls f(Type<T>, bool_constant<vector path>).
template <class F>
void with_row_type(const char* op, DType dtype, bool vector, F&& f) {
  with_float_type(op, dtype, [&](auto type) {
    if (vector) {
      f(type, std::true_type{});
    } else {
      f(type, std::false_type{});
    }
  });
}

/// Blocks for a loop over `items` where each thread takes one, within the limit of a grid's x dimension.
inline unsigned blocks_for(std::int64_t items, int threads) {
  return static_cast<unsigned>(std::max<std::int64_t>(1, ceil_div(items, threads)));
}

/// Fast tanh for results that are rounded to bf16 (absolute error about 1e-7); exact to float32 otherwise.
template <class T>
__device__ inline float tanh_for(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return tanhf(x);
  } else {
    const float e = __expf(-2.0f * fabsf(x));
    return copysignf(__fdividef(1.0f - e, 1.0f + e), x);
  }
}

/// d [n] += sums over the rows of partial [rows, n] (float32, contiguous), in a fixed order. The same for
/// `other`, where given, and the next `rows` rows.
void add_row_sums(Stream& stream, const float* partial, std::int64_t rows, std::int64_t n, const Tensor& d,
                  const Tensor& other = Tensor());

}  // namespace lapidary
