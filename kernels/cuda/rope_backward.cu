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
  HeadParts parts;
  const T *q_weight, *k_weight;
  const float* rstd;
  T* d_qkv;
  float* partial;  ///< [blocks, d] of q_weight, then of k_weight
  int tokens;
};

/// What one head adds to its weight's gradient, and its d(qkv).
template <bool kWhole, class T, class S>
__device__ inline void head_backward(const QkvBackward<T>& p, const TokenRows<T>& rows, const HeadPart& part,
                                     int head, float rstd, const RawHead<T, S>& weight, T* d_qkv,
                                     Head<S>& dw) {
  const HeadSizes& z = p.z;
  const int dim = 2 * z.half;
  const bool present = kWhole || head < part.heads;
  RawHead<T, S> raw_x, raw_g;
  raw_x.template load<kWhole>(rows.qkv + (part.slot + head) * dim, z.half, present);
  raw_g.template load<kWhole>((part.is_q   ? rows.d_q
                               : part.is_v ? rows.d_v
                                           : rows.d_k) +
                                  head * dim,
                              z.half, present);
  Head<S> g;
  raw_g.unpack(g);
  if (!part.is_v) {
    Angles<S> angles;
    angles.load(rows.cos, rows.sin, z);
    g.rotate(angles, -1.0f);
    dw.each([&](float& low, float& high, int k, int i) {
      low += g.a[k][i] * raw_x.a[k].get(i) * rstd;
      high += g.b[k][i] * raw_x.b[k].get(i) * rstd;
    });
    g.each([&](float& low, float& high, int k, int i) {
      low *= weight.a[k].get(i), high *= weight.b[k].get(i);
    });
    if (!part.is_q && z.shared_kv) {
      // Both norms read the same input with the same rstd: their gradients add before the norm's backward.
      raw_g.template load<kWhole>(rows.d_v + head * dim, z.half, present);
      g.each([&](float& low, float& high, int k, int i) {
        low += raw_g.a[k].get(i), high += raw_g.b[k].get(i);
      });
    }
  }
  // From g, the gradient of x rstd, to that of x: rstd g - x rstd^3 mean(g x).
  float dot[1] = {0.0f};
  g.each([&](float& low, float& high, int k, int i) {
    dot[0] += low * raw_x.a[k].get(i);
    dot[0] += high * raw_x.b[k].get(i);
  });
  sum_over_head<S>(dot);
  const float pull = rstd * rstd * rstd * dot[0] * z.inverse_dim;
  g.each([&](float& low, float& high, int k, int i) {
    low = rstd * low - pull * raw_x.a[k].get(i);
    high = rstd * high - pull * raw_x.b[k].get(i);
  });
  if (present) g.template store<kWhole>(d_qkv + (part.slot + head) * dim, z.half);
}

/// Adds the weight gradients of `warps` warps from `first` on in order and leaves the block's part.
/// shared: [warps of the block, d].
__device__ inline void add_warps(const float* shared, int first, int warps, int dim, float* to) {
  for (int j = static_cast<int>(threadIdx.x); j < dim; j += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    for (int w = first; w < first + warps; ++w) sum += shared[w * dim + j];
    to[j] = sum;
  }
}

/// Warp w takes part w of every token of the block. kWhole: the lanes hold just the components of heads, and
/// every part as many heads.
template <class T, class S, bool kWhole>
__global__ void __launch_bounds__(kMaxTokenThreads, 1)
    qkv_norm_rope_backward(const __grid_constant__ QkvBackward<T> p) {
  extern __shared__ __align__(128) char dynamic[];
  hopper::launch_dependents();  // the sums of the parts
  constexpr int kAtOnce = 32 / S::L;
  const WalkedRows tokens(p.tokens, 0, 1);
  const HeadSizes& z = p.z;
  const int dim = 2 * z.half, warp = static_cast<int>(threadIdx.x) / 32;
  const HeadPart part(z, p.parts, min(warp, p.parts.all() - 1));
  const int first = part.first + static_cast<int>(threadIdx.x) % 32 / S::L;
  RawHead<T, S> weight;
  weight.load(part.is_q ? p.q_weight : p.k_weight, z.half, !part.is_v);
  // rstd of the next head is loaded while the one before is computed.
  const auto load_rstd = [&](int token, int i) {
    if (i >= p.parts.held) i = 0, token += tokens.step;
    if (token >= tokens.end || (!kWhole && first + i >= part.heads)) return 0.0f;
    return p.rstd[std::int64_t{token} * (z.heads + 2 * z.kv_heads) + part.slot + first + i];
  };
  float ahead = load_rstd(tokens.row, 0);
  Head<S> dw = {};
  for_tokens<T, S>(p.from, z, TokenRing{p.stage, dynamic}, tokens, [&](const TokenRows<T>& rows, int token) {
    for (int i = 0; i < p.parts.held; i += kAtOnce) {
      const float rstd = ahead;
      weight.stay_packed();
      ahead = load_rstd(token, i + kAtOnce);
      head_backward<kWhole>(p, rows, part, first + i, rstd, weight,
                            p.d_qkv + std::int64_t{token} * (z.slots() * dim), dw);
    }
  });
  dw.add_other_heads();
  __syncthreads();  // the stages have been read: their memory serves again
  auto* shared = reinterpret_cast<float*>(dynamic + TokenStage::kHeader);
  if (warp < p.parts.q + p.parts.k && threadIdx.x % 32 < S::L) {
    dw.each([&](float& low, float& high, int k, int i) {
      const int at = chunk_at<S>(k) + i;
      if (at < z.half) shared[warp * dim + at] = low, shared[warp * dim + z.half + at] = high;
    });
  }
  __syncthreads();
  float* q_part = p.partial + static_cast<std::int64_t>(blockIdx.x) * dim;
  add_warps(shared, 0, p.parts.q, dim, q_part);
  add_warps(shared, p.parts.q, p.parts.k, dim, q_part + static_cast<std::int64_t>(gridDim.x) * dim);
}

/// As few heads a warp as a block's warps allow, whole groups of those that a warp holds at once.
HeadParts parts_of_block(const HeadSizes& z, int at_once) {
  int held = at_once;
  while (HeadParts(z, held).all() > kMaxTokenWarps) held += at_once;
  return HeadParts(z, held);
}

}  // namespace

void QkvNormRopeBackward::cuda(Stream& stream) const {
  check(*this);
  constexpr const char* kOp = "QkvNormRopeBackward";
  const QkvSizes s = sizes_of(*this);
  if (s.tokens == 0) return;
  const HeadSizes z = head_sizes(kOp, s, shared_kv);
  const TokenStage stage(z, size_of(qkv.dtype()));
  const std::int64_t blocks = ring_blocks(s.tokens);
  auto* partial = reinterpret_cast<float*>(scratch.data());
  const bool vector =
      stage.stages > 0 &&
      heads_aligned(s, d_q.dtype(), {&qkv, &cos, &sin, &d_q, &d_k, &d_v, &q_weight, &k_weight, &d_qkv});
  with_head_shape(kOp, d_q.dtype(), s.dim, vector, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using S = decltype(shape);
    const QkvBackward<T> p{
        .from = {ptr<T>(d_q), ptr<T>(d_k), ptr<T>(d_v), ptr<T>(qkv), ptr<float>(cos), ptr<float>(sin)},
        .stage = stage,
        .z = z,
        .parts = parts_of_block(z, 32 / S::L),
        .q_weight = ptr<T>(q_weight),
        .k_weight = ptr<T>(k_weight),
        .rstd = ptr<float>(rstd),
        .d_qkv = ptr<T>(d_qkv),
        .partial = partial,
        .tokens = static_cast<int>(s.tokens)};
    const int warps = p.parts.all();
    const int staged = kStaged<S> ? stage.stages * stage.bytes : 0;
    const int sums = warps * static_cast<int>(s.dim) * static_cast<int>(sizeof(float));
    const auto start = [&](auto whole) {
      launch_ring(kOp, qkv_norm_rope_backward<T, S, whole>, blocks, 32 * (warps + 1),
                  static_cast<std::size_t>(TokenStage::kHeader + std::max(staged, sums)), stream, p);
    };
    const int held = p.parts.held;
    if constexpr (kStaged<S>) {
      if (s.dim == 2 * S::W * S::K * S::L && z.heads % held == 0 && z.kv_heads % held == 0)
        return start(std::true_type{});
    }
    start(std::false_type{});
  });
  add_row_sums(stream, partial, blocks, s.dim, d_q_weight, d_k_weight);
}

}  // namespace lapidary
