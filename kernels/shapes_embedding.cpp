// Shape checks of embeddings, soft-token features and the loss.
#include "kernels/op_check.h"
#include "kernels/shapes.h"

namespace lapidary {

void check(const EmbeddingLookup& op) {
  const OpCheck c("EmbeddingLookup");
  c.dims({"ids", op.ids}, 1);
  c.dims({"table", op.table}, 2);
  c.float_type({"table", op.table});
  const DType t = op.table.dtype();
  c.tensor({"ids", op.ids}, DType::i32, {op.ids.size(0)});
  c.contiguous({"table", op.table});
  c.tensor({"out", op.out}, t, {op.ids.size(0), op.table.size(1)});
  c.aliases({{"ids", op.ids}, {"table", op.table}}, {{"out", op.out}});
}

void check(const EmbeddingBackward& op) {
  const OpCheck c("EmbeddingBackward");
  c.dims({"d_out", op.d_out}, 2);
  c.float_type({"d_out", op.d_out});
  c.contiguous({"d_out", op.d_out});
  c.dims({"d_table", op.d_table}, 2);
  c.tensor({"ids", op.ids}, DType::i32, {op.d_out.size(0)});
  c.gradient({"d_table", op.d_table}, {op.d_table.size(0), op.d_out.size(1)});
  c.aliases({{"ids", op.ids}, {"d_out", op.d_out}}, {{"d_table", op.d_table}});
}

void check(const ScatterRows& op) {
  const OpCheck c("ScatterRows");
  c.dims({"rows", op.rows}, 2);
  c.float_type({"rows", op.rows});
  c.contiguous({"rows", op.rows});
  c.dims({"out", op.out}, 2);
  c.tensor({"index", op.index}, DType::i32, {op.rows.size(0)});
  c.tensor({"out", op.out}, op.rows.dtype(), {op.out.size(0), op.rows.size(1)});
  c.aliases({{"rows", op.rows}, {"index", op.index}}, {{"out", op.out}});
}

void check(const GatherRows& op) {
  const OpCheck c("GatherRows");
  c.dims({"in", op.in}, 2);
  c.float_type({"in", op.in});
  c.contiguous({"in", op.in});
  c.dims({"rows", op.rows}, 2);
  c.tensor({"index", op.index}, DType::i32, {op.rows.size(0)});
  c.tensor({"rows", op.rows}, op.in.dtype(), {op.rows.size(0), op.in.size(1)});
  c.aliases({{"in", op.in}, {"index", op.index}}, {{"rows", op.rows}});
}

void check(const ConvertFeatures& op) {
  const OpCheck c("ConvertFeatures");
  c.dims({"in", op.in}, 2);
  const DType from = op.in.dtype();
  c.that(from == DType::u8 || from == DType::i16 || from == DType::f32,
         "in has elements of another type than u8, i16 or f32");
  c.contiguous({"in", op.in});
  c.float_type({"out", op.out});
  c.tensor({"out", op.out}, op.out.dtype(), {op.in.size(0), op.in.size(1)});
  c.aliases({{"in", op.in}}, {{"out", op.out}});
}

void check(const AddBias& op) {
  const OpCheck c("AddBias");
  c.dims({"x", op.x}, 2);
  c.float_type({"x", op.x});
  c.contiguous({"x", op.x});
  c.tensor({"bias", op.bias}, op.x.dtype(), {op.x.size(1)});
  c.aliases({{"bias", op.bias}}, {{"x", op.x}});
}

void check(const BiasBackward& op) {
  const OpCheck c("BiasBackward");
  c.dims({"dy", op.dy}, 2);
  c.float_type({"dy", op.dy});
  c.contiguous({"dy", op.dy});
  c.gradient({"d_bias", op.d_bias}, {op.dy.size(1)});
  c.aliases({{"dy", op.dy}}, {{"d_bias", op.d_bias}});
}

void check(const GridEmbedding& op) {
  const OpCheck c("GridEmbedding");
  c.dims({"x", op.x}, 2);
  c.float_type({"x", op.x});
  c.contiguous({"x", op.x});
  c.dims({"table", op.table}, 3);
  c.tensor({"table", op.table}, op.x.dtype(), {op.table.size(0), 2, op.x.size(1)});
  c.tensor({"xy", op.xy}, DType::i32, {op.x.size(0), 2});
  c.aliases({{"table", op.table}, {"xy", op.xy}}, {{"x", op.x}});
}

void check(const GridEmbeddingBackward& op) {
  const OpCheck c("GridEmbeddingBackward");
  c.dims({"d", op.d}, 2);
  c.float_type({"d", op.d});
  c.contiguous({"d", op.d});
  c.dims({"d_table", op.d_table}, 3);
  c.tensor({"xy", op.xy}, DType::i32, {op.d.size(0), 2});
  c.gradient({"d_table", op.d_table}, {op.d_table.size(0), 2, op.d.size(1)});
  c.aliases({{"d", op.d}, {"xy", op.xy}}, {{"d_table", op.d_table}});
}

namespace {

/// What LossScores and LossGradient share; returns T.
template <class Op>
DType check_loss(const OpCheck& c, const Op& op, Device device, bool scores_optional) {
  c.dims({"hidden", op.hidden}, 2);
  c.dims({"table", op.table}, 2);
  c.float_type({"hidden", op.hidden});
  const DType t = op.hidden.dtype();
  const std::int64_t tokens = op.hidden.size(0), width = op.hidden.size(1), vocabulary = op.table.size(0);
  c.tensor({"hidden", op.hidden}, t, {tokens, width});
  c.tensor({"table", op.table}, t, {vocabulary, width});
  c.tensor({"targets", op.targets}, DType::i32, {tokens});
  if (op.scores || !scores_optional)
    c.rows({"scores", op.scores}, loss_score_dtype(device, t), {tokens, vocabulary});
  c.tensor({"stats", op.stats}, wide_type(t), {tokens, kLossStats});
  c.optional({"tile_best", op.tile_best}, DType::f32, {tokens, loss_tiles(device, t, vocabulary)});
  c.that(op.cap >= 0, "cap is negative");
  return t;
}

}  // namespace

void check(const LossScores& op, Device device) {
  const OpCheck c("LossScores");
  check_loss(c, op, device, loss_statistics_alone(device, op.hidden.dtype(), op.hidden.cols(), op.cap));
  c.aliases({{"hidden", op.hidden}, {"table", op.table}, {"targets", op.targets}},
            {{"scores", op.scores}, {"stats", op.stats}, {"tile_best", op.tile_best}});
}

void check(const LossCombine& op) {
  const OpCheck c("LossCombine");
  c.dims({"stats", op.stats}, 3);
  const std::int64_t shards = op.stats.size(0), tokens = op.stats.size(1);
  const DType t = op.stats.dtype() == DType::f64 ? DType::f64 : DType::f32;
  c.tensor({"stats", op.stats}, t, {shards, tokens, kLossStats});
  c.tensor({"targets", op.targets}, DType::i32, {tokens});
  c.tensor({"lse", op.lse}, t, {tokens});
  c.tensor({"token_nll", op.token_nll}, t, {tokens});
  c.optional({"entropy", op.entropy}, t, {tokens});
  c.tensor({"totals", op.totals}, DType::f64, {kLossTotals});
  c.that(op.vocabulary > 0, "vocabulary is not positive");
  c.that(0 <= op.counted_begin && op.counted_begin <= op.counted_end && op.counted_end <= tokens,
         "the tokens to count are not among the tokens");
  c.aliases({{"stats", op.stats}, {"targets", op.targets}},
            {{"lse", op.lse}, {"token_nll", op.token_nll}, {"entropy", op.entropy}, {"totals", op.totals}});
}

void check(const LossGradient& op, Device device) {
  const OpCheck c("LossGradient");
  const DType t = check_loss(c, op, device, false);
  const std::int64_t tokens = op.hidden.size(0), width = op.hidden.size(1);
  c.tensor({"lse", op.lse}, wide_type(t), {tokens});
  const bool wide = op.d_hidden && op.d_hidden.dtype() == DType::f32 && t == DType::bf16;
  c.tensor({"d_hidden", op.d_hidden}, wide ? DType::f32 : t, {tokens, width});
  c.gradient({"d_table", op.d_table}, {op.table.size(0), width});
  c.that(op.vocabulary > 0, "vocabulary is not positive");
  c.aliases({{"hidden", op.hidden},
             {"table", op.table},
             {"targets", op.targets},
             {"stats", op.stats},
             {"lse", op.lse},
             {"tile_best", op.tile_best}},
            {{"scores", op.scores}, {"d_hidden", op.d_hidden}, {"d_table", op.d_table}});
}

}  // namespace lapidary
