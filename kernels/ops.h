// Every operation of the model, declared once: forward and backward, with formula, shapes and element types.
// An operation is a struct of views; run(stream, Op{...}) executes it on the stream's device. kernels/cpu/
// implements cpu(), kernels/cuda/ implements cuda(); both check shapes and types and throw Error on a
// mismatch.
//
// Conventions. N tokens, D width of the residual stream, T the activation type: f32 or bf16 (and f64 on the
// CPU, for checking gradients). Sums, norms, softmax and loss accumulate in float32 (f64 for f64) and round
// once to T. "acc" on a field: the result is added to what is there; gradients of weights are acc, in f32,
// bf16 or f64. "[N, n] rows" may be strided between rows. Nothing may alias unless the field says so. Every
// operation gives the same bits on every run. Operations on zero tokens are allowed and do nothing (acc
// results stay).
#pragma once
#include <concepts>
#include <cstdint>

#include "kernels/arena.h"
#include "kernels/build_info.h"
#include "kernels/device.h"
#include "kernels/op_work.h"
#include "kernels/tensor.h"

namespace lapidary {

// ---------------------------------------------------------------------------------------------- matrix
// products

/// c [M, N] = alpha op(a) op(b) (+ c if accumulate); op transposes where asked. a and b are T; c is T, or f32
/// where the product of bf16 matrices is to be kept exact. A linear layer y = x W^T: {x, W, y, .transpose_b =
/// true}.
struct MatMul {
  Tensor a, b, c;
  bool transpose_a = false, transpose_b = false;
  bool accumulate = false;
  double alpha = 1.0;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

// ---------------------------------------------------------------------------------------------- norms and
// residual

/// y = x rstd w, rstd = (mean(x^2) + eps)^(-1/2) over the last dimension (specification 3.2). weight may be
/// absent.
struct RmsNorm {
  Tensor x;       ///< T [N, n] rows
  Tensor weight;  ///< T [n], optional
  Tensor y;       ///< T [N, n] rows
  Tensor rstd;    ///< f32 [N] (f64 for f64)
  double eps = 1e-6;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// dx = rstd g - x rstd^3 mean(g x) with g = dy w; d_weight += sum over rows of dy x rstd.
struct RmsNormBackward {
  Tensor dy, x, rstd, weight;  ///< as in RmsNorm
  Tensor dx;                   ///< T [N, n] rows, optional; may alias dy
  bool add_to_dx = false;      ///< dx += instead of dx =
  Tensor d_weight;             ///< acc [n], optional
  Tensor scratch{};            ///< given by run()
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// The end of a half layer in one pass (specification 3.3): out = (residual + rms(branch) w) scale, and,
/// where next_weight is given, next = rms(out) next_weight. Roundings to T: the norm, the sum, the product
/// with scale, next.
struct ResidualNorm {
  Tensor residual, branch;  ///< T [N, D]
  Tensor branch_weight;     ///< T [D]
  Tensor scale;             ///< T [1], optional
  Tensor next_weight;       ///< T [D], optional
  Tensor out;               ///< T [N, D]; may alias residual
  Tensor next;              ///< T [N, D], with next_weight
  Tensor branch_rstd;       ///< f32 [N]
  Tensor next_rstd;         ///< f32 [N], with next_weight
  double eps = 1e-6;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// g = (d_out + rmsBackward(out, d_next)) scale; d_residual = g; d_branch = rmsBackward(branch, g).
struct ResidualNormBackward {
  Tensor d_out;                              ///< T [N, D] gradient that arrives over the residual stream
  Tensor d_next;                             ///< T [N, D], with next_weight
  Tensor out;                                ///< T [N, D], with next_weight
  Tensor branch;                             ///< T [N, D]
  Tensor branch_weight, scale, next_weight;  ///< as in ResidualNorm
  Tensor branch_rstd, next_rstd;
  Tensor d_residual;       ///< T [N, D]; may alias d_out
  Tensor d_branch;         ///< T [N, D]; may alias d_next
  Tensor d_branch_weight;  ///< acc [D]
  Tensor d_next_weight;    ///< acc [D], with next_weight
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// LayerNorm with weight and bias: y = (x - mean) rstd w + b, biased variance (specification 4.1; eps 1e-5).
struct LayerNorm {
  Tensor x, weight, bias, y;  ///< T [N, n], [n], [n], [N, n]; y may alias x
  Tensor mean, rstd;          ///< f32 [N] (f64 for f64)
  double eps = 1e-5;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

struct LayerNormBackward {
  Tensor dy, x, mean, rstd, weight;
  Tensor dx;                ///< T [N, n], optional; may alias dy
  Tensor d_weight, d_bias;  ///< acc [n]
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

// ---------------------------------------------------------------------------------------------- attention

/// Rotary tables: cos and sin of positions[t] * frequencies[j], product and functions in float32 with full
/// range reduction (f64 for f64). P rotated pairs.
struct RopeTable {
  Tensor positions;    ///< i32 [N]
  Tensor frequencies;  ///< f32 [P]
  Tensor cos, sin;     ///< f32 [N, P] (f64 for f64)
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// From the fused projection to what attention reads, in one pass (specification 3.4, 3.6). Per head: q and k
/// are rms-normed with their weights and rotated, v is rms-normed without weight. Pair j rotates components j
/// and j + d/2 for j < P; the others pass. shared_kv: v is made from the k columns (full layers), qkv then
/// has no v columns. bf16: float32 inside, one rounding per output (the reference rounds in between).
struct QkvNormRope {
  Tensor qkv;                 ///< T [N, (H + KV + KV) d], or [N, (H + KV) d] with shared_kv; columns q, k, v
  Tensor q_weight, k_weight;  ///< T [d]
  Tensor cos, sin;            ///< [N, P], P <= d / 2
  bool shared_kv = false;
  Tensor q;     ///< T [N, H, d]
  Tensor k, v;  ///< T [N, KV, d]
  Tensor rstd;  ///< f32 [N, H + KV + KV]: q heads, k heads, v heads
  double eps = 1e-6;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

struct QkvNormRopeBackward {
  Tensor d_q, d_k, d_v;                            ///< as q, k, v
  Tensor qkv, q_weight, k_weight, cos, sin, rstd;  ///< as in QkvNormRope
  bool shared_kv = false;
  Tensor d_qkv;                   ///< T, shape of qkv; may not alias qkv
  Tensor d_q_weight, d_k_weight;  ///< acc [d]
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// Softmax attention, scale 1, keys [lo[q], hi[q]) visible to query q; both ends never decrease. Query head h
/// reads key head h / (H / KV). Scores and softmax in float32.
struct Attention {
  Tensor q;       ///< T [N, H, d]
  Tensor k, v;    ///< T [N, KV, d]
  Tensor lo, hi;  ///< i32 [N]
  Tensor out;     ///< T [N, H, d]
  Tensor lse;     ///< f32 [H, N] log of the sum of exponentials (f64 for f64)
  /// The same bounds in host memory, valid during the call: the GPU's plan of products skips keys by them
  /// without asking the device. Optional; without them the result is the same and all N keys are computed.
  const std::int32_t* host_lo = nullptr;
  const std::int32_t* host_hi = nullptr;
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

struct AttentionBackward {
  Tensor d_out, q, k, v, lo, hi, out, lse;  ///< as in Attention
  Tensor d_q, d_k, d_v;                     ///< as q, k, v
  const std::int32_t* host_lo = nullptr;    ///< as in Attention
  const std::int32_t* host_hi = nullptr;
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

// ---------------------------------------------------------------------------------------------- MLP

/// out = round(gelu_tanh(gate)) up (specification 3.5).
struct GeGlu {
  Tensor gate_up;  ///< T [N, 2 F]: gate columns, then up columns
  Tensor out;      ///< T [N, F]
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

struct GeGluBackward {
  Tensor d_out;      ///< T [N, F]
  Tensor gate_up;    ///< T [N, 2 F]
  Tensor d_gate_up;  ///< T [N, 2 F]; may alias gate_up
  Tensor out;        ///< T [N, F], optional: recomputes the forward's result on the way; may alias d_out
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

// ---------------------------------------------------------------------------------------------- embeddings

/// out[t] = scale table[ids[t] - first_row] where that row is in this shard, else 0 (also for id -1).
struct EmbeddingLookup {
  Tensor ids;    ///< i32 [N]
  Tensor table;  ///< T [R, D]: rows first_row .. first_row + R of the whole table
  std::int64_t first_row = 0;
  double scale = 1.0;
  Tensor out;  ///< T [N, D]
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// d_table[ids[t] - first_row] += scale d_out[t] for rows of this shard, summed in order of t; nothing for
/// padding_id (specification 3.1: the reference drops it) and -1.
struct EmbeddingBackward {
  Tensor ids;    ///< i32 [N]
  Tensor d_out;  ///< T or f32 [N, D]
  std::int64_t first_row = 0;
  std::int32_t padding_id = 0;
  double scale = 1.0;
  Tensor d_table;  ///< acc [R, D]
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// out[index[m]] = rows[m]; indices are distinct.
struct ScatterRows {
  Tensor rows;   ///< T [M, D]
  Tensor index;  ///< i32 [M]
  Tensor out;    ///< T [N, D]
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// rows[m] = in[index[m]].
struct GatherRows {
  Tensor in;     ///< T [N, D]
  Tensor index;  ///< i32 [M]
  Tensor rows;   ///< T [M, D]
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// Stored features to T: u8 pixels times float32(1/255), i16 samples times 2^-15, f32 as it is; one rounding.
struct ConvertFeatures {
  Tensor in;   ///< u8, i16 or f32 [M, n]
  Tensor out;  ///< T [M, n]
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// x += bias in every row.
struct AddBias {
  Tensor x;     ///< T [N, n], in place
  Tensor bias;  ///< T [n]
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// d_bias += column sums of dy.
struct BiasBackward {
  Tensor dy;      ///< T [N, n]
  Tensor d_bias;  ///< acc [n]
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// x += table[column, 0] + table[row, 1], the two terms summed first, each rounding to T (specification 4.1
/// steps 4, 5).
struct GridEmbedding {
  Tensor x;      ///< T [M, D], in place
  Tensor table;  ///< T [P, 2, D]
  Tensor xy;     ///< i32 [M, 2] column, row
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// d_table[column, 0] += d, d_table[row, 1] += d, summed in order of m.
struct GridEmbeddingBackward {
  Tensor d;        ///< T [M, D]
  Tensor xy;       ///< i32 [M, 2]
  Tensor d_table;  ///< acc [P, 2, D]
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

// ---------------------------------------------------------------------------------------------- loss

/// What one vocabulary shard knows of a token; columns of LossScores::stats. Shards are combined by
/// LossCombine.
enum LossStat : int {
  kLossMax = 0,      ///< the shift m that the next two sums use: the row's maximum, or the cap
  kLossSum,          ///< sum of exp(l - m)
  kLossWeightedSum,  ///< sum of exp(l - m) l, for the entropy
  kLossLogitSum,     ///< sum of l, for label smoothing
  kLossTarget,       ///< l at the target if this shard holds it, else 0
  kLossBest,         ///< largest l
  kLossBestId,       ///< its id (exact: ids stay below 2^24)
  kLossStats
};

/// What is summed over trained tokens; LossCombine::totals.
enum LossTotal : int {
  kTotalLoss = 0,  ///< label smoothing and z-loss included
  kTotalNll,       ///< negative log-likelihood
  kTotalCorrect,   ///< tokens whose most probable id is the target
  kTotalTokens,
  kTotalEntropy,  ///< of the prediction, in nats
  kLossTotals
};

/// l = cap tanh(z / cap) with z = hidden table^T for a chunk of C tokens over this rank's R rows (l = z
/// without cap), kept in `scores` in the form that LossGradient of the same device needs, and the row
/// statistics.
struct LossScores {
  Tensor hidden;   ///< T [C, D]
  Tensor table;    ///< T [R, D]: rows first_row .. first_row + R
  Tensor targets;  ///< i32 [C] id in the whole vocabulary, -1: not trained
  std::int64_t first_row = 0;
  double cap = 0.0;    ///< 0: none
  Tensor scores;       ///< [C, R] of loss_score_dtype(device, T), rows may be strided; not needed for the
                       ///< statistics alone where loss_statistics_alone()
  Tensor stats;        ///< f32 [C, kLossStats] (f64 for f64)
  Tensor tile_best{};  ///< f32 [C, loss_tiles()], optional: where LossGradient has to look for large terms
  Tensor scratch{};    ///< GPU: sums over tiles, or float32 logits of a block of the vocabulary
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// Per token from the n shards' statistics: lse, nll = lse - l[target],
/// loss = (1 - s) nll + s (lse - mean l) + z lse^2 with label smoothing s and z-loss z; 0 where not trained.
/// Adds sums over the tokens [counted_begin, counted_end) to totals in a fixed order.
struct LossCombine {
  Tensor stats;    ///< f32 [n, C, kLossStats]
  Tensor targets;  ///< i32 [C]
  std::int64_t vocabulary = 0;
  double label_smoothing = 0.0, z_loss = 0.0;
  std::int64_t counted_begin = 0, counted_end = 0;
  Tensor lse;        ///< f32 [C]
  Tensor token_nll;  ///< f32 [C], -1 where not trained
  Tensor entropy;    ///< f32 [C], optional: of the prediction, in nats
  Tensor totals;     ///< acc f64 [kLossTotals]
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// The gradient of grad_scale * sum of the tokens' losses: dl = p (1 + 2 z lse) - (1 - s) onehot - s / V,
/// dz = dl (1 - (l / cap)^2), d_hidden = dz table, d_table += dz^T hidden.
struct LossGradient {
  Tensor scores, stats;           ///< as LossScores left them; scores is destroyed, rows may be strided
  Tensor hidden, table, targets;  ///< as in LossScores
  std::int64_t first_row = 0;
  double cap = 0.0;
  std::int64_t vocabulary = 0;
  double label_smoothing = 0.0, z_loss = 0.0;
  double grad_scale = 1.0;  ///< 1 / target tokens of the global batch
  Tensor lse;               ///< f32 [C] of LossCombine
  Tensor tile_best{};       ///< as LossScores left it, or nothing: then every score is looked at
  Tensor d_hidden;          ///< T or f32 [C, D]: this shard's part
  Tensor d_table;           ///< acc [R, D]
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// Element type of LossScores::scores for activations of type T on a device.
DType loss_score_dtype(Device device, DType activations);
/// Elements from row to row of LossScores::scores over `rows` rows of the table that suit the device.
std::int64_t loss_score_stride(Device device, std::int64_t rows);
/// Columns of LossScores::tile_best: tiles of the table's rows on a GPU in bf16, 0 (no tensor) elsewhere.
std::int64_t loss_tiles(Device device, DType activations, std::int64_t rows);
/// True where LossScores gives the statistics without scores: in bf16 on a GPU, with a cap.
bool loss_statistics_alone(Device device, DType activations, std::int64_t width, double cap);

// ---------------------------------------------------------------------------------------------- optimizer

/// One AdamW step on a range of parameters (decoupled decay, bias correction, eps outside the root):
///   g' = g grad_factor; m = b1 m + (1 - b1) g'; v = b2 v + (1 - b2) g'^2; p = p (1 - lr decay) - lr m^ /
///   (sqrt(v^) + eps).
/// The float32 master is `master` where given, else `param` itself, else (remainder given) the pair of param
/// and remainder: param is the float32's upper 16 bits rounded to nearest, remainder the exact rest. Without
/// any of them bf16 params are rounded stochastically from (seed, step, first_index + i). bf16 moments, and
/// moments in one byte (kernels/moment_codes.h), are rounded stochastically too.
/// A grad_factor of 0 (ClipFactor saw a norm that is not finite) leaves everything as it is.
struct AdamW {
  Tensor param;        ///< f32, bf16 or f64 [n]
  Tensor master;       ///< f32 [n], optional
  Tensor remainder;    ///< i16 [n], optional
  Tensor m, v;         ///< f32, bf16 or f64 [n], or both u8
  Tensor grad;         ///< f32, bf16 or f64 [n]
  Tensor grad_factor;  ///< f32 [1] (f64 for f64): from ClipFactor
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  std::int64_t step = 1;         ///< 1 at the first update
  std::uint64_t seed = 0;        ///< of stochastic rounding
  std::int64_t first_index = 0;  ///< global index of element 0: independent of the sharding
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// sum (+)= sum of x^2, in a fixed order; NaN and infinity carry through.
struct SquaredNorm {
  Tensor x;    ///< any float type [n]
  Tensor sum;  ///< acc f64 [1]
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// norm = root of the sum of `sums`; factor = min(1, max_norm / (norm + 1e-6)), 1 where max_norm is 0. Not
/// finite: factor 0, so that nothing is learned before the host has seen the norm.
struct ClipFactor {
  Tensor sums;  ///< f64 [n]: squared norms of the parts, added in order
  double max_norm = 0;
  Tensor norm;    ///< f64 [1]
  Tensor factor;  ///< f32 [1] (f64 for f64)
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

// ---------------------------------------------------------------------------------------------- elementwise

/// x = value.
struct Fill {
  Tensor x;  ///< any type [N, n] rows
  double value = 0;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// out = in, converted (float types; rounding to nearest even) or copied (equal types). Same number of rows
/// and columns.
struct Copy {
  Tensor in, out;  ///< [N, n] rows
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// out += in, computed in float32 (f64 for f64).
struct Add {
  Tensor in;   ///< any float type [N, n] rows
  Tensor out;  ///< any float type [N, n] rows
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// The sum of what several ranks bring, in their order: out = x_0 + .. + x_m, where x_rank is `own` and the
/// others are the rows of `others`; then plus what out held, where accumulate. In float32 (f64 for f64),
/// rounded once. With it the sum of the squares of what out then holds, which needs no pass of its own.
struct RankSum {
  Tensor own;             ///< any float type [n]
  Tensor others;          ///< the same type [m, n]
  std::int64_t rank = 0;  ///< 0 .. m
  bool accumulate = false;
  Tensor out;  ///< the same type [n]
  Tensor
      squares{};  ///< f64 [1], optional: the sum of out^2, in a fixed order; NaN and infinity carry through
  Tensor scratch{};
  std::size_t scratch_bytes(Device) const;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

/// out[i] = mean + std normal(seed, stream, first_index + i): counter-based (Philox 4x32-10, Box-Muller in
/// float64), the same numbers on every device and for any cut into ranges, up to the rounding of log and cos.
struct FillNormal {
  Tensor out;  ///< any float type [n]
  double mean = 0, std = 1;
  std::uint64_t seed = 0, stream = 0;
  std::int64_t first_index = 0;
  void cpu(Stream&) const;
  void cuda(Stream&) const;
};

// ---------------------------------------------------------------------------------------------- execution

template <class Op>
void execute(Stream& stream, const Op& op) {
  if constexpr (kCudaBuilt) {
    if (stream.device() == Device::cuda) return op.cuda(stream);
  }
  op.cpu(stream);
}

/// Executes the operation on the stream's device. An operation with scratch gets it from the stream's
/// workspace for the time of the call. A dry stream only takes (and so counts) that scratch.
template <class Op>
void run(Stream& stream, Op op) {
  const TimedOp<Op> timed(stream, op);
  if constexpr (requires {
                  { op.scratch_bytes(Device::cpu) } -> std::same_as<std::size_t>;
                }) {
    ArenaScope scope(stream.workspace());
    op.scratch = stream.workspace().allocate_bytes(op.scratch_bytes(stream.device()));
    if (!stream.dry()) execute(stream, op);
  } else {
    if (!stream.dry()) execute(stream, op);
  }
}

}  // namespace lapidary
