// Backward of the pass from the fused projection to q, k and v. Each warp keeps its part of the weight
// gradients in registers while it walks over heads; a second, ordered pass adds the parts.
#include "kernels/cuda/token_ring.cuh"

namespace lapidary {

namespace {

template <class T>
struct QkvBackward {
  TokenRows<T> from;
  TokenStage stage;
  HeadSizes z;
  const T *q_weight, *k_weight;
  const float* rstd;
  T* d_qkv;
  float* partial;  ///< [blocks, d] of q_weight, then of k_weight
  std::int64_t tokens;
};

/// One head slot of a token: its part of the weights' gradients, and d(qkv).
template <class T, class S>
__device__ inline void head_backward(const QkvBackward<T>& p, const TokenRows<T>& rows, int slot, float rstd,
                                     T* d_qkv, Head<S> (&dw)[2]) {
  const HeadSizes& z = p.z;
  const int dim = 2 * z.half, kv = slot - z.heads;
  Head<S> x, g;
  x.load(rows.qkv + slot * dim, z.half);
  if (kv >= z.kv_heads) {
    g.load(rows.d_v + (kv - z.kv_heads) * dim, z.half);
  } else {
    g.load(kv < 0 ? rows.d_q + slot * dim : rows.d_k + kv * dim, z.half);
    Angles<S> angles;
    angles.load(rows.cos, rows.sin, z);
    g.rotate(angles, -1.0f);
    if (kv < 0) {
      dw[0].add_product(g, x, rstd);
    } else {
      dw[1].add_product(g, x, rstd);
    }
    Head<S> w;
    w.load(kv < 0 ? p.q_weight : p.k_weight, z.half);
    g.multiply(w);
    if (kv >= 0 && z.shared_kv) {
      // Both norms read the same input with the same rstd: their gradients add before the norm's backward.
      Head<S> dv;
      dv.load(rows.d_v + kv * dim, z.half);
      g.each([&](float& low, float& high, int k, int i) { low += dv.a[k][i], high += dv.b[k][i]; });
    }
  }
  g.norm_backward(x, rstd, z.half);
  g.store(d_qkv + slot * dim, z.half);
}

/// Sums the warps' weight gradients in order and leaves the block's part. shared: [kTokenWarps, d].
template <class S>
__device__ void store_partial(const Head<S>& dw, float* to, int half, float* shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, dim = 2 * half;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < S::K; ++k) {
    const int at = chunk_at<S>(k);
    if (at >= half || warp == kTokenWarps) continue;
#pragma unroll
    for (int i = 0; i < S::W; ++i) {
      shared[warp * dim + at + i] = dw.a[k][i];
      shared[warp * dim + half + at + i] = dw.b[k][i];
    }
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < dim; j += kTokenThreads) {
    float sum = 0.0f;
    for (int w = 0; w < kTokenWarps; ++w) sum += shared[w * dim + j];
    to[j] = sum;
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kTokenThreads, 1)
    qkv_norm_rope_backward(const __grid_constant__ QkvBackward<T> p) {
  extern __shared__ __align__(128) char dynamic[];
  const BlockRows tokens(p.tokens);
  const HeadSizes& z = p.z;
  const int slots = z.slots(), dim = 2 * z.half;
  // rstd of the warp's next head is loaded while the one before is computed.
  const auto load_rstd = [&](std::int64_t token, int slot) {
    while (slot >= slots) slot -= slots, ++token;
    return token < tokens.end ? p.rstd[token * (z.heads + 2 * z.kv_heads) + slot] : 0.0f;
  };
  float ahead = load_rstd(tokens.begin, static_cast<int>(threadIdx.x) / 32);
  Head<S> dw[2] = {};  // of the q and k weights
  for_heads<T, S>(p.from, z, TokenRing{p.stage, dynamic}, tokens,
                  [&](const TokenRows<T>& rows, std::int64_t token, int slot) {
                    const float rstd = ahead;
                    ahead = load_rstd(token, slot + kTokenWarps);
                    head_backward<T, S>(p, rows, slot, rstd, p.d_qkv + token * slots * dim, dw);
                  });
  // The stages have been read: their memory serves again.
  auto* sums = reinterpret_cast<float*>(dynamic + TokenStage::kHeader);
  store_partial(dw[0], p.partial + static_cast<std::int64_t>(blockIdx.x) * dim, z.half, sums);
  store_partial(dw[1], p.partial + static_cast<std::int64_t>(gridDim.x + blockIdx.x) * dim, z.half, sums);
}

}  // namespace

void QkvNormRopeBackward::cuda(Stream& stream) const {
  check(*this);
  constexpr const char* kOp = "QkvNormRopeBackward";
  const QkvSizes s = sizes_of(*this);
  if (s.tokens == 0) return;
  const HeadSizes z = head_sizes(kOp, s, shared_kv);
  const TokenStage stage(z, size_of(qkv.dtype()));
  const bool vector =
      tokens_aligned(s, stage, {&qkv, &cos, &sin, &d_q, &d_k, &d_v}, {&q_weight, &k_weight, &d_qkv});
  const std::int64_t blocks = ring_blocks(s.tokens);
  auto* partial = reinterpret_cast<float*>(scratch.data());
  with_head_shape(kOp, d_q.dtype(), s.dim, vector, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const QkvBackward<T> p{
        .from = {ptr<T>(d_q), ptr<T>(d_k), ptr<T>(d_v), ptr<T>(qkv), ptr<float>(cos), ptr<float>(sin)},
        .stage = stage,
        .z = z,
        .q_weight = ptr<T>(q_weight),
        .k_weight = ptr<T>(k_weight),
        .rstd = ptr<float>(rstd),
        .d_qkv = ptr<T>(d_qkv),
        .partial = partial,
        .tokens = s.tokens};
    const int staged = kStaged<S> ? stage.stages * stage.bytes : 0;
    const int sums = kTokenWarps * static_cast<int>(s.dim) * static_cast<int>(sizeof(float));
    launch_ring(kOp, qkv_norm_rope_backward<T, S>, blocks, kTokenThreads,
                static_cast<std::size_t>(TokenStage::kHeader + std::max(staged, sums)), stream, p);
  });
  add_row_sums(stream, partial, blocks, s.dim, d_q_weight, d_k_weight);
}

}  // namespace lapidary
