// Attention as chunks of cuBLASLt products with one fused masked-softmax pass each way. Scores are float32;
// the probabilities overwrite them in place, rounded to T. A chunk of queries computes only the range of keys
// that its intervals reach, so windows and packed documents cost what they see, up to the chunk's length.
#include "kernels/cuda/attention256.h"
#include "kernels/cuda/attention256_plan.h"
#include "kernels/cuda/attention512.h"
#include "kernels/cuda/attention512_plan.h"
#include "kernels/cuda/attention_chunked.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kThreads = 256;
constexpr int kW = 4;  ///< scores per thread and step: 16 bytes

/// What the passes over the scores know of a chunk: row i of head block (b, r) belongs to token
/// begin + i / stack and to head (first_kv + b) group + r + i % stack.
struct ScoreRows {
  std::int64_t begin, rows_per_block, stride;
  std::int64_t tokens;
  int stack, repeats, group, first_kv;
  int key_begin, keys;

  __device__ std::int64_t token(std::int64_t row) const { return begin + row % rows_per_block / stack; }
  __device__ std::int64_t head(std::int64_t row) const {
    const std::int64_t block = row / rows_per_block;
    return (first_kv + block / repeats) * group + block % repeats + row % rows_per_block % stack;
  }
};

template <class T>
__device__ inline float exp_for(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    return __expf(x);
  }
}

/// Visible columns [from, to) of a row.
struct Visible {
  int from, to;
  __device__ Visible(const ScoreRows& z, const std::int32_t* lo, const std::int32_t* hi, std::int64_t token)
      : from(max(lo[token] - z.key_begin, 0)), to(min(hi[token] - z.key_begin, z.keys)) {}
  __device__ bool any(int at) const { return at < to && at + kW > from; }
  __device__ bool has(int at) const { return at >= from && at < to; }
};

/// One block per row: the log of the sum of exponentials, then the probabilities. Writing T over float32 in
/// place is safe because a step's results lie inside what this and earlier steps have read.
template <class T>
__global__ void __launch_bounds__(kThreads)
    softmax_rows(float* scores, const std::int32_t* lo, const std::int32_t* hi, float* lse, ScoreRows z) {
  const std::int64_t row = blockIdx.x, token = z.token(row);
  float* s = scores + row * z.stride;
  T* p = reinterpret_cast<T*>(s);
  const Visible visible(z, lo, hi, token);
  float top = -INFINITY, sum = 0.0f;
  for (int at = visible.from / kW * kW + static_cast<int>(threadIdx.x) * kW; at < visible.to;
       at += kThreads * kW) {
    const auto x = Pack<float, kW>::load(s + at);
    float step_top = top;
#pragma unroll
    for (int i = 0; i < kW; ++i) {
      if (visible.has(at + i)) step_top = fmaxf(step_top, x.get(i));
    }
    if (step_top > top) sum *= exp_for<T>(top - step_top), top = step_top;
#pragma unroll
    for (int i = 0; i < kW; ++i) {
      if (visible.has(at + i)) sum += exp_for<T>(x.get(i) - top);
    }
  }
  const float row_top = block_max(top);
  float total[1] = {sum == 0.0f ? 0.0f : sum * exp_for<T>(top - row_top)};
  block_sum(total);
  const float row_lse = row_top + logf(total[0]);
  if (threadIdx.x == 0) lse[z.head(row) * z.tokens + token] = row_lse;
  const int end = static_cast<int>(z.stride);
  for (int base = 0; base < end; base += kThreads * kW) {
    const int at = base + static_cast<int>(threadIdx.x) * kW;
    float y[kW] = {};
    if (visible.any(at)) {
      const auto x = Pack<float, kW>::load(s + at);
#pragma unroll
      for (int i = 0; i < kW; ++i) y[i] = visible.has(at + i) ? exp_for<T>(x.get(i) - row_lse) : 0.0f;
    }
    __syncthreads();
    if (at < end) Pack<T, kW>::from(y).store(p + at);
  }
}

/// Scores become probabilities, their gradients dp become ds = p (dp - delta), both in place.
template <class T>
__global__ void __launch_bounds__(kThreads)
    softmax_backward_rows(float* scores, float* gradients, const std::int32_t* lo, const std::int32_t* hi,
                          const float* lse, const float* delta, ScoreRows z) {
  const std::int64_t row = blockIdx.x, token = z.token(row), place = z.head(row) * z.tokens + token;
  float *s = scores + row * z.stride, *g = gradients + row * z.stride;
  const Visible visible(z, lo, hi, token);
  const float row_lse = lse[place], row_delta = delta[place];
  const int end = static_cast<int>(z.stride);
  for (int base = 0; base < end; base += kThreads * kW) {
    const int at = base + static_cast<int>(threadIdx.x) * kW;
    float p[kW] = {}, ds[kW] = {};
    if (visible.any(at)) {
      const auto x = Pack<float, kW>::load(s + at), dp = Pack<float, kW>::load(g + at);
#pragma unroll
      for (int i = 0; i < kW; ++i) {
        if (!visible.has(at + i)) continue;
        p[i] = exp_for<T>(x.get(i) - row_lse);
        ds[i] = p[i] * (dp.get(i) - row_delta);
      }
    }
    __syncthreads();
    if (at < end) {
      Pack<T, kW>::from(p).store(reinterpret_cast<T*>(s) + at);
      Pack<T, kW>::from(ds).store(reinterpret_cast<T*>(g) + at);
    }
  }
}

/// delta[h, t] = sum over d of out d_out, a warp per token and head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    output_dots(const T* out, const T* d_out, float* delta, std::int64_t tokens, int heads, int dim) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= tokens * heads) return;
  float sum = 0.0f;
  for (int j = static_cast<int>(threadIdx.x) % 32; j < dim; j += 32)
    sum += to_float(out[row * dim + j]) * to_float(d_out[row * dim + j]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[row % heads * tokens + row / heads] = sum;
}

std::byte* bytes_of(const Tensor& x) {
  return static_cast<std::byte*>(x.data());
}

/// Views of the operands as the products of one chunk and one batch of key heads see them.
class ChunkViews {
 public:
  ChunkViews(const AttentionSizes& sizes, DType type, const AttentionChunk& chunk, std::int64_t first_kv,
             std::int64_t kv_batch)
      : z_(sizes), type_(type), chunk_(chunk), first_kv_(first_kv), kv_batch_(kv_batch) {}

  std::int64_t rows() const { return chunk_.tokens() * z_.stack(); }
  std::int64_t stride() const { return score_stride(chunk_.keys()); }
  std::int64_t all_rows() const { return rows() * z_.repeats() * kv_batch_; }

  /// Query-side matrix [rows, d] of repeat r.
  MatrixView queries(const Tensor& x, std::int64_t r) const {
    const std::int64_t at = (chunk_.begin * z_.heads + first_kv_ * z_.group() + r) * z_.dim;
    const std::int64_t row = z_.stack() == z_.heads ? z_.dim : z_.heads * z_.dim;
    return {bytes_of(x) + static_cast<std::size_t>(at) * size_of(type_), type_, row, z_.group() * z_.dim};
  }

  /// Key-side matrix [keys, d].
  MatrixView keys(const Tensor& x) const {
    const std::int64_t at = (chunk_.key_begin * z_.kv_heads + first_kv_) * z_.dim;
    return {bytes_of(x) + static_cast<std::size_t>(at) * size_of(type_), type_, z_.kv_heads * z_.dim, z_.dim};
  }

  /// Float32 key-side accumulator [N, kv_batch, d].
  MatrixView key_gradients(float* x) const {
    return {x + chunk_.key_begin * kv_batch_ * z_.dim, DType::f32, kv_batch_ * z_.dim, z_.dim};
  }

  MatrixView scores(float* x, std::int64_t r) const {
    return {x + r * rows() * stride(), DType::f32, stride(), z_.repeats() * rows() * stride()};
  }

  /// The same memory after the softmax pass.
  MatrixView probabilities(float* x, std::int64_t r) const {
    MatrixView out = scores(x, r);
    const std::int64_t per_float = type_ == DType::f32 ? 1 : 2;
    return {out.data, type_, out.row_stride * per_float, out.batch_stride * per_float};
  }

  ScoreRows score_rows() const {
    return {chunk_.begin,
            rows(),
            stride(),
            z_.tokens,
            static_cast<int>(z_.stack()),
            static_cast<int>(z_.repeats()),
            static_cast<int>(z_.group()),
            static_cast<int>(first_kv_),
            static_cast<int>(chunk_.key_begin),
            static_cast<int>(chunk_.keys())};
  }

  /// [rows, keys] = queries keys^T
  Gemm score_product(const MatrixView& q, const MatrixView& k, const MatrixView& s) const {
    return {q, k, s, rows(), chunk_.keys(), z_.dim, false, true, batch(), 1.0f, 0.0f};
  }
  /// [rows, d] = probabilities values
  Gemm value_product(const MatrixView& p, const MatrixView& v, const MatrixView& out) const {
    return {p, v, out, rows(), z_.dim, chunk_.keys(), false, false, batch(), 1.0f, 0.0f};
  }
  /// [keys, d] += probabilities^T queries
  Gemm key_product(const MatrixView& p, const MatrixView& q, const MatrixView& out) const {
    return {p, q, out, chunk_.keys(), z_.dim, rows(), true, false, batch(), 1.0f, 1.0f};
  }

 private:
  int batch() const { return static_cast<int>(kv_batch_); }

  AttentionSizes z_;
  DType type_;
  AttentionChunk chunk_;
  std::int64_t first_kv_, kv_batch_;
};

template <class Op>
AttentionSizes sizes_of_attention(const Op& op) {
  return {op.q.size(0), op.q.size(1), op.k.size(1), op.q.size(2)};
}

void forward_chunk(Stream& stream, const Attention& op, const AttentionSizes& z,
                   const AttentionChunk& chunk) {
  const ChunkViews views(z, op.q.dtype(), chunk, 0, z.kv_heads);
  auto* scores = reinterpret_cast<float*>(op.scratch.data());
  for (std::int64_t r = 0; r < z.repeats(); ++r)
    gemm(stream, views.score_product(views.queries(op.q, r), views.keys(op.k), views.scores(scores, r)));
  with_float_type("Attention", op.q.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    softmax_rows<T><<<static_cast<unsigned>(views.all_rows()), kThreads, 0, cuda_stream(stream)>>>(
        scores, ptr<std::int32_t>(op.lo), ptr<std::int32_t>(op.hi), ptr<float>(op.lse), views.score_rows());
  });
  launched("Attention");
  for (std::int64_t r = 0; r < z.repeats(); ++r)
    gemm(stream,
         views.value_product(views.probabilities(scores, r), views.keys(op.v), views.queries(op.out, r)));
}

/// Pointers into the backward's scratch.
struct BackwardBuffers {
  float *delta, *d_k, *d_v, *scores, *gradients;

  BackwardBuffers(const Tensor& scratch, const AttentionBackwardScratch& plan) {
    std::byte* at = bytes_of(scratch);
    const auto take = [&](std::size_t bytes) {
      auto* out = reinterpret_cast<float*>(at);
      at += bytes;
      return out;
    };
    delta = take(plan.delta);
    d_k = take(plan.accumulators);
    d_v = take(plan.accumulators);
    scores = take(plan.scores / 2);
    gradients = take(plan.scores / 2);
  }
};

void backward_chunk(Stream& stream, const AttentionBackward& op, const AttentionSizes& z,
                    const AttentionChunk& chunk, std::int64_t first_kv, std::int64_t kv_batch,
                    const BackwardBuffers& buffers) {
  const ChunkViews views(z, op.q.dtype(), chunk, first_kv, kv_batch);
  for (std::int64_t r = 0; r < z.repeats(); ++r) {
    gemm(stream,
         views.score_product(views.queries(op.q, r), views.keys(op.k), views.scores(buffers.scores, r)));
    gemm(stream, views.score_product(views.queries(op.d_out, r), views.keys(op.v),
                                     views.scores(buffers.gradients, r)));
  }
  with_float_type("AttentionBackward", op.q.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    softmax_backward_rows<T><<<static_cast<unsigned>(views.all_rows()), kThreads, 0, cuda_stream(stream)>>>(
        buffers.scores, buffers.gradients, ptr<std::int32_t>(op.lo), ptr<std::int32_t>(op.hi),
        ptr<float>(op.lse), buffers.delta, views.score_rows());
  });
  launched("AttentionBackward");
  for (std::int64_t r = 0; r < z.repeats(); ++r) {
    const MatrixView p = views.probabilities(buffers.scores, r),
                     ds = views.probabilities(buffers.gradients, r);
    gemm(stream, views.value_product(ds, views.keys(op.k), views.queries(op.d_q, r)));
    gemm(stream, views.key_product(ds, views.queries(op.q, r), views.key_gradients(buffers.d_k)));
    gemm(stream, views.key_product(p, views.queries(op.d_out, r), views.key_gradients(buffers.d_v)));
  }
}

/// One batch of key heads: all chunks, then dk and dv rounded to T.
void backward_heads(Stream& stream, const AttentionBackward& op, const AttentionSizes& z,
                    std::int64_t first_kv, const AttentionBackwardScratch& plan,
                    const BackwardBuffers& buffers) {
  const std::int64_t columns = plan.kv_batch * z.dim;
  const Tensor d_k(buffers.d_k, DType::f32, {z.tokens, columns});
  const Tensor d_v(buffers.d_v, DType::f32, {z.tokens, columns});
  run(stream, Fill{d_k, 0.0});
  run(stream, Fill{d_v, 0.0});
  for (AttentionChunk chunk{}; chunk.end < z.tokens;) {
    chunk =
        next_chunk(chunk.end, z.tokens, plan.kv_batch * z.group(), op.host_lo, op.host_hi, plan.scores / 2);
    backward_chunk(stream, op, z, chunk, first_kv, plan.kv_batch, buffers);
  }
  const auto columns_of = [&](const Tensor& x) {
    return x.reshape({z.tokens, z.kv_heads * z.dim}).col_range(first_kv * z.dim, first_kv * z.dim + columns);
  };
  run(stream, Copy{d_k, columns_of(op.d_k)});
  run(stream, Copy{d_v, columns_of(op.d_v)});
}

}  // namespace

void attention_chunked(Stream& stream, const Attention& op) {
  const AttentionSizes z = sizes_of_attention(op);
  for (AttentionChunk chunk{}; chunk.end < z.tokens;) {
    chunk = next_chunk(chunk.end, z.tokens, z.heads, op.host_lo, op.host_hi, op.scratch.bytes());
    forward_chunk(stream, op, z, chunk);
  }
}

void attention_backward_chunked(Stream& stream, const AttentionBackward& op) {
  const AttentionSizes z = sizes_of_attention(op);
  const AttentionBackwardScratch plan = backward_scratch(z);
  const BackwardBuffers buffers(op.scratch, plan);
  with_float_type("AttentionBackward", op.q.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    output_dots<T><<<blocks_for(z.tokens * z.heads, kThreads / 32), kThreads, 0, cuda_stream(stream)>>>(
        ptr<T>(op.out), ptr<T>(op.d_out), buffers.delta, z.tokens, static_cast<int>(z.heads),
        static_cast<int>(z.dim));
  });
  launched("AttentionBackward");
  for (std::int64_t first_kv = 0; first_kv < z.kv_heads; first_kv += plan.kv_batch)
    backward_heads(stream, op, z, first_kv, plan, buffers);
}

namespace {

void run_attention256(Stream& stream, const Attention& op) {
  attention256_forward({.sizes = sizes_of_attention(op),
                        .q = op.q.data(),
                        .k = op.k.data(),
                        .v = op.v.data(),
                        .lo = ptr<std::int32_t>(op.lo),
                        .hi = ptr<std::int32_t>(op.hi),
                        .host_lo = op.host_lo,
                        .host_hi = op.host_hi,
                        .out = op.out.data(),
                        .lse = ptr<float>(op.lse),
                        .scratch = op.scratch.data()},
                       cuda_stream(stream));
}

void run_attention256(Stream& stream, const AttentionBackward& op) {
  attention256_backward({.sizes = sizes_of_attention(op),
                         .d_out = op.d_out.data(),
                         .q = op.q.data(),
                         .k = op.k.data(),
                         .v = op.v.data(),
                         .out = op.out.data(),
                         .lo = ptr<std::int32_t>(op.lo),
                         .hi = ptr<std::int32_t>(op.hi),
                         .lse = ptr<float>(op.lse),
                         .host_lo = op.host_lo,
                         .host_hi = op.host_hi,
                         .d_q = op.d_q.data(),
                         .d_k = op.d_k.data(),
                         .d_v = op.d_v.data(),
                         .scratch = op.scratch.data()},
                        cuda_stream(stream));
}

}  // namespace

void Attention::cuda(Stream& stream) const {
  check(*this);
  if (q.dtype() == DType::f64) refuse("Attention", q.dtype());
  if (attention256_applies(sizes_of_attention(*this), q.dtype())) {
    run_attention256(stream, *this);
  } else if (attention512_applies(sizes_of_attention(*this), q.dtype())) {
    attention512_forward(stream, *this);
  } else {
    attention_chunked(stream, *this);
  }
}

void AttentionBackward::cuda(Stream& stream) const {
  check(*this);
  if (q.size(0) == 0) return;
  if (attention256_applies(sizes_of_attention(*this), q.dtype())) {
    run_attention256(stream, *this);
  } else if (attention512_applies(sizes_of_attention(*this), q.dtype())) {
    attention512_backward(stream, *this);
  } else {
    attention_backward_chunked(stream, *this);
  }
}

}  // namespace lapidary
