// A model put together from options: what is planned is what is used, what is recomputed is what was kept,
// and gradients are the slopes of the loss.
#include "trainer/instance.h"

#include <gtest/gtest.h>
#include <mpi.h>

#include <array>
#include <cmath>
#include <random>

#include "model/weights.h"
#include "parallel/host_group.h"
#include "tests/parallel/copying_communicator.h"

namespace lapidary {
namespace {

class InstanceTest : public testing::Test {
 protected:
  InstanceTest() {
    mesh_ = make_mpi_mesh(resolve_mesh(world_.size(), world_.rank(), 0, 0, world_.size()), cpu_backend());
    options_.model.capacity = 48;
    options_.optimizer = OptimizerOptions{};
  }

  std::unique_ptr<Instance> make() {
    MemorySizes sizes = plan_memory(config_, table_, options_, mesh_.shape, Device::cpu);
    // The plan of a CPU knows no copies: more than two ranks need more staging for them.
    if (mesh_.reduce->copies()) sizes.transient *= 2;
    auto out = std::make_unique<Instance>(config_, table_, options_, mesh_, cpu_backend(), sizes);
    initialize_weights(out->stream(), config_, table_, out->shards(), 1);
    out->weights_loaded();
    return out;
  }

  void use(DType type) {
    options_.model.type = options_.sharding.weights = type;
    options_.sharding.gradients = type == DType::f64 ? DType::f64 : DType::f32;
  }

  Batch batch(std::int64_t tokens) const {
    Batch b = synthetic_batch(config_, tokens, 24);
    std::mt19937 rng(static_cast<unsigned>(7 + world_.rank()));
    for (std::byte& v : b.patches.values) v = static_cast<std::byte>(rng());
    for (std::byte& v : b.frames.values) v = static_cast<std::byte>(rng());
    return b;
  }

  /// A pass without update; the summed loss over all ranks.
  double pass(Instance& instance, const Batch& b) {
    instance.begin_step();
    instance.run_training(b, 1.0, true);
    return world_.all_reduce(instance.read_totals()[kTotalLoss], HostGroup::Reduce::sum, "test");
  }

  HostGroup world_{MPI_COMM_WORLD, std::chrono::seconds(60)};
  ModelConfig config_ =
      read_model_config(std::string(LAPIDARY_SOURCE_DIR) + "/tests/reference/mixed/config.json");
  ParameterTable table_ = make_parameter_table(config_);
  Mesh mesh_;
  InstanceOptions options_;
};

TEST_F(InstanceTest, UsesExactlyTheMemoryThatThePlanSays) {
  for (const auto type : {DType::f32, DType::bf16}) {
    for (const auto policy : {ActivationPolicy::keep, ActivationPolicy::recompute_cheap,
                              ActivationPolicy::recompute_gate_up, ActivationPolicy::recompute_block}) {
      for (const int zero : {2, 3}) {
        use(type);
        options_.model.activations = policy;
        options_.model.richer_layers = zero == 2 ? 1 : 0;
        options_.sharding.zero = zero;
        const MemorySizes plan = plan_memory(config_, table_, options_, mesh_.shape, Device::cpu);
        const auto instance = make();
        pass(*instance, batch(48));
        instance->finish_step(1e-3, 1);
        instance->begin_evaluation();
        instance->run_evaluation(batch(48));
        const MemorySizes used = instance->peaks();
        EXPECT_EQ(used.state, plan.state);
        EXPECT_EQ(used.transient, plan.transient);
        EXPECT_EQ(used.activations, plan.activations);
        EXPECT_EQ(used.workspace, plan.workspace);
      }
    }
  }
}

TEST_F(InstanceTest, EveryPolicyGivesTheSameBits) {
  std::vector<std::vector<std::byte>> first;
  for (const auto policy : {ActivationPolicy::keep, ActivationPolicy::recompute_cheap,
                            ActivationPolicy::recompute_gate_up, ActivationPolicy::recompute_block}) {
    for (const int richer_layers : {0, 2}) {
      options_.model.activations = policy;
      options_.model.richer_layers = richer_layers;
      const auto instance = make();
      pass(*instance, batch(40));
      std::vector<std::vector<std::byte>> gradients;
      for (const ParameterShard* shard : instance->shards()) {
        const auto* bytes = static_cast<const std::byte*>(shard->gradient.data());
        gradients.emplace_back(bytes, bytes + shard->gradient.bytes());
      }
      if (first.empty()) first = gradients;
      EXPECT_EQ(gradients, first) << static_cast<int>(policy) << ", " << richer_layers;
    }
  }
}

// Along a random direction d: (L(w + h d) - L(w - h d)) / 2h = <gradient, d>, in float64 where it can be
// strict.
TEST_F(InstanceTest, GradientsAreTheSlopesOfTheLoss) {
  use(DType::f64);
  const auto instance = make();
  const Batch b = batch(48);
  pass(*instance, b);
  std::mt19937_64 rng(11 + static_cast<unsigned>(world_.rank()));
  std::normal_distribution<double> normal;
  std::vector<std::vector<double>> directions;
  double slope = 0;
  for (const ParameterShard* shard : instance->shards()) {
    std::vector<double> d(static_cast<std::size_t>(shard->weight.numel()), 0.0);
    for (const ShardSlice& s : shard->slices) {
      if (!table_.specs[static_cast<std::size_t>(s.parameter)].trainable) continue;
      for (std::int64_t i = s.offset; i < s.offset + s.count; ++i) {
        d[static_cast<std::size_t>(i)] = normal(rng);
        // The padding row takes no gradient as an embedding: keep it where it is.
        const bool pad_row = s.parameter == table_.table && s.parameter_begin + i - s.offset < config_.width;
        if (pad_row) d[static_cast<std::size_t>(i)] = 0;
        slope += d[static_cast<std::size_t>(i)] * shard->gradient.as<double>()[i];
      }
    }
    directions.push_back(std::move(d));
  }
  slope = world_.all_reduce(slope, HostGroup::Reduce::sum, "test");
  const auto loss_at = [&](double h) {
    for (std::size_t k = 0; k < directions.size(); ++k) {
      double* w = instance->shards()[k]->weight.as<double>();
      for (std::size_t i = 0; i < directions[k].size(); ++i) w[i] += h * directions[k][i];
    }
    instance->weights_loaded();
    return pass(*instance, b);
  };
  const double h = 1e-7;  // the model is curved: at 1e-6 the third derivative shows
  const double above = loss_at(h), below = loss_at(-2 * h);
  EXPECT_NEAR((above - below) / (2 * h), slope, 1e-5 * std::abs(slope));
}

TEST_F(InstanceTest, OptimizerStateTakesTheBytesOfItsLayout) {
  use(DType::bf16);
  double elements = 0;
  const auto instance = make();
  for (const ParameterShard* shard : instance->shards())
    elements += static_cast<double>(shard->weight.numel());
  const auto state = [&](OptimizerLayout layout) {
    options_.optimizer->layout = layout;
    return static_cast<double>(plan_memory(config_, table_, options_, mesh_.shape, Device::cpu).state);
  };
  const double lean = state(OptimizerLayout::float8);  // two moments of a byte
  const double rounding = 4.0 * 256 * static_cast<double>(table_.unit_names.size() + 1);
  EXPECT_NEAR(state(OptimizerLayout::bf16) - lean, 2 * elements, rounding);
  EXPECT_NEAR(state(OptimizerLayout::split) - lean, 4 * elements, rounding);
  EXPECT_NEAR(state(OptimizerLayout::float32) - lean, 10 * elements, rounding);
}

// The same run with every layout of the optimizer's state: what is kept in fewer bits may not change how the
// loss falls: within 5 % at every of 30 steps on one batch.
TEST_F(InstanceTest, EveryOptimizerLayoutLearnsAlike) {
  use(DType::bf16);
  const auto losses = [&](OptimizerLayout layout) {
    options_.optimizer->layout = layout;
    const auto instance = make();
    const Batch b = batch(48);
    const auto sum = [&](double x) { return world_.all_reduce(x, HostGroup::Reduce::sum, "test"); };
    const double targets = sum(static_cast<double>(b.target_tokens()));
    std::array<double, 30> out{};
    for (std::size_t i = 0; i < out.size(); ++i) {
      instance->begin_step();
      instance->run_training(b, 1.0 / targets, true);
      instance->finish_step(3e-3, static_cast<std::int64_t>(i + 1));
      out[i] = sum(instance->read_totals()[kTotalLoss]) / targets;
    }
    return out;
  };
  const auto exact = losses(OptimizerLayout::float32);
  EXPECT_LT(exact.back(), 0.6 * exact.front());
  for (const auto layout : {OptimizerLayout::split, OptimizerLayout::bf16, OptimizerLayout::float8}) {
    const auto lean = losses(layout);
    for (std::size_t i = 0; i < exact.size(); ++i)
      EXPECT_NEAR(lean[i], exact[i], 0.05 * exact[i]) << static_cast<int>(layout) << ", step " << i + 1;
  }
}

TEST_F(InstanceTest, RanksThatReadEachOthersMemoryTrainAlike) {
  use(DType::f32);
  options_.sharding.zero = 2;
  const auto losses_and_norms = [&] {
    const auto instance = make();
    std::vector<double> out;
    for (int step = 1; step <= 3; ++step) {
      instance->begin_step();
      for (const bool last : {false, true}) instance->run_training(batch(48), 1e-2, last);
      instance->finish_step(1e-2, step);
      out.push_back(world_.all_reduce(instance->read_totals()[kTotalLoss], HostGroup::Reduce::sum, "test"));
      out.push_back(instance->read_norm());
    }
    return out;
  };
  const std::vector<double> expected = losses_and_norms();
  use_copies(mesh_);
  const std::vector<double> found = losses_and_norms();
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(found[i], expected[i], 1e-9 * expected[i]) << "value " << i;
}

TEST_F(InstanceTest, ARankWithoutTokensTakesPart) {
  const auto instance = make();
  const bool idle = world_.rank() + 1 == world_.size() && world_.size() > 1;
  const double loss = pass(*instance, idle ? synthetic_batch(config_, 0, 24) : batch(48));
  EXPECT_TRUE(std::isfinite(loss));
  instance->finish_step(1e-3, 1);
  EXPECT_TRUE(std::isfinite(instance->read_norm()));
  EXPECT_GT(instance->read_norm(), 0.0);
}

}  // namespace
}  // namespace lapidary
