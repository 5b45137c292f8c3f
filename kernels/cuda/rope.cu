// Rotary tables and the pass from the fused projection to q, k and v, with its backward. One block owns one
// token: its warps take the heads in turn and keep the token's angles in registers. A lane holds components j
// and j + d/2 of the same pairs, so that the rotation needs no exchange.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/partials.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

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
};

template <class S>
__device__ inline int chunk_at(int k) {
  return (static_cast<int>(threadIdx.x) % 32 + 32 * k) * S::W;
}

/// cos and sin of this lane's pairs; pairs that do not rotate get the angle 0.
template <class S>
struct Angles {
  float c[S::K][S::W], s[S::K][S::W];

  __device__ void load(const float* cos, const float* sin, std::int64_t token, const HeadSizes& z) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        const int pair = chunk_at<S>(k) + i;
        const bool rotates = pair < z.pairs;
        c[k][i] = rotates ? cos[token * z.pairs + pair] : 1.0f;
        s[k][i] = rotates ? sin[token * z.pairs + pair] : 0.0f;
      }
    }
  }
};

/// The lane's components of one head as they are loaded: a head's loads are issued while the one before is
/// computed, because a warp waits for its own reductions in between.
template <class T, class S>
struct RawHead {
  Pack<T, S::W> a[S::K], b[S::K];

  __device__ void load(const T* head, int half) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
      const int at = chunk_at<S>(k);
      if (at < half) {
        a[k] = Pack<T, S::W>::load(head + at);
        b[k] = Pack<T, S::W>::load(head + half + at);
      } else {
#pragma unroll
        for (int i = 0; i < Pack<T, S::W>::kWords; ++i) a[k].word[i] = b[k].word[i] = 0;
      }
    }
  }
};

/// The lane's components of one head in float32: a below d/2, b above. Zero beyond the head.
template <class S>
struct Head {
  float a[S::K][S::W], b[S::K][S::W];

  template <class T>
  __device__ void unpack(const RawHead<T, S>& raw) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
#pragma unroll
      for (int i = 0; i < S::W; ++i) a[k][i] = raw.a[k].get(i), b[k][i] = raw.b[k].get(i);
    }
  }

  template <class T>
  __device__ void load(const T* head, int half) {
    RawHead<T, S> raw;
    raw.load(head, half);
    unpack(raw);
  }

  /// One of two, without a choice of addresses that would send them to memory.
  template <class T>
  __device__ void unpack(bool first, const RawHead<T, S>& p, const RawHead<T, S>& q) {
#pragma unroll
    for (int k = 0; k < S::K; ++k) {
#pragma unroll
      for (int i = 0; i < S::W; ++i) {
        a[k][i] = first ? p.a[k].get(i) : q.a[k].get(i);
        b[k][i] = first ? p.b[k].get(i) : q.b[k].get(i);
      }
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

  /// this = gradient of x rstd at x where g is the gradient of the result: rstd g - x rstd^3 mean(g x).
  __device__ void norm_backward(const Head& g, const Head& input, float rstd, int half) {
    const float pull = rstd * rstd * rstd * g.dot(input) / static_cast<float>(2 * half);
    each([&](float& x, float& y, int k, int i) {
      x = rstd * g.a[k][i] - pull * input.a[k][i];
      y = rstd * g.b[k][i] - pull * input.b[k][i];
    });
  }
};

__global__ void rope_table(const std::int32_t* positions, const float* frequencies, float* cos, float* sin,
                           std::int64_t items, int pairs) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= items) return;
  const float angle = static_cast<float>(positions[i / pairs]) * frequencies[i % pairs];
  // The accurate functions: angles reach 2.6e5, where the fast ones are wrong.
  sincosf(angle, &sin[i], &cos[i]);
}

template <class T>
struct QkvForward {
  const T *qkv, *q_weight, *k_weight;
  const float *cos, *sin;
  T *q, *k, *v;
  float* rstd;
  float eps;
  HeadSizes z;
};

template <class T, class S>
__global__ void __launch_bounds__(kThreads) qkv_norm_rope(QkvForward<T> p) {
  const HeadSizes z = p.z;
  const std::int64_t token = blockIdx.x;
  const int dim = 2 * z.half, slots = z.heads + (z.shared_kv ? 1 : 2) * z.kv_heads;
  Angles<S> angles;
  angles.load(p.cos, p.sin, token, z);
  const T* row = p.qkv + token * slots * dim;
  float* rstd = p.rstd + token * (z.heads + 2 * z.kv_heads);
  const bool writes_rstd = threadIdx.x % 32 == 0;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  RawHead<T, S> ahead, further, q_weight, k_weight;
  if (warp < slots) ahead.load(row + warp * dim, z.half);
  if (warp + kWarps < slots) further.load(row + (warp + kWarps) * dim, z.half);
  q_weight.load(p.q_weight, z.half);
  k_weight.load(p.k_weight, z.half);
  for (int slot = warp; slot < slots; slot += kWarps) {
    Head<S> x;
    x.unpack(ahead);
    ahead = further;
    if (slot + 2 * kWarps < slots) further.load(row + (slot + 2 * kWarps) * dim, z.half);
    const float scale = rsqrtf(x.dot(x) / static_cast<float>(dim) + p.eps);
    if (writes_rstd) rstd[slot] = scale;
    x.scale(scale);
    const int kv = slot - z.heads;
    if (kv >= z.kv_heads) {
      x.store(p.v + (token * z.kv_heads + kv - z.kv_heads) * dim, z.half);
      continue;
    }
    if (kv >= 0 && z.shared_kv) {
      x.store(p.v + (token * z.kv_heads + kv) * dim, z.half);
      if (writes_rstd) rstd[slot + z.kv_heads] = scale;
    }
    Head<S> w;
    w.unpack(kv < 0, q_weight, k_weight);
    x.multiply(w);
    x.rotate(angles, 1.0f);
    x.store(kv < 0 ? p.q + (token * z.heads + slot) * dim : p.k + (token * z.kv_heads + kv) * dim, z.half);
  }
}

template <class T>
struct QkvBackward {
  const T *d_q, *d_k, *d_v, *qkv, *q_weight, *k_weight;
  const float *cos, *sin, *rstd;
  T* d_qkv;
  float* partial;  ///< [blocks, d] of q_weight, then of k_weight
  std::int64_t tokens;
  HeadSizes z;
};

/// Sums the warps' weight gradients in order and leaves the block's part.
template <class S>
__device__ void store_partial(const Head<S>& dw, float* to, int half, float* shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, dim = 2 * half;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < S::K; ++k) {
    const int at = chunk_at<S>(k);
    if (at >= half) continue;
#pragma unroll
    for (int i = 0; i < S::W; ++i) {
      shared[warp * dim + at + i] = dw.a[k][i];
      shared[warp * dim + half + at + i] = dw.b[k][i];
    }
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < dim; j += kThreads) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += shared[w * dim + j];
    to[j] = sum;
  }
}

/// The gradient that arrives for a head slot of a token.
template <class T>
__device__ inline const T* arriving(const QkvBackward<T>& p, std::int64_t token, int slot) {
  const HeadSizes& z = p.z;
  const int dim = 2 * z.half, kv = slot - z.heads;
  if (kv < 0) return p.d_q + (token * z.heads + slot) * dim;
  if (kv < z.kv_heads) return p.d_k + (token * z.kv_heads + kv) * dim;
  return p.d_v + (token * z.kv_heads + kv - z.kv_heads) * dim;
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, S::K == 1 ? 3 : 2) qkv_norm_rope_backward(QkvBackward<T> p) {
  __shared__ float shared[kWarps * S::kMaxDim];
  const HeadSizes z = p.z;
  const int dim = 2 * z.half, slots = z.heads + (z.shared_kv ? 1 : 2) * z.kv_heads;
  Head<S> dw[2] = {};  // of the q and k weights
  RawHead<T, S> x_ahead, g_ahead, q_weight, k_weight;
  q_weight.load(p.q_weight, z.half);
  k_weight.load(p.k_weight, z.half);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  // A warp's heads, token after token: the next one's loads are in flight across tokens too.
  const auto load_ahead = [&](std::int64_t token, int slot) {
    if (slot >= slots) slot = warp, token += gridDim.x;
    if (slot >= slots || token >= p.tokens) return;
    x_ahead.load(p.qkv + (token * slots + slot) * dim, z.half);
    g_ahead.load(arriving(p, token, slot), z.half);
  };
  load_ahead(blockIdx.x, warp);
  for (std::int64_t token = blockIdx.x; token < p.tokens; token += gridDim.x) {
    Angles<S> angles;
    angles.load(p.cos, p.sin, token, z);
    const float* rstd = p.rstd + token * (z.heads + 2 * z.kv_heads);
    const std::int64_t row = token * slots * dim;
    for (int slot = warp; slot < slots; slot += kWarps) {
      const int kv = slot - z.heads;
      Head<S> x, g, dx;
      x.unpack(x_ahead);
      g.unpack(g_ahead);
      load_ahead(token, slot + kWarps);
      const float scale = rstd[slot];
      if (kv >= z.kv_heads) {
        dx.norm_backward(g, x, scale, z.half);
        dx.store(p.d_qkv + row + slot * dim, z.half);
        continue;
      }
      g.rotate(angles, -1.0f);
      if (kv < 0) {
        dw[0].add_product(g, x, scale);
      } else {
        dw[1].add_product(g, x, scale);
      }
      Head<S> w;
      w.unpack(kv < 0, q_weight, k_weight);
      g.multiply(w);
      if (kv >= 0 && z.shared_kv) {
        // Both norms read the same input with the same rstd: their gradients add before the norm's backward.
        Head<S> dv;
        dv.load(p.d_v + (token * z.kv_heads + kv) * dim, z.half);
        g.each([&](float& low, float& high, int k, int i) { low += dv.a[k][i], high += dv.b[k][i]; });
      }
      dx.norm_backward(g, x, scale, z.half);
      dx.store(p.d_qkv + row + slot * dim, z.half);
    }
  }
  store_partial(dw[0], p.partial + static_cast<std::int64_t>(blockIdx.x) * dim, z.half, shared);
  store_partial(dw[1], p.partial + static_cast<std::int64_t>(gridDim.x + blockIdx.x) * dim, z.half, shared);
}

HeadSizes head_sizes(const char* op, const QkvSizes& s, bool shared_kv) {
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

/// True where packs of four components may be used for every half of every head.
bool heads_aligned(std::int64_t dim, std::initializer_list<const Tensor*> tensors) {
  return dim % 8 == 0 && std::all_of(tensors.begin(), tensors.end(), [](const Tensor* x) {
           return reinterpret_cast<std::uintptr_t>(x->data()) % (4 * size_of(x->dtype())) == 0;
         });
}

}  // namespace

void RopeTable::cuda(Stream& stream) const {
  check(*this);
  const std::int64_t items = cos.numel();
  if (items == 0) return;
  constexpr int kBlock = 256;
  rope_table<<<blocks_for(items, kBlock), kBlock, 0, cuda_stream(stream)>>>(
      ptr<std::int32_t>(positions), ptr<float>(frequencies), ptr<float>(cos), ptr<float>(sin), items,
      static_cast<int>(frequencies.numel()));
  launched("RopeTable");
}

void QkvNormRope::cuda(Stream& stream) const {
  check(*this);
  const QkvSizes s = sizes_of(*this);
  if (s.tokens == 0) return;
  const HeadSizes z = head_sizes("QkvNormRope", s, shared_kv);
  const bool vector = heads_aligned(s.dim, {&qkv, &q_weight, &k_weight, &q, &k, &v});
  with_head_shape("QkvNormRope", q.dtype(), s.dim, vector, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    const QkvForward<T> p{ptr<T>(qkv),
                          ptr<T>(q_weight),
                          ptr<T>(k_weight),
                          ptr<float>(cos),
                          ptr<float>(sin),
                          ptr<T>(q),
                          ptr<T>(k),
                          ptr<T>(v),
                          ptr<float>(rstd),
                          static_cast<float>(eps),
                          z};
    qkv_norm_rope<T, decltype(shape)>
        <<<static_cast<unsigned>(s.tokens), kThreads, 0, cuda_stream(stream)>>>(p);
  });
  launched("QkvNormRope");
}

void QkvNormRopeBackward::cuda(Stream& stream) const {
  check(*this);
  const QkvSizes s = sizes_of(*this);
  if (s.tokens == 0) return;
  const HeadSizes z = head_sizes("QkvNormRopeBackward", s, shared_kv);
  const bool vector = heads_aligned(s.dim, {&qkv, &q_weight, &k_weight, &d_q, &d_k, &d_v, &d_qkv});
  const std::int64_t blocks = qkv_blocks(s.tokens);
  float* partial = reinterpret_cast<float*>(scratch.data());
  with_head_shape("QkvNormRopeBackward", d_q.dtype(), s.dim, vector, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    const QkvBackward<T> p{ptr<T>(d_q),
                           ptr<T>(d_k),
                           ptr<T>(d_v),
                           ptr<T>(qkv),
                           ptr<T>(q_weight),
                           ptr<T>(k_weight),
                           ptr<float>(cos),
                           ptr<float>(sin),
                           ptr<float>(rstd),
                           ptr<T>(d_qkv),
                           partial,
                           s.tokens,
                           z};
    qkv_norm_rope_backward<T, decltype(shape)>
        <<<static_cast<unsigned>(blocks), kThreads, 0, cuda_stream(stream)>>>(p);
  });
  launched("QkvNormRopeBackward");
  add_row_sums(stream, partial, blocks, s.dim, d_q_weight);
  add_row_sums(stream, partial + blocks * s.dim, blocks, s.dim, d_k_weight);
}

}  // namespace lapidary
