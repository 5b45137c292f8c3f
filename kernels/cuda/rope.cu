// Rotary tables and the pass from the fused projection to q, k and v (its backward: rope_backward.cu). One
// block owns one token: its warps take the heads in turn and keep the token's angles in registers.
#include "kernels/cuda/heads.cuh"

namespace lapidary {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

__global__ void rope_table(const std::int32_t* positions, const float* frequencies, float* cos, float* sin,
                           std::int64_t items, int pairs) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= items) return;
  const float angle = static_cast<float>(positions[i / pairs]) * frequencies[i % pairs];
  // The accurate functions: angles reach 2.6e5, where the fast ones are wrong.
  sincosf(angle, &sin[i], &cos[i]);
}

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

  __device__ void unpack(Head<S>& out) const {
    out.each([&](float& x, float& y, int k, int i) { x = a[k].get(i), y = b[k].get(i); });
  }
};

/// One of two, without a choice of addresses that would send them to memory.
template <class T, class S>
__device__ inline void unpack_one(bool first, const RawHead<T, S>& p, const RawHead<T, S>& q, Head<S>& out) {
  out.each([&](float& x, float& y, int k, int i) {
    x = first ? p.a[k].get(i) : q.a[k].get(i);
    y = first ? p.b[k].get(i) : q.b[k].get(i);
  });
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
  const int dim = 2 * z.half, slots = z.slots();
  Angles<S> angles;
  angles.load(p.cos + token * z.pairs, p.sin + token * z.pairs, z);
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
    ahead.unpack(x);
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
    unpack_one(kv < 0, q_weight, k_weight, w);
    x.multiply(w);
    x.rotate(angles, 1.0f);
    x.store(kv < 0 ? p.q + (token * z.heads + slot) * dim : p.k + (token * z.kv_heads + kv) * dim, z.half);
  }
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
  const bool vector = heads_aligned(s, {&qkv, &q_weight, &k_weight, &cos, &sin, &q, &k, &v});
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

}  // namespace lapidary
