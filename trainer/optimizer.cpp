#include "trainer/optimizer.h"

#include "kernels/check.h"

namespace lapidary {

namespace {

Tensor flat(const Tensor& t) {
  return t.reshape({t.numel()});
}

}  // namespace

Optimizer::Optimizer(const ParameterTable& table, std::vector<ParameterShard*> unit_shards,
                     ParameterShard* table_shard, const OptimizerOptions& options, Mesh& mesh, Stream& stream,
                     Arena& scalars, Arena& state)
    : options_(options), mesh_(&mesh), shards_(std::move(unit_shards)) {
  shards_.push_back(table_shard);
  const DType type = table_shard->weight.dtype();
  require(options.layout == OptimizerLayout::float32 || type == DType::bf16,
          "optimizer.state: this layout is made for bf16 weights, the weights are {}", name_of(type));
  const DType exact = type == DType::f64 ? DType::f64 : DType::f32;
  const DType moments = options.layout == OptimizerLayout::float32  ? exact
                        : options.layout == OptimizerLayout::float8 ? DType::u8
                                                                    : DType::bf16;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    const std::int64_t n = shards_[i]->weight.numel();
    State s;
    if (options.layout == OptimizerLayout::float32 && type == DType::bf16)
      s.master = state.allocate(DType::f32, {n});
    if (options.layout == OptimizerLayout::split) s.remainder = state.allocate(DType::i16, {n});
    s.m = state.allocate(moments, {n});
    s.v = state.allocate(moments, {n});
    for (const Tensor& t : {s.remainder, s.m, s.v}) {
      if (t) run(stream, Fill{.x = t});
    }
    states_.push_back(s);
    find_segments(table, i);
  }
  sums_ = scalars.allocate(DType::f64, {static_cast<std::int64_t>(shards_.size())});
  norm_ = scalars.allocate(DType::f64, {1});
  factor_ = scalars.allocate(exact, {1});
}

void Optimizer::find_segments(const ParameterTable& table, std::size_t shard) {
  const std::size_t first = segments_.size();
  for (const ShardSlice& slice : shards_[shard]->slices) {
    const ParameterSpec& spec = table.specs[static_cast<std::size_t>(slice.parameter)];
    if (!spec.trainable) continue;
    const bool extends =
        segments_.size() > first && segments_.back().decay == spec.decay &&
        slice.offset - (segments_.back().begin + segments_.back().count) < UnitLayout::kAlignment;
    if (extends) {  // the padding between holds zeros, and an update leaves zeros zero
      segments_.back().count = slice.offset + slice.count - segments_.back().begin;
    } else {
      segments_.push_back({shard, slice.offset, slice.count, spec.decay});
    }
  }
}

void Optimizer::weights_loaded(Stream& stream) {
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    if (states_[i].master) run(stream, Copy{.in = flat(shards_[i]->weight), .out = states_[i].master});
    if (states_[i].remainder) run(stream, Fill{.x = states_[i].remainder});
  }
}

void Optimizer::compute_norm(Stream& stream) {
  const std::int64_t units = sums_.numel() - 1, first = units_bring_squares_ ? units : 0;
  run(stream, Fill{.x = sums_.flat_range(first, units + 1 - first)});
  for (std::int64_t i = first; i <= units; ++i) {
    const ParameterShard& shard = *shards_[static_cast<std::size_t>(i)];
    run(stream, SquaredNorm{.x = flat(shard.gradient), .sum = sums_.flat_range(i, 1)});
  }
  // Each group holds every element once: the sums are over the group, not over the world.
  Ticket of_units = mesh_->reduce->all_reduce(stream, unit_squares(), Reduction::sum);
  Ticket of_rows = mesh_->vocabulary->all_reduce(stream, sums_.flat_range(units, 1), Reduction::sum);
  mesh_->reduce->wait(stream, of_units);
  mesh_->vocabulary->wait(stream, of_rows);
  run(stream, ClipFactor{.sums = sums_, .max_norm = options_.clip_norm, .norm = norm_, .factor = factor_});
}

void Optimizer::step(Stream& stream, double lr, std::int64_t step,
                     const std::function<void(std::size_t)>& updated) {
  compute_norm(stream);
  std::size_t done = 0;
  const auto report_until = [&](std::size_t shard) {
    while (done < shard) updated(done++);
  };
  for (const Segment& s : segments_) {
    report_until(s.shard);
    const State& state = states_[s.shard];
    const ParameterShard& shard = *shards_[s.shard];
    const auto part = [&](const Tensor& t) { return t ? flat(t).flat_range(s.begin, s.count) : Tensor(); };
    run(stream, AdamW{.param = part(shard.weight),
                      .master = part(state.master),
                      .remainder = part(state.remainder),
                      .m = part(state.m),
                      .v = part(state.v),
                      .grad = part(shard.gradient),
                      .grad_factor = factor_,
                      .lr = lr,
                      .beta1 = options_.beta1,
                      .beta2 = options_.beta2,
                      .eps = options_.eps,
                      .weight_decay = s.decay ? options_.weight_decay : 0.0,
                      .step = step,
                      .seed = options_.seed,
                      .first_index = shard.first_index + s.begin});
  }
  report_until(shards_.size());
}

}  // namespace lapidary
