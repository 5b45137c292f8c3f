// Shape checks of rotary tables, the fused q/k/v preparation and attention.
#include "kernels/check.h"
#include "kernels/op_check.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

/// The fields that QkvNormRope and its backward share; q, k, v are the results or their gradients.
template <class Op>
QkvSizes check_qkv(const OpCheck& c, const Op& op, const char* prefix, const Tensor& q, const Tensor& k,
                   const Tensor& v) {
  const std::string q_name = std::string(prefix) + "q", k_name = std::string(prefix) + "k",
                    v_name = std::string(prefix) + "v";
  c.dims({q_name.c_str(), q}, 3);
  c.dims({k_name.c_str(), k}, 3);
  c.dims({"cos", op.cos}, 2);
  c.float_type({q_name.c_str(), q});
  const DType t = q.dtype();
  QkvSizes s{};
  s.tokens = q.size(0);
  s.heads = q.size(1);
  s.dim = q.size(2);
  s.kv_heads = k.size(1);
  s.pairs = op.cos.size(1);
  s.columns = (s.heads + (op.shared_kv ? 1 : 2) * s.kv_heads) * s.dim;
  s.v_column = (s.heads + (op.shared_kv ? 0 : s.kv_heads)) * s.dim;
  s.all_heads = s.heads + 2 * s.kv_heads;
  c.tensor({q_name.c_str(), q}, t, {s.tokens, s.heads, s.dim});
  c.tensor({k_name.c_str(), k}, t, {s.tokens, s.kv_heads, s.dim});
  c.tensor({v_name.c_str(), v}, t, {s.tokens, s.kv_heads, s.dim});
  c.tensor({"qkv", op.qkv}, t, {s.tokens, s.columns});
  c.tensor({"q_weight", op.q_weight}, t, {s.dim});
  c.tensor({"k_weight", op.k_weight}, t, {s.dim});
  c.tensor({"cos", op.cos}, wide_type(t), {s.tokens, s.pairs});
  c.tensor({"sin", op.sin}, wide_type(t), {s.tokens, s.pairs});
  c.tensor({"rstd", op.rstd}, wide_type(t), {s.tokens, s.all_heads});
  c.that(s.dim % 2 == 0 && s.pairs <= s.dim / 2,
         "expected an even head dimension and at most half of it pairs");
  return s;
}

void check_attention(const OpCheck& c, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lo,
                     const Tensor& hi, const Tensor& out, const Tensor& lse) {
  c.dims({"q", q}, 3);
  c.dims({"k", k}, 3);
  c.float_type({"q", q});
  const DType t = q.dtype();
  const std::int64_t tokens = q.size(0), heads = q.size(1), dim = q.size(2), kv = k.size(1);
  c.tensor({"q", q}, t, {tokens, heads, dim});
  c.tensor({"k", k}, t, {tokens, kv, dim});
  c.tensor({"v", v}, t, {tokens, kv, dim});
  c.tensor({"lo", lo}, DType::i32, {tokens});
  c.tensor({"hi", hi}, DType::i32, {tokens});
  c.tensor({"out", out}, t, {tokens, heads, dim});
  c.tensor({"lse", lse}, wide_type(t), {heads, tokens});
  c.that(kv > 0 && heads % kv == 0, "expected a number of query heads that the key heads divide");
}

}  // namespace

void check(const RopeTable& op) {
  const OpCheck c("RopeTable");
  c.dims({"positions", op.positions}, 1);
  c.dims({"frequencies", op.frequencies}, 1);
  const std::int64_t tokens = op.positions.size(0), pairs = op.frequencies.size(0);
  c.tensor({"positions", op.positions}, DType::i32, {tokens});
  c.tensor({"frequencies", op.frequencies}, DType::f32, {pairs});
  const DType t = op.cos && op.cos.dtype() == DType::f64 ? DType::f64 : DType::f32;
  c.tensor({"cos", op.cos}, t, {tokens, pairs});
  c.tensor({"sin", op.sin}, t, {tokens, pairs});
  c.aliases({{"positions", op.positions}, {"frequencies", op.frequencies}},
            {{"cos", op.cos}, {"sin", op.sin}});
}

void check(const QkvNormRope& op) {
  const OpCheck c("QkvNormRope");
  check_qkv(c, op, "", op.q, op.k, op.v);
  c.aliases({{"qkv", op.qkv},
             {"q_weight", op.q_weight},
             {"k_weight", op.k_weight},
             {"cos", op.cos},
             {"sin", op.sin}},
            {{"q", op.q}, {"k", op.k}, {"v", op.v}, {"rstd", op.rstd}});
}

void check(const QkvNormRopeBackward& op) {
  const OpCheck c("QkvNormRopeBackward");
  const QkvSizes s = check_qkv(c, op, "d_", op.d_q, op.d_k, op.d_v);
  c.tensor({"d_qkv", op.d_qkv}, op.qkv.dtype(), {s.tokens, s.columns});
  c.gradient({"d_q_weight", op.d_q_weight}, {s.dim});
  c.gradient({"d_k_weight", op.d_k_weight}, {s.dim});
  c.aliases({{"d_q", op.d_q},
             {"d_k", op.d_k},
             {"d_v", op.d_v},
             {"qkv", op.qkv},
             {"q_weight", op.q_weight},
             {"k_weight", op.k_weight},
             {"cos", op.cos},
             {"sin", op.sin},
             {"rstd", op.rstd}},
            {{"d_qkv", op.d_qkv}, {"d_q_weight", op.d_q_weight}, {"d_k_weight", op.d_k_weight}});
}

QkvSizes sizes_of(const QkvNormRope& op) {
  return check_qkv(OpCheck("QkvNormRope"), op, "", op.q, op.k, op.v);
}

QkvSizes sizes_of(const QkvNormRopeBackward& op) {
  return check_qkv(OpCheck("QkvNormRopeBackward"), op, "d_", op.d_q, op.d_k, op.d_v);
}

void check(const Attention& op) {
  const OpCheck c("Attention");
  check_attention(c, op.q, op.k, op.v, op.lo, op.hi, op.out, op.lse);
  c.aliases({{"q", op.q}, {"k", op.k}, {"v", op.v}, {"lo", op.lo}, {"hi", op.hi}},
            {{"out", op.out}, {"lse", op.lse}});
}

void check(const AttentionBackward& op) {
  const OpCheck c("AttentionBackward");
  check_attention(c, op.q, op.k, op.v, op.lo, op.hi, op.out, op.lse);
  const DType t = op.q.dtype();
  const std::int64_t tokens = op.q.size(0), heads = op.q.size(1), dim = op.q.size(2), kv = op.k.size(1);
  c.tensor({"d_out", op.d_out}, t, {tokens, heads, dim});
  c.tensor({"d_q", op.d_q}, t, {tokens, heads, dim});
  c.tensor({"d_k", op.d_k}, t, {tokens, kv, dim});
  c.tensor({"d_v", op.d_v}, t, {tokens, kv, dim});
  c.aliases({{"d_out", op.d_out},
             {"q", op.q},
             {"k", op.k},
             {"v", op.v},
             {"lo", op.lo},
             {"hi", op.hi},
             {"out", op.out},
             {"lse", op.lse}},
            {{"d_q", op.d_q}, {"d_k", op.d_k}, {"d_v", op.d_v}});
}

}  // namespace lapidary
