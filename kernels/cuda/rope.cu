// Rotary tables and the pass from the fused projection to q, k and v (its backward: rope_backward.cu).
#include "kernels/cuda/token_ring.cuh"

namespace lapidary {

namespace {

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
  TokenRows<T> from;
  TokenStage stage;
  HeadSizes z;
  const T *q_weight, *k_weight;
  T *q, *k, *v;
  float* rstd;
  float eps;
  std::int64_t tokens;
};

template <class T, class S>
__device__ inline void head_forward(const QkvForward<T>& p, const TokenRows<T>& rows, std::int64_t token,
                                    int slot) {
  const HeadSizes& z = p.z;
  const int dim = 2 * z.half, kv = slot - z.heads;
  float* rstd = p.rstd + token * (z.heads + 2 * z.kv_heads);
  const bool writes_rstd = threadIdx.x % 32 == 0;
  Head<S> x;
  x.load(rows.qkv + slot * dim, z.half);
  const float scale = rsqrtf(x.dot(x) / static_cast<float>(dim) + p.eps);
  if (writes_rstd) rstd[slot] = scale;
  x.scale(scale);
  if (kv >= z.kv_heads) {
    x.store(p.v + (token * z.kv_heads + kv - z.kv_heads) * dim, z.half);
    return;
  }
  if (kv >= 0 && z.shared_kv) {
    x.store(p.v + (token * z.kv_heads + kv) * dim, z.half);
    if (writes_rstd) rstd[slot + z.kv_heads] = scale;
  }
  Head<S> w;
  w.load(kv < 0 ? p.q_weight : p.k_weight, z.half);
  x.multiply(w);
  Angles<S> angles;
  angles.load(rows.cos, rows.sin, z);
  x.rotate(angles, 1.0f);
  x.store(kv < 0 ? p.q + (token * z.heads + slot) * dim : p.k + (token * z.kv_heads + kv) * dim, z.half);
}

template <class T, class S>
__global__ void __launch_bounds__(kTokenThreads, 1) qkv_norm_rope(const __grid_constant__ QkvForward<T> p) {
  extern __shared__ __align__(128) char dynamic[];
  for_heads<T, S>(p.from, p.z, TokenRing{p.stage, dynamic}, BlockRows(p.tokens),
                  [&](const TokenRows<T>& rows, std::int64_t token, int slot) {
                    head_forward<T, S>(p, rows, token, slot);
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
  constexpr const char* kOp = "QkvNormRope";
  const QkvSizes s = sizes_of(*this);
  if (s.tokens == 0) return;
  const HeadSizes z = head_sizes(kOp, s, shared_kv);
  const TokenStage stage(z, size_of(qkv.dtype()), false);
  const bool vector = tokens_aligned(s, stage, {&qkv, &cos, &sin}, {&q_weight, &k_weight, &q, &k, &v});
  with_head_shape(kOp, q.dtype(), s.dim, vector, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const QkvForward<T> p{.from = {nullptr, nullptr, nullptr, ptr<T>(qkv), ptr<float>(cos), ptr<float>(sin)},
                          .stage = stage,
                          .z = z,
                          .q_weight = ptr<T>(q_weight),
                          .k_weight = ptr<T>(k_weight),
                          .q = ptr<T>(q),
                          .k = ptr<T>(k),
                          .v = ptr<T>(v),
                          .rstd = ptr<float>(rstd),
                          .eps = static_cast<float>(eps),
                          .tokens = s.tokens};
    const int staged = kStaged<S> ? stage.stages * stage.bytes : 0;
    launch_ring(kOp, qkv_norm_rope<T, S>, ring_blocks(s.tokens), kTokenThreads,
                static_cast<std::size_t>(TokenStage::kHeader + staged), stream, p);
  });
}

}  // namespace lapidary
