// The loss head's gradients. With bf16 activations the scores are exponentials that the products read
// directly (see loss_scores.cu): d_hidden = v (E' W) and d_table += E'^T (v X), with v the row's scale. The
// largest terms, which carry most of the gradient, are left out of E' and added exactly in float32.
#include "kernels/cuda/loss_products.h"
#include "kernels/cuda/loss_terms.cuh"
#include "kernels/cuda/segments.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kThreads = kLossThreads;

/// What turns scores into gradients.
struct GradientTerms {
  float cap, smoothing, z_loss, grad_scale, uniform;  ///< uniform = smoothing / vocabulary
  std::int64_t first_row;

  __device__ float weight(float lse) const { return 1.0f + 2.0f * z_loss * lse; }
  __device__ float slope(float l) const { return cap > 0.0f ? 1.0f - (l / cap) * (l / cap) : 1.0f; }
};

/// (1 - t^2) (p (1 + 2 z lse) - s / V) of a block: with label smoothing every column has a term that E' does
/// not hold, so the logits are made again.
__global__ void __launch_bounds__(kThreads)
    block_gradients(const float* z, BlockShape b, GradientTerms g, const float* lse, Bf16* scores) {
  const std::int64_t r = blockIdx.x;
  const float row_lse = lse[r], weight = g.weight(row_lse);
  const Cap<Bf16> cap(b.cap);
  for (std::int64_t j = threadIdx.x; j < b.columns; j += kThreads) {
    const Capped c = cap(z[r * b.columns + j]);
    scores[r * b.stride + b.begin + j] =
        from_float<Bf16>(c.slope * (expf(c.l - row_lse) * weight - g.uniform));
  }
}

/// Per row: its scale v, the weights of its exact terms (whose scores become 0), and v x rounded to bf16.
/// whole_scores: the scores are gradients already, up to grad_scale.
__global__ void __launch_bounds__(kThreads)
    prepare_rows(GradientTerms g, bool whole_scores, const std::int32_t* targets, const float* stats,
                 const float* lse, const Bf16* hidden, int width, std::int64_t columns, std::int64_t stride,
                 Bf16* scores, float* scale, ExactTerms exact, Bf16* scaled) {
  const std::int64_t r = blockIdx.x;
  const std::int32_t target = targets[r];
  const float row_lse = lse[r];
  float v = 0.0f;
  if (target >= 0) {
    v = g.grad_scale;
    if (!whole_scores) v *= g.weight(row_lse) * expf(stats[r * kLossStats + kLossMax] - row_lse);
  }
  if (threadIdx.x == 0) scale[r] = v;
  if (threadIdx.x < kExactTerms) {
    const std::int64_t at = r * kExactTerms + threadIdx.x;
    const bool is_target = threadIdx.x == 0;
    const std::int32_t id = is_target ? target : exact.ids[at];
    const std::int64_t column = id - g.first_row;
    const bool here = target >= 0 && id >= 0 && column >= 0 && column < columns;
    float weight = 0.0f;
    if (here) {
      const float l = is_target ? stats[r * kLossStats + kLossTarget] : exact.weights[at];
      const float wanted = is_target ? 1.0f - g.smoothing : 0.0f;
      weight = g.grad_scale * (expf(l - row_lse) * g.weight(row_lse) - wanted - g.uniform) * g.slope(l);
      scores[r * stride + column] = from_float<Bf16>(0.0f);
    }
    exact.ids[at] = here ? id : -1;
    exact.weights[at] = weight;
  }
  for (int j = static_cast<int>(threadIdx.x); j < width; j += kThreads)
    scaled[r * width + j] = from_float<Bf16>(v * to_float(hidden[r * width + j]));
}

/// d_hidden = v product + the exact terms' rows of the table.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_rows(const float* product, const float* scale, ExactTerms exact, const Bf16* table,
                std::int64_t first_row, int width, T* d_hidden) {
  const std::int64_t r = blockIdx.x;
  const float v = scale[r];
  const Bf16* term_rows[kExactTerms];
  float weights[kExactTerms];
#pragma unroll
  for (int k = 0; k < kExactTerms; ++k) {
    const std::int32_t id = exact.ids[r * kExactTerms + k];
    term_rows[k] = id >= 0 ? table + (id - first_row) * width : nullptr;
    weights[k] = exact.weights[r * kExactTerms + k];
  }
  for (int j = static_cast<int>(threadIdx.x); j < width; j += kThreads) {
    // A row without a target has no gradient, whatever its scores hold.
    float d = v != 0.0f ? v * product[r * width + j] : 0.0f;
#pragma unroll
    for (int k = 0; k < kExactTerms; ++k)
      if (term_rows[k]) d = fmaf(weights[k], to_float(term_rows[k][j]), d);
    d_hidden[r * width + j] = from_float<T>(d);
  }
}

/// Float32 form: capped logits become gradients with respect to z, in place.
__global__ void __launch_bounds__(kThreads)
    row_gradients(float* scores, std::int64_t stride, std::int64_t columns, GradientTerms g,
                  const std::int32_t* targets, const float* lse) {
  const std::int64_t r = blockIdx.x;
  float* row = scores + r * stride;
  const float row_lse = lse[r], weight = g.weight(row_lse);
  const std::int64_t target = targets[r] - g.first_row;
  for (std::int64_t j = threadIdx.x; j < columns; j += kThreads) {
    float d = 0.0f;
    if (targets[r] >= 0) {
      d = expf(row[j] - row_lse) * weight - g.uniform;
      if (j == target) d -= 1.0f - g.smoothing;
      d *= g.slope(row[j]) * g.grad_scale;
    }
    row[j] = d;
  }
}

GradientTerms terms_of(const LossGradient& op) {
  return {static_cast<float>(op.cap),
          static_cast<float>(op.label_smoothing),
          static_cast<float>(op.z_loss),
          static_cast<float>(op.grad_scale),
          static_cast<float>(op.label_smoothing / static_cast<double>(op.vocabulary)),
          op.first_row};
}

/// Where LossGradient's bf16 form keeps what.
struct GradientBuffers {
  float *d_hidden, *scale, *logits;
  ExactTerms exact;
  Bf16* scaled;
  std::int32_t *order, *parts;

  GradientBuffers(const Tensor& scratch, const LossGradientScratch& plan) {
    auto* at = static_cast<std::byte*>(scratch.data());
    const auto take = [&](std::size_t bytes) {
      std::byte* out = at;
      at += bytes;
      return out;
    };
    d_hidden = reinterpret_cast<float*>(take(plan.d_hidden));
    scaled = reinterpret_cast<Bf16*>(take(plan.scaled));
    scale = reinterpret_cast<float*>(take(plan.scale));
    exact.ids = reinterpret_cast<std::int32_t*>(take(plan.terms));
    exact.weights = reinterpret_cast<float*>(take(plan.terms));
    order = reinterpret_cast<std::int32_t*>(take(plan.terms));
    parts = reinterpret_cast<std::int32_t*>(take(plan.parts));
    logits = reinterpret_cast<float*>(take(plan.block));
  }
};

LargeTermSearch search_of(const LossGradient& op) {
  return {ptr<Bf16>(op.hidden),
          ptr<Bf16>(op.table),
          ptr<Bf16>(op.scores),
          ptr<float>(op.stats),
          ptr<float>(op.lse),
          ptr_or_null<float>(op.tile_best),
          ptr<std::int32_t>(op.targets),
          op.scores.row_stride(),
          op.first_row,
          static_cast<int>(op.hidden.cols()),
          static_cast<int>(op.table.rows()),
          static_cast<int>(product_tiles(op.table.rows(), kProductColumns)),
          static_cast<float>(op.cap)};
}

/// d_table += the exact terms.
void add_exact_terms(Stream& stream, const LossGradient& op, const GradientBuffers& buffers) {
  IdRows rows;
  rows.ids = Tensor(buffers.exact.ids, DType::i32, {op.hidden.rows(), kExactTerms});
  rows.first_row = op.first_row;
  rows.weights = buffers.exact.weights;
  rows.per_row = kExactTerms;
  add_rows_by_id(stream, "LossGradient", rows, op.hidden, 1.0, op.d_table, buffers.order);
}

void gradient_bf16(Stream& stream, const LossGradient& op) {
  const std::int64_t tokens = op.hidden.rows(), width = op.hidden.cols(), columns = op.table.rows();
  const bool smoothing = op.label_smoothing != 0;
  const GradientBuffers buffers(op.scratch, loss_gradient_scratch(tokens, width, columns, smoothing));
  const GradientTerms terms = terms_of(op);
  const cudaStream_t native = cuda_stream(stream);
  const auto rows = static_cast<unsigned>(tokens);
  auto* scores = ptr<Bf16>(op.scores);
  find_large_terms<<<rows, kSearchThreads, 0, native>>>(search_of(op), buffers.exact);
  launched("LossGradient");
  if (smoothing) {
    for_blocks(stream, op, buffers.logits, [&](const BlockShape& b) {
      block_gradients<<<rows, kThreads, 0, native>>>(buffers.logits, b, terms, ptr<float>(op.lse), scores);
    });
  }
  prepare_rows<<<rows, kThreads, 0, native>>>(terms, smoothing, ptr<std::int32_t>(op.targets),
                                              ptr<float>(op.stats), ptr<float>(op.lse), ptr<Bf16>(op.hidden),
                                              static_cast<int>(width), columns, op.scores.row_stride(),
                                              scores, buffers.scale, buffers.exact, buffers.scaled);
  launched("LossGradient");
  const Tensor product(buffers.d_hidden, DType::f32, {tokens, width});
  const Tensor scaled(buffers.scaled, DType::bf16, {tokens, width});
  if (loss_products_fit(op.hidden, op.scores)) {
    gradient_products(stream, {op.scores, op.table, scaled, product, op.d_table, buffers.parts});
  } else {
    run(stream, MatMul{.a = op.scores, .b = op.table, .c = product});
    run(stream,
        MatMul{.a = op.scores, .b = scaled, .c = op.d_table, .transpose_a = true, .accumulate = true});
  }
  with_float_type("LossGradient", op.d_hidden.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    finish_rows<T><<<rows, kThreads, 0, native>>>(buffers.d_hidden, buffers.scale, buffers.exact,
                                                  ptr<Bf16>(op.table), op.first_row, static_cast<int>(width),
                                                  ptr<T>(op.d_hidden));
  });
  launched("LossGradient");
  add_exact_terms(stream, op, buffers);
}

void gradient_f32(Stream& stream, const LossGradient& op) {
  row_gradients<<<static_cast<unsigned>(op.hidden.rows()), kThreads, 0, cuda_stream(stream)>>>(
      ptr<float>(op.scores), op.scores.row_stride(), op.table.rows(), terms_of(op),
      ptr<std::int32_t>(op.targets), ptr<float>(op.lse));
  launched("LossGradient");
  run(stream, MatMul{.a = op.scores, .b = op.table, .c = op.d_hidden});
  if (op.d_table.dtype() == DType::f32) {
    run(stream,
        MatMul{.a = op.scores, .b = op.hidden, .c = op.d_table, .transpose_a = true, .accumulate = true});
    return;
  }
  // cuBLASLt has no float32 product with a bf16 result: a piece of the table at a time, then added.
  const std::int64_t rows = op.table.rows(), width = op.hidden.cols();
  const std::int64_t step = loss_piece_rows(rows, width);
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t end = std::min(rows, begin + step);
    const Tensor piece(op.scratch.data(), DType::f32, {end - begin, width});
    run(stream,
        MatMul{.a = op.scores.col_range(begin, end), .b = op.hidden, .c = piece, .transpose_a = true});
    run(stream, Add{piece, op.d_table.row_range(begin, end)});
  }
}

}  // namespace

void LossGradient::cuda(Stream& stream) const {
  check(*this, Device::cuda);
  if (hidden.rows() == 0) return;
  if (table.rows() == 0) return run(stream, Fill{.x = d_hidden});  // a shard without rows
  if (hidden.dtype() == DType::bf16) return gradient_bf16(stream, *this);
  if (hidden.dtype() != DType::f32) refuse("LossGradient", hidden.dtype());
  gradient_f32(stream, *this);
}

}  // namespace lapidary
