// One attention head in the registers of a warp, or of half a warp: what the passes between the fused
// projection and q, k, v share. A lane holds components j and j + d/2 of the same pairs, so that the rotation
// needs no exchange.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

/// A lane's share of a head: K chunks of W pairs. L lanes hold a head, so a warp 32 / L of them.
template <int kWidth, int kChunks, int kLanes = 32>
struct HeadShape {
  static constexpr int W = kWidth, K = kChunks, L = kLanes;
};
constexpr std::int64_t kMaxDim = 512;

struct HeadSizes {
  int heads, kv_heads, half, pairs;  ///< half = d / 2
  bool shared_kv;
  float inverse_dim;
  __host__ __device__ int slots() const { return heads + (shared_kv ? 1 : 2) * kv_heads; }  ///< heads in qkv
};

/// How warps share a token's heads: `held` neighbours of one kind each.
struct HeadParts {
  int held;
  int q, k, v;  ///< warps for the heads of each kind

  HeadParts(const HeadSizes& z, int held_heads)
      : held(held_heads),
        q(static_cast<int>(ceil_div(z.heads, held))),
        k(static_cast<int>(ceil_div(z.kv_heads, held))),
        v(z.shared_kv ? 0 : k) {}
  __host__ __device__ int all() const { return q + k + v; }
};

/// One of those parts.
struct HeadPart {
  bool is_q, is_v;
  int first;  ///< of its heads, among those of its kind
  int heads;  ///< of its kind
  int slot;   ///< heads of a token before those of its kind

  __device__ HeadPart(const HeadSizes& z, const HeadParts& parts, int part)
      : is_q(part < parts.q), is_v(part >= parts.q + parts.k) {
    first = (part - (is_q ? 0 : is_v ? parts.q + parts.k : parts.q)) * parts.held;
    heads = is_q ? z.heads : z.kv_heads;
    slot = is_q ? 0 : is_v ? z.heads + z.kv_heads : z.heads;
  }
};

template <class S>
__device__ inline int chunk_at(int k) {
  return (static_cast<int>(threadIdx.x) % S::L + S::L * k) * S::W;
}

/// Sums over the lanes that share a head, for M heads at once.
template <class S, int M>
__device__ inline void sum_over_head(float (&x)[M]) {
#pragma unroll
  for (int lane = S::L / 2; lane > 0; lane /= 2) {
#pragma unroll
    for (int m = 0; m < M; ++m) x[m] += __shfl_xor_sync(0xffffffffu, x[m], lane);
  }
}

/// cos and sin of this lane's pairs; pairs that do not rotate get the angle 0.
template <class S>
struct Angles {
  float c[S::K][S::W], s[S::K][S::W];

  /// cos, sin: one token's, whole packs (heads_aligned).
  __device__ void load(const float* cos, const float* sin, const HeadSizes& z) {
    constexpr int kStep = S::W < 4 ? S::W : 4;  // 16 bytes
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
#pragma unroll
      for (int j = 0; j < S::W; j += kStep) {
        const int pair = chunk_at<S>(k) + j;
        Pack<float, kStep> cosines, sines;
        if (pair < z.pairs)
          cosines = Pack<float, kStep>::load(cos + pair), sines = Pack<float, kStep>::load(sin + pair);
#pragma unroll
        for (int i = 0; i < kStep; ++i) {
          c[k][j + i] = pair < z.pairs ? cosines.get(i) : 1.0f;
          s[k][j + i] = pair < z.pairs ? sines.get(i) : 0.0f;
        }
      }
    }
  }
};

/// The lane's components of one head in float32: a below d/2, b above. Zero beyond the head.
template <class S>
struct Head {
  float a[S::K][S::W], b[S::K][S::W];

  /// kWhole: the lanes' components are just those of a head.
  template <bool kWhole = false, class T>
  __device__ void store(T* head, int half) const {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
      const int at = chunk_at<S>(k);
      if (!kWhole && at >= half) continue;
      Pack<T, S::W>::from(a[k]).store(head + at);
      Pack<T, S::W>::from(b[k]).store(head + half + at);
    }
  }

  /// The lane's part of the product with another head.
  __device__ float own_dot(const Head& other) const {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        sum += a[k][i] * other.a[k][i];
        sum += b[k][i] * other.b[k][i];
      }
    }
    return sum;
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

  /// this += the same components of the heads that the warp's other lanes hold, in a fixed order
  __device__ void add_other_heads() {
    each([](float& x, float& y, int, int) {
#pragma unroll
      for (int lane = S::L; lane < 32; lane *= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, lane);
        y += __shfl_xor_sync(0xffffffffu, y, lane);
      }
    });
  }

  __device__ void multiply(const Head& other) {
    each([&](float& x, float& y, int k, int i) { x *= other.a[k][i], y *= other.b[k][i]; });
  }

  __device__ void scale(float factor) {
    each([&](float& x, float& y, int, int) { x *= factor, y *= factor; });
  }
};

/// The lane's components of one head as they lie in memory; zero where the head is not there.
template <class T, class S>
struct RawHead {
  Pack<T, S::W> a[S::K], b[S::K];

  /// kWhole: the lanes' components are just those of a head, and there is one.
  template <bool kWhole = false>
  __device__ void load(const T* head, int half, bool present) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
      const int at = chunk_at<S>(k);
      if (kWhole || (present && at < half)) {
        a[k] = Pack<T, S::W>::load(head + at);
        b[k] = Pack<T, S::W>::load(head + half + at);
      } else {
        a[k] = b[k] = {};
      }
    }
  }

  __device__ void unpack(Head<S>& out) const {
    out.each([&](float& x, float& y, int k, int i) { x = a[k].get(i), y = b[k].get(i); });
  }

  /// What is unpacked behind this is unpacked there: the compiler would keep what it has unpacked before, in
  /// twice the registers.
  __device__ void stay_packed() {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
#pragma unroll
      for (int i = 0; i < Pack<T, S::W>::kWords; ++i) {
        asm volatile("" : "+r"(a[k].word[i]));
        asm volatile("" : "+r"(b[k].word[i]));
      }
    }
  }
};

inline HeadSizes head_sizes(const char* op, const QkvSizes& s, bool shared_kv) {
  if (s.dim > kMaxDim)
    throw Error(std::string(op) + ": heads of " + std::to_string(s.dim) + " components are larger than the " +
                std::to_string(kMaxDim) + " that the GPU kernel holds");
  return {.heads = static_cast<int>(s.heads),
          .kv_heads = static_cast<int>(s.kv_heads),
          .half = static_cast<int>(s.dim / 2),
          .pairs = static_cast<int>(s.pairs),
          .shared_kv = shared_kv,
          .inverse_dim = 1.0f / static_cast<float>(s.dim)};
}

/// True where each half of every head is whole packs of 16 bytes, and every token's angles are.
inline bool heads_aligned(const QkvSizes& s, DType dtype, std::initializer_list<const Tensor*> tensors) {
  const auto pack = static_cast<std::int64_t>(16 / size_of(dtype));
  return s.dim % (2 * pack) == 0 && s.pairs % 4 == 0 &&
         std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor* x) { return reinterpret_cast<std::uintptr_t>(x->data()) % 16 == 0; });
}

/// Calls f(Type<T>, the HeadShape of the head size): packs of 16 bytes, or single components.
template <class F>
void with_head_shape(const char* op, DType dtype, std::int64_t dim, bool vector, F&& f) {
  with_float_type(op, dtype, [&](auto type) {
    constexpr int W = 16 / static_cast<int>(sizeof(typename decltype(type)::type));
    constexpr int kLanes = 128 / W;  // of half a head of 256
    if (!vector) return f(type, HeadShape<1, 8>{});
    if (dim <= 256) return f(type, HeadShape<W, 1, kLanes>{});
    f(type, HeadShape<W, 2 * kLanes / 32>{});
  });
}

}  // namespace lapidary
