#include "parallel/sharded_units.h"

#include "kernels/check.h"
#include "parallel/gathered_weights.h"
#include "parallel/reduced_gradients.h"
#include "parallel/unit_table.h"

namespace lapidary {

namespace {

const ShardingOptions& checked(const ShardingOptions& options) {
  require(options.zero == 2 || options.zero == 3, "parallel.zero is {}, expected 2 or 3", options.zero);
  require(options.prefetch >= 0, "parallel.prefetch is {}, expected 0 or more units", options.prefetch);
  return options;
}

}  // namespace

struct ShardedUnits::Impl {
  UnitTable table;
  GatheredWeights weights;
  ReducedGradients gradients;
  std::vector<ParameterShard> shards;

  Impl(const std::vector<ParameterSpec>& parameters, const std::vector<std::string>& unit_names, Mesh& mesh,
       const ShardingOptions& options, Stream& compute, Arena& state, Arena& transient)
      : table(parameters, unit_names),
        weights(table, *mesh.gather, checked(options), compute, state, transient),
        gradients(table, *mesh.reduce, *mesh.replicas, options.gradients, compute, state, transient) {
    const int rank = mesh.gather->rank(), ranks = mesh.gather->size();
    for (int unit = 0; unit < table.units(); ++unit) {
      const UnitLayout& layout = table.layout(unit);
      shards.push_back({.weight = weights.shard(unit),
                        .gradient = gradients.shard(unit),
                        .slices = shard_slices(layout, rank, ranks),
                        .first_index = table.first_index(unit) + rank * layout.shard(ranks),
                        .replicas = mesh.replicas->size()});
    }
  }
};

ShardedUnits::ShardedUnits(const std::vector<ParameterSpec>& parameters,
                           const std::vector<std::string>& unit_names, Mesh& mesh,
                           const ShardingOptions& options, Stream& compute, Arena& state, Arena& transient)
    : impl_(std::make_unique<Impl>(parameters, unit_names, mesh, options, compute, state, transient)) {}

ShardedUnits::~ShardedUnits() = default;

int ShardedUnits::units() const {
  return impl_->table.units();
}

int ShardedUnits::ahead() const {
  return impl_->weights.ahead();
}

void ShardedUnits::weights_changed() {
  impl_->weights.changed();
}

void ShardedUnits::begin(Direction direction) {
  if (direction == Direction::backward) impl_->gradients.start();
  impl_->weights.begin(direction);
}

void ShardedUnits::get(int unit) {
  impl_->weights.get(unit);
}

void ShardedUnits::release(int unit) {
  impl_->weights.release(unit);
}

Tensor ShardedUnits::weight(int parameter) const {
  return impl_->table.view(impl_->weights.whole(impl_->table.unit_of(parameter)), parameter);
}

Tensor ShardedUnits::weight(int first, int count) const {
  return impl_->table.view(impl_->weights.whole(impl_->table.unit_of(first)), first, count);
}

void ShardedUnits::zero_gradients() {
  impl_->gradients.zero();
}

void ShardedUnits::begin_gradients(int unit, bool overwrites_matrices) {
  impl_->gradients.begin(unit, overwrites_matrices);
}

bool ShardedUnits::gradients_blank() const {
  return impl_->gradients.blank();
}

Tensor ShardedUnits::gradient(int parameter) const {
  return impl_->table.view(impl_->gradients.whole(impl_->table.unit_of(parameter)), parameter);
}

Tensor ShardedUnits::gradient(int first, int count) const {
  return impl_->table.view(impl_->gradients.whole(impl_->table.unit_of(first)), first, count);
}

void ShardedUnits::reduce(int unit) {
  impl_->gradients.reduce(unit);
}

void ShardedUnits::finish(bool last) {
  impl_->gradients.finish(last);
}

bool ShardedUnits::leave_squares(const Tensor& squares) {
  return impl_->gradients.leave_squares(squares);
}

std::vector<ParameterShard>& ShardedUnits::shards() {
  return impl_->shards;
}

}  // namespace lapidary
