#include "trainer/instance.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/check.h"

namespace lapidary {

Instance::Instance(const ModelConfig& config, const ParameterTable& table, const InstanceOptions& options,
                   Mesh& mesh, Backend& backend, const MemorySizes& sizes)
    : table_(&table),
      backend_(&backend),
      state_(backend, "state", sizes.state),
      transient_(backend, "transient", sizes.transient),
      activations_(backend, "activations", sizes.activations),
      workspace_(backend, "workspace", sizes.workspace),
      host_(backend, "offloaded optimizer state", sizes.host, Place::host),
      stream_(backend.make_stream("compute")) {
  stream_->set_workspace(&workspace_);
  units_ = std::make_unique<ShardedUnits>(table.specs, table.unit_names, mesh, options.sharding, *stream_,
                                          state_, transient_);
  const auto& unit_shards = units_->shards();
  // Indices of counter-based random numbers: units first, then the table, whatever the sharding.
  std::int64_t table_index = 0;
  for (std::size_t u = 0; u < table.unit_names.size(); ++u)
    table_index += make_unit_layout(table.specs, static_cast<int>(u), table.unit_names[u]).numel;
  vocabulary_ = std::make_unique<VocabularyTable>(
      table.specs[static_cast<std::size_t>(table.table)], table.table, table_index, options.model.capacity,
      mesh, options.sharding.weights, options.sharding.gradients, *stream_, state_);
  for (std::size_t i = 0; i < unit_shards.size(); ++i) shards_.push_back(&units_->shards()[i]);
  if (options.optimizer) {
    optimizer_ = std::make_unique<Optimizer>(table, shards_, &vocabulary_->shard(), *options.optimizer, mesh,
                                             *stream_, state_, options.optimizer->offload ? host_ : state_);
    if (units_->leave_squares(optimizer_->unit_squares())) optimizer_->units_bring_squares();
  }
  shards_.push_back(&vocabulary_->shard());
  totals_ = state_.allocate(DType::f64, {kLossTotals});
  model_ = std::make_unique<Gemma4>(config, table, options.model, *units_, *vocabulary_, activations_);
}

Optimizer& Instance::optimizer() {
  require(optimizer_ != nullptr, "this instance was put together for evaluation and has no optimizer");
  return *optimizer_;
}

void Instance::weights_loaded() {
  units_->weights_changed();
  if (optimizer_) optimizer_->weights_loaded(*stream_);
}

void Instance::begin_step() {
  run(*stream_, Fill{.x = totals_});
  units_->zero_gradients();
  vocabulary_->zero_gradients();
}

void Instance::finish_step(double lr, std::int64_t step) {
  backend_->wait(*stream_, std::exchange(held_until_, {}));
  units_->weights_changed();
  // The next forward pass's first units are gathered beside the rest of the update.
  const auto first_units = static_cast<std::size_t>(std::min(units_->ahead(), units_->units() - 1));
  optimizer().step(*stream_, lr, step, [&](std::size_t updated) {
    if (updated == first_units) units_->begin(ShardedUnits::Direction::forward);
  });
}

std::vector<double> Instance::read_totals() {
  std::vector<double> out(kLossTotals);
  backend_->copy_to_host(*stream_, out.data(), totals_.data(), totals_.bytes());
  backend_->synchronize(*stream_);
  return out;
}

double Instance::read_norm() {
  double out = 0;
  backend_->copy_to_host(*stream_, &out, optimizer().norm().data(), sizeof out);
  backend_->synchronize(*stream_);
  return out;
}

bool Instance::weights_finite() {
  Arena arena(*backend_, "check of the weights", std::size_t{1} << 20);
  const Tensor sum = arena.allocate(DType::f64, {1});
  run(*stream_, Fill{.x = sum});
  Arena* const before = &stream_->workspace();
  stream_->set_workspace(&arena);
  for (const ParameterShard* shard : shards_) run(*stream_, SquaredNorm{.x = shard->weight, .sum = sum});
  stream_->set_workspace(before);
  double square = 0;
  backend_->copy_to_host(*stream_, &square, sum.data(), sizeof square);
  backend_->synchronize(*stream_);
  return std::isfinite(square);
}

MemorySizes Instance::peaks() const {
  return {state_.peak(), transient_.peak(), activations_.peak(), workspace_.peak(), host_.peak()};
}

Batch synthetic_batch(const ModelConfig& config, std::int64_t tokens, std::int64_t sequence_length,
                      ImageAttention rule) {
  Batch batch;
  const auto n = static_cast<std::size_t>(tokens);
  batch.ids.resize(n);
  batch.targets.resize(n);
  batch.positions.resize(n);
  std::vector<std::int32_t> document(n);
  std::vector<std::uint8_t> vision(n, 0);
  const auto ordinary = [&](std::size_t t) {  // any id that is not special
    const auto ids = static_cast<std::size_t>(config.vocabulary);
    auto id = static_cast<std::int32_t>((t * 7919 + 13) % ids);
    const auto soft = config.soft_ids();
    while (id == config.pad_id || std::find(soft.begin(), soft.end(), id) != soft.end())
      id = static_cast<std::int32_t>((static_cast<std::size_t>(id) + 1) % ids);
    return id;
  };
  for (std::size_t t = 0; t < n; ++t) {
    document[t] = static_cast<std::int32_t>(static_cast<std::int64_t>(t) / sequence_length);
    batch.positions[t] = static_cast<std::int32_t>(static_cast<std::int64_t>(t) % sequence_length);
    batch.ids[t] = batch.targets[t] = ordinary(t);
  }
  const auto add_soft = [&](Features& features, DType type, std::int64_t width, std::int32_t id,
                            std::int64_t begin, std::int64_t end, bool image) {
    features.dtype = type;
    features.width = width;
    for (std::int64_t t = begin; t < end; ++t) {
      const auto at = static_cast<std::size_t>(t);
      batch.ids[at] = id;
      batch.targets[at] = -1;
      vision[at] = image ? 1 : 0;
      features.token.push_back(static_cast<std::int32_t>(t));
    }
    features.count = end - begin;
    features.values.resize(static_cast<std::size_t>(features.count * width) * size_of(type));
  };
  // Enough of both kinds to fill the embedders' pieces where the batch has room, with text left to train on.
  const std::int64_t each = std::min<std::int64_t>(1024, tokens / 3);
  if (config.has_vision) {
    add_soft(batch.patches, DType::u8, config.vision.patch_width(), config.image_id, 0, each, true);
    batch.patch_xy.assign(static_cast<std::size_t>(2 * batch.patches.count), 0);
  }
  if (config.has_audio) {
    add_soft(batch.frames, DType::i16, config.audio.frame_width, config.audio_id, each, 2 * each, false);
  }
  attention_intervals(document, vision, static_cast<std::int32_t>(config.window), rule, batch.full,
                      batch.sliding);
  batch.rows = sequence_length > 0 ? (tokens + sequence_length - 1) / sequence_length : 0;
  return batch;
}

MemorySizes plan_memory(const ModelConfig& config, const ParameterTable& table,
                        const InstanceOptions& options, const MeshShape& shape, Device device) {
  Backend& backend = plan_backend(device);
  Mesh mesh = make_plan_mesh(shape, backend);
  InstanceOptions planned = options;
  planned.model.features = {};
  Instance instance(config, table, planned, mesh, backend, {});
  const Batch batch = synthetic_batch(config, options.model.capacity, options.model.capacity);
  if (options.optimizer) {
    instance.begin_step();
    instance.run_training(batch, 1.0, true);
    instance.finish_step(0, 1);
  }
  instance.begin_evaluation();
  instance.run_evaluation(batch);
  return instance.peaks();
}

}  // namespace lapidary
