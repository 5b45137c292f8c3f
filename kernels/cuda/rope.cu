// Rotary tables and the pass from the fused projection to q, k and v (its backward: rope_backward.cu). A warp
// takes a few neighbouring heads of one kind and one token and loads all that it needs of them at once.
#include "kernels/cuda/heads.cuh"

namespace lapidary {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kHeadsAtOnce = 2;  ///< for each group of lanes: their loads and reductions overlap

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
  HeadParts parts;
  std::int64_t tokens;
};

/// Heads of one kind that a warp holds at once.
template <class S>
constexpr int kHeldHeads = 32 / S::L* kHeadsAtOnce;

template <class T, class S>
__global__ void __launch_bounds__(kThreads, 3) qkv_norm_rope(const __grid_constant__ QkvForward<T> p) {
  const HeadSizes& z = p.z;
  const unsigned warp = blockIdx.x * kWarps + threadIdx.x / 32, parts = static_cast<unsigned>(p.parts.all());
  const std::int64_t token = warp / parts;
  if (token >= p.tokens) return;
  const HeadPart part(z, p.parts, static_cast<int>(warp % parts));
  const int dim = 2 * z.half, heads = part.heads;
  const int first = part.first + static_cast<int>(threadIdx.x) % 32 / S::L;
  const T* from = p.qkv + (token * z.slots() + part.slot) * dim;
  RawHead<T, S> raw[kHeadsAtOnce], raw_weight{};
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    const int head = first + h * (32 / S::L);
    raw[h].load(from + head * dim, z.half, head < heads);
  }
  Angles<S> angles;
  if (!part.is_v) {
    raw_weight.load(part.is_q ? p.q_weight : p.k_weight, z.half, true);
    angles.load(p.cos + token * z.pairs, p.sin + token * z.pairs, z);
  }
  float square[kHeadsAtOnce];
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    Head<S> x;
    raw[h].unpack(x);
    square[h] = x.own_dot(x);
  }
  sum_over_head<S>(square);
  float* rstd = p.rstd + token * (z.heads + 2 * z.kv_heads) + part.slot;
  T* to = part.is_q ? p.q : part.is_v ? p.v : p.k;
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    const int head = first + h * (32 / S::L);
    if (head >= heads) continue;
    const float scale = rsqrtf(square[h] * z.inverse_dim + p.eps);
    const bool writes_rstd = threadIdx.x % S::L == 0, is_shared = !part.is_q && z.shared_kv;
    if (writes_rstd) rstd[head] = scale;
    if (writes_rstd && is_shared) rstd[head + z.kv_heads] = scale;
    raw[h].stay_packed(), raw_weight.stay_packed();
    Head<S> x;
    raw[h].unpack(x);
    x.scale(scale);
    const std::int64_t at = (token * heads + head) * dim;
    if (is_shared) x.store(p.v + at, z.half);
    if (!part.is_v) {
      Head<S> w;
      raw_weight.unpack(w);
      x.multiply(w);
      x.rotate(angles, 1.0f);
    }
    x.store(to + at, z.half);
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
  const bool vector = heads_aligned(s, q.dtype(), {&qkv, &q_weight, &k_weight, &cos, &sin, &q, &k, &v});
  with_head_shape("QkvNormRope", q.dtype(), s.dim, vector, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const QkvForward<T> p{.qkv = ptr<T>(qkv),
                          .q_weight = ptr<T>(q_weight),
                          .k_weight = ptr<T>(k_weight),
                          .cos = ptr<float>(cos),
                          .sin = ptr<float>(sin),
                          .q = ptr<T>(q),
                          .k = ptr<T>(k),
                          .v = ptr<T>(v),
                          .rstd = ptr<float>(rstd),
                          .eps = static_cast<float>(eps),
                          .z = z,
                          .parts = HeadParts(z, kHeldHeads<S>),
                          .tokens = s.tokens};
    const std::int64_t warps = s.tokens * p.parts.all();
    qkv_norm_rope<T, S><<<blocks_for(warps, kWarps), kThreads, 0, cuda_stream(stream)>>>(p);
  });
  launched("QkvNormRope");
}

}  // namespace lapidary
