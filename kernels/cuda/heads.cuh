// One attention head in the registers of one warp: what the passes between the fused projection and q, k, v
// share. A lane holds components j and j + d/2 of the same pairs, so that the rotation needs no exchange.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

/// A lane's share of a head: K chunks of W pairs.
template <int kWidth, int kChunks>
struct HeadShape {
  static constexpr int W = kWidth, K = kChunks;
  static constexpr std::int64_t kMaxDim = 2 * 32 * W * K;
};
constexpr std::int64_t kMaxDim = 512;

struct HeadSizes {
  int heads, kv_heads, half, pairs;  ///< half = d / 2
  bool shared_kv;
  __host__ __device__ int slots() const { return heads + (shared_kv ? 1 : 2) * kv_heads; }  ///< heads in qkv
};

template <class S>
__device__ inline int chunk_at(int k) {
  return (static_cast<int>(threadIdx.x) % 32 + 32 * k) * S::W;
}

/// cos and sin of this lane's pairs; pairs that do not rotate get the angle 0.
template <class S>
struct Angles {
  float c[S::K][S::W], s[S::K][S::W];

  /// cos, sin: one token's, whole packs of W (heads_aligned).
  __device__ void load(const float* cos, const float* sin, const HeadSizes& z) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
      const int pair = chunk_at<S>(k);
      Pack<float, S::W> cosines, sines;
      if (pair < z.pairs)
        cosines = Pack<float, S::W>::load(cos + pair), sines = Pack<float, S::W>::load(sin + pair);
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        c[k][i] = pair < z.pairs ? cosines.get(i) : 1.0f;
        s[k][i] = pair < z.pairs ? sines.get(i) : 0.0f;
      }
    }
  }
};

/// The lane's components of one head in float32: a below d/2, b above. Zero beyond the head.
template <class S>
struct Head {
  float a[S::K][S::W], b[S::K][S::W];

  template <class T>
  __device__ void load(const T* head, int half) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
      const int at = chunk_at<S>(k);
      Pack<T, S::W> low{}, high{};
      if (at < half) {
        low = Pack<T, S::W>::load(head + at);
        high = Pack<T, S::W>::load(head + half + at);
      }
#pragma unroll
      for (int i = 0; i < S::W; ++i) a[k][i] = low.get(i), b[k][i] = high.get(i);
    }
  }

  template <class T>
  __device__ void store(T* head, int half) const {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
      const int at = chunk_at<S>(k);
      if (at >= half) continue;
      Pack<T, S::W>::from(a[k]).store(head + at);
      Pack<T, S::W>::from(b[k]).store(head + half + at);
    }
  }

  __device__ float dot(const Head& other) const {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
#pragma unroll
      for (int i = 0; i < S::W; ++i) sum += a[k][i] * other.a[k][i] + b[k][i] * other.b[k][i];
    }
    return warp_sum(sum);
  }

  /// f(&component, index of the component in the lane's arrays, whether it lies in the upper half)
  template <class F>
  __device__ void each(F&& f) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
#pragma unroll
      for (int i = 0; i < S::W; ++i) f(a[k][i], b[k][i], k, i);
    }
  }

  /// Rotation by the angles, or by their negatives.
  __device__ void rotate(const Angles<S>& angles, float sign) {
    each([&](float& x, float& y, int k, int i) {
      const float c = angles.c[k][i], s = sign * angles.s[k][i], low = x;
      x = low * c - y * s;
      y = y * c + low * s;
    });
  }

  __device__ void multiply(const Head& other) {
    each([&](float& x, float& y, int k, int i) { x *= other.a[k][i], y *= other.b[k][i]; });
  }

  __device__ void scale(float factor) {
    each([&](float& x, float& y, int, int) { x *= factor, y *= factor; });
  }

  /// this += x y factor
  __device__ void add_product(const Head& p, const Head& q, float factor) {
    each([&](float& x, float& y, int k, int i) {
      x += p.a[k][i] * q.a[k][i] * factor;
      y += p.b[k][i] * q.b[k][i] * factor;
    });
  }

  /// From g, the gradient of x rstd, to that of x, the input: rstd g - x rstd^3 mean(g x).
  __device__ void norm_backward(const Head& input, float rstd, int half) {
    const float pull = rstd * rstd * rstd * dot(input) / static_cast<float>(2 * half);
    each([&](float& x, float& y, int k, int i) {
      x = rstd * x - pull * input.a[k][i];
      y = rstd * y - pull * input.b[k][i];
    });
  }
};

inline HeadSizes head_sizes(const char* op, const QkvSizes& s, bool shared_kv) {
  if (s.dim > kMaxDim)
    throw Error(std::string(op) + ": heads of " + std::to_string(s.dim) + " components are larger than the " +
                std::to_string(kMaxDim) + " that the GPU kernel holds");
  return {static_cast<int>(s.heads), static_cast<int>(s.kv_heads), static_cast<int>(s.dim / 2),
          static_cast<int>(s.pairs), shared_kv};
}

/// Calls f(Type<T>, the HeadShape of the head size).
template <class F>
void with_head_shape(const char* op, DType dtype, std::int64_t dim, bool vector, F&& f) {
  with_float_type(op, dtype, [&](auto type) {
    if (!vector) return f(type, HeadShape<1, 8>{});
    if (dim <= 256) return f(type, HeadShape<4, 1>{});
    f(type, HeadShape<4, 2>{});
  });
}

/// True where packs of four components may be used for every half of every head, and of four angles.
inline bool heads_aligned(const QkvSizes& s, std::initializer_list<const Tensor*> tensors) {
  return s.dim % 8 == 0 && s.pairs % 4 == 0 &&
         std::all_of(tensors.begin(), tensors.end(), [](const Tensor* x) {
           return reinterpret_cast<std::uintptr_t>(x->data()) % (4 * size_of(x->dtype())) == 0;
         });
}

}  // namespace lapidary
