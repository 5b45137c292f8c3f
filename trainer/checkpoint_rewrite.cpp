// Checkpoints from checkpoints: the same one in other pieces, and the mean of several.
#include <filesystem>

#include "kernels/check.h"
#include "trainer/checkpoint_convert.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_files.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {

namespace {

using Tensor = CheckpointManifest::Tensor;

/// Plans that cut every tensor into `shards` runs of elements.
std::vector<ShardPlan> plan_shards(const std::vector<Tensor>& tensors, int shards) {
  std::vector<ShardPlan> plans;
  for (int shard = 0; shard < shards; ++shard) {
    std::vector<CheckpointTensor> wanted;
    for (const Tensor& t : tensors) {
      const std::int64_t n = t.elements();
      // By division first: elements times shards may be more than an integer holds.
      const auto cut = [&](std::int64_t i) { return n / shards * i + n % shards * i / shards; };
      CheckpointTensor tensor{t.name, t.part, t.dtype, t.shape, {}};
      if (cut(shard) < cut(shard + 1))
        tensor.slices.push_back({cut(shard), cut(shard + 1) - cut(shard), nullptr});
      wanted.push_back(std::move(tensor));
    }
    plans.push_back(plan_shard(shard, wanted));
  }
  return plans;
}

class CopiedValues : public ShardValues {
 public:
  CopiedValues(const Checkpoint& checkpoint, const std::vector<Tensor>& tensors)
      : reader_(checkpoint), tensors_(&tensors) {}
  const void* next(const ShardPiece& piece) override {
    buffer_.resize(static_cast<std::size_t>(piece.bytes));
    reader_.read((*tensors_)[piece.tensor], piece.slice->begin + piece.first, piece.count, buffer_.data());
    return buffer_.data();
  }

 private:
  CheckpointReader reader_;
  const std::vector<Tensor>* tensors_;
  std::vector<std::byte> buffer_;
};

class MeanValues : public ShardValues {
 public:
  MeanValues(const std::vector<Checkpoint>& checkpoints, const std::vector<Tensor>& tensors)
      : tensors_(&tensors) {
    for (const Checkpoint& checkpoint : checkpoints) readers_.emplace_back(checkpoint);
  }
  const void* next(const ShardPiece& piece) override {
    const Tensor& tensor = (*tensors_)[piece.tensor];
    const auto n = static_cast<std::size_t>(piece.count);
    sums_.assign(n, 0.0);
    values_.resize(n);
    for (CheckpointReader& reader : readers_) {
      value_recipe(reader, tensor.name)
          ->make(reader, piece.slice->begin + piece.first, piece.count, values_.data());
      for (std::size_t i = 0; i < n; ++i) sums_[i] += static_cast<double>(values_[i]);
    }
    const auto count = static_cast<double>(readers_.size());
    halves_.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      values_[i] = static_cast<float>(sums_[i] / count);
      halves_[i] = bf16(values_[i]);
    }
    if (tensor.dtype == DType::bf16) return halves_.data();
    return values_.data();
  }

 private:
  std::vector<CheckpointReader> readers_;
  const std::vector<Tensor>* tensors_;
  std::vector<double> sums_;
  std::vector<float> values_;
  std::vector<bf16> halves_;
};

std::vector<Tensor> weights_of(const Checkpoint& checkpoint) {
  std::vector<Tensor> weights = checkpoint.manifest.tensors;
  std::erase_if(weights, [](const Tensor& t) { return t.part != "weight"; });
  require(!weights.empty(), "{}: holds no weights", checkpoint.path);
  return weights;
}

/// Error unless `other` has exactly these tensors.
void check_same_model(const std::vector<Tensor>& weights, const Checkpoint& first, const Checkpoint& other) {
  const CheckpointReader reader(other);
  for (const Tensor& weight : weights) {
    const Tensor* found = reader.find(weight.name, "weight");
    require(found != nullptr && found->shape == weight.shape && value_recipe(reader, weight.name),
            "{}: {} is missing, or has another shape than in {}, or is neither f32 nor bf16", other.path,
            weight.name, first.path);
  }
  require(weights_of(other).size() == weights.size(), "{}: has {} weights, {} has {}", other.path,
          weights_of(other).size(), first.path, weights.size());
}

}  // namespace

std::string reshard_checkpoint(const Checkpoint& checkpoint, const std::string& directory, int shards,
                               bool weights_only) {
  HostGroup alone;
  const std::vector<Tensor> tensors = weights_only ? weights_of(checkpoint) : checkpoint.manifest.tensors;
  const std::vector<ShardPlan> plans = plan_shards(tensors, shards);
  CopiedValues values(checkpoint, tensors);
  CheckpointWriteOptions options;
  options.metric = checkpoint.manifest.metric;
  return write_checkpoint(directory, checkpoint.manifest.step, plans, values,
                          checkpoint.manifest.state.dump(), alone, options);
}

std::string average_checkpoints(const std::vector<Checkpoint>& checkpoints, const std::string& directory) {
  require(!checkpoints.empty(), "checkpoints to average: none given");
  HostGroup alone;
  const std::vector<Tensor> weights = weights_of(checkpoints.front());
  const Checkpoint* newest = &checkpoints.front();
  nlohmann::json sources = nlohmann::json::array();
  for (const Checkpoint& checkpoint : checkpoints) {
    check_same_model(weights, checkpoints.front(), checkpoint);
    if (checkpoint.manifest.step > newest->manifest.step) newest = &checkpoint;
    sources.push_back(checkpoint.path);
  }
  nlohmann::json state = newest->manifest.state;
  state["mean_of"] = std::move(sources);
  const std::vector<ShardPlan> plans = plan_shards(weights, 1);
  MeanValues values(checkpoints, weights);
  return write_checkpoint(directory, newest->manifest.step, plans, values, state.dump(), alone);
}

}  // namespace lapidary
