#include "model/gemma4.h"

#include "kernels/check.h"

namespace lapidary {

struct Gemma4::Pass {
  Stream* stream = nullptr;
  ActivationShape shape;
  DeviceBatch batch;
  AttentionInputs full, sliding;
  Tensor final_normed, final_rstd;  // T [N, D], R [N]
};

Gemma4::Gemma4(const ModelConfig& config, const ParameterTable& table, const ModelOptions& options,
               ShardedUnits& units, VocabularyTable& vocabulary, Arena& arena)
    : config_(&config),
      table_(&table),
      options_(options),
      units_(&units),
      vocabulary_(&vocabulary),
      arena_(&arena),
      uploader_(config, options.capacity, options.features),
      embedders_(config, table, units, options.type),
      loss_head_(config, options.loss, vocabulary, options.type),
      embedding_scale_(config.embedding_scale(options.type == DType::bf16)) {
  for (std::size_t i = 0; i < config.layers.size(); ++i)
    layers_.emplace_back(config, config.layers[i], table.layers[i], units);
}

void Gemma4::report(const std::string& name, const Tensor& tensor) const {
  if (observer_) observer_(name, tensor);
}

const AttentionInputs& Gemma4::inputs(const Pass& pass, const DecoderLayer& layer) const {
  return layer.config().full ? pass.full : pass.sliding;
}

void Gemma4::begin_pass(Stream& stream, const Batch& batch, Pass& pass) {
  pass.stream = &stream;
  pass.shape = {batch.tokens(), options_.capacity, options_.type};
  pass.batch = uploader_(stream, *arena_, batch, "batch");
  const auto rotary = [&](const Tensor& frequencies, AttentionInputs& out) {
    out.cos = allocate_rows(*arena_, pass.shape, pass.shape.accumulation(), frequencies.numel());
    out.sin = allocate_rows(*arena_, pass.shape, pass.shape.accumulation(), frequencies.numel());
    run(stream,
        RopeTable{
            .positions = pass.batch.positions, .frequencies = frequencies, .cos = out.cos, .sin = out.sin});
  };
  rotary(pass.batch.full_frequencies, pass.full);
  rotary(pass.batch.sliding_frequencies, pass.sliding);
  const auto intervals = [](const Tensor& lo, const Tensor& hi, const Intervals& host, AttentionInputs& out) {
    out.lo = lo;
    out.hi = hi;
    out.host_lo = host.lo.data();
    out.host_hi = host.hi.data();
  };
  intervals(pass.batch.full_lo, pass.batch.full_hi, batch.full, pass.full);
  intervals(pass.batch.sliding_lo, pass.batch.sliding_hi, batch.sliding, pass.sliding);
  pass.final_normed = allocate_rows(*arena_, pass.shape, options_.type, config_->width);
  pass.final_rstd =
      allocate_rows(*arena_, pass.shape, pass.shape.accumulation(), 1).reshape({batch.tokens()});
}

void Gemma4::embed(Pass& pass, const Tensor& x) {
  Stream& stream = *pass.stream;
  vocabulary_->look_up(stream, pass.batch.ids, embedding_scale_, x);
  if (table_->embedder_unit) {
    units_->get(*table_->embedder_unit);
    embedders_.forward(stream, *arena_, pass.batch, x);
    units_->release(*table_->embedder_unit);
  }
  report("inputs_embeds", x);
  report("hidden.0", x);
}

void Gemma4::head(Pass& pass, const Tensor& x, double grad_scale, const Tensor& totals,
                  const TokenResults& tokens, const Tensor& dx) {
  Stream& stream = *pass.stream;
  units_->get(table_->head_unit);
  run(stream, RmsNorm{.x = x,
                      .weight = units_->weight(table_->final_norm),
                      .y = pass.final_normed,
                      .rstd = pass.final_rstd,
                      .eps = config_->rms_eps});
  units_->release(table_->head_unit);
  report("hidden." + std::to_string(layers_.size()), pass.final_normed);
  loss_head_.run_chunks(stream, pass.final_normed, pass.batch.targets, grad_scale, totals, dx, tokens);
}

void Gemma4::head_backward(Pass& pass, const Tensor& x, const Tensor& dx) {
  units_->get(table_->head_unit);
  units_->begin_gradients(table_->head_unit);
  run(*pass.stream, RmsNormBackward{.dy = dx,
                                    .x = x,
                                    .rstd = pass.final_rstd,
                                    .weight = units_->weight(table_->final_norm),
                                    .dx = dx,
                                    .d_weight = units_->gradient(table_->final_norm)});
  units_->reduce(table_->head_unit);
  units_->release(table_->head_unit);
}

void Gemma4::embed_backward(Pass& pass, const Tensor& dx) {
  Stream& stream = *pass.stream;
  if (table_->embedder_unit) {
    units_->get(*table_->embedder_unit);
    units_->begin_gradients(*table_->embedder_unit);
    embedders_.backward(stream, *arena_, pass.batch, dx);
    units_->reduce(*table_->embedder_unit);
    units_->release(*table_->embedder_unit);
  }
  vocabulary_->look_up_backward(stream, pass.batch.ids, dx, embedding_scale_, config_->pad_id);
}

void Gemma4::train(Stream& stream, const Batch& batch, double grad_scale, bool last, const Tensor& totals) {
  ArenaScope scope(*arena_);
  Pass pass;
  begin_pass(stream, batch, pass);
  const Tensor dx = allocate_rows(*arena_, pass.shape, options_.type, config_->width);

  // Forward: each layer writes into the next one's input; the last into x_last.
  std::vector<LayerActivations> kept(layers_.size());
  std::vector<std::size_t> marks(layers_.size());
  units_->begin(ShardedUnits::Direction::forward);
  const Tensor x_last = allocate_rows(*arena_, pass.shape, options_.type, config_->width);
  const auto allocate_layer = [&](std::size_t i) {
    marks[i] = arena_->mark();
    kept[i] = allocate_kept(*arena_, pass.shape, *config_, config_->layers[i], options_.policy_of(i));
  };
  allocate_layer(0);
  embed(pass, kept[0].x);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const bool is_last = i + 1 == layers_.size();
    if (!is_last) allocate_layer(i + 1);
    const Tensor out = is_last ? x_last : kept[i + 1].x;
    ArenaScope temporaries(*arena_);
    LayerActivations all = kept[i];
    allocate_missing(*arena_, pass.shape, *config_, config_->layers[i], all);
    units_->get(layers_[i].unit());
    layers_[i].forward(stream, inputs(pass, layers_[i]), all, out);
    units_->release(layers_[i].unit());
    if (!is_last) report("hidden." + std::to_string(i + 1), out);
  }
  head(pass, x_last, grad_scale, totals, {}, dx);

  units_->begin(ShardedUnits::Direction::backward);
  head_backward(pass, x_last, dx);
  for (std::size_t i = layers_.size(); i-- > 0;) {
    units_->get(layers_[i].unit());
    units_->begin_gradients(layers_[i].unit(), true);
    layers_[i].backward(stream, inputs(pass, layers_[i]), pass.shape, options_.policy_of(i), *arena_, kept[i],
                        dx);
    units_->reduce(layers_[i].unit());
    units_->release(layers_[i].unit());
    arena_->release_to(marks[i]);
  }
  embed_backward(pass, dx);
  units_->finish(last);
  if (last) vocabulary_->finish_gradients();
}

void Gemma4::evaluate(Stream& stream, const Batch& batch, const Tensor& totals, const TokenResults& tokens) {
  ArenaScope scope(*arena_);
  Pass pass;
  begin_pass(stream, batch, pass);
  // Nothing is kept: two buffers take turns as input and output of a layer.
  Tensor x = allocate_rows(*arena_, pass.shape, options_.type, config_->width);
  Tensor out = allocate_rows(*arena_, pass.shape, options_.type, config_->width);
  units_->begin(ShardedUnits::Direction::forward);
  embed(pass, x);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    ArenaScope temporaries(*arena_);
    LayerActivations all;
    all.x = x;
    allocate_missing(*arena_, pass.shape, *config_, config_->layers[i], all);
    units_->get(layers_[i].unit());
    layers_[i].forward(stream, inputs(pass, layers_[i]), all, out);
    units_->release(layers_[i].unit());
    std::swap(x, out);
    if (i + 1 < layers_.size()) report("hidden." + std::to_string(i + 1), x);
  }
  head(pass, x, 0, totals, tokens, Tensor());
}

}  // namespace lapidary
