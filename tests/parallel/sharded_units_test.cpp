// A model of random shapes, sharded in every way that the ranks allow, against whole parameters that every
// rank keeps for itself. All numbers are multiples of 1/64, so that sums are exact in any order: one rank,
// ZeRO-2, ZeRO-3 and hybrid meshes must agree in every bit.
#include "parallel/sharded_units.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "tests/parallel/collectives.h"
#include "tests/parallel/copying_communicator.h"

namespace lapidary {
namespace {

using Direction = ShardedUnits::Direction;

struct Model {
  std::vector<ParameterSpec> parameters;
  std::vector<std::string> names;
};

// Units of very different sizes; none is a multiple of any number of ranks. A table outside the units.
Model random_model(unsigned seed, int units) {
  std::mt19937 random(seed);
  Model model;
  model.parameters.push_back({.name = "table", .shape = {11, 3}, .unit = -1});
  for (int unit = 0; unit < units; ++unit) {
    model.names.push_back(fmt::format("layer {}", unit));
    const int count = 1 + static_cast<int>(random() % 5);
    for (int i = 0; i < count; ++i) {
      std::vector<std::int64_t> shape(1 + random() % 4);
      for (auto& extent : shape) extent = 1 + static_cast<std::int64_t>(random() % 9);
      model.parameters.push_back({.name = fmt::format("p{}.{}", unit, i), .shape = shape, .unit = unit});
    }
    model.parameters.push_back({.name = "gate", .shape = {7, 5 + unit}, .unit = unit});
    model.parameters.push_back({.name = "up", .shape = {6, 5 + unit}, .unit = unit, .joined = true});
  }
  return model;
}

double coarse(double value) {
  return std::round(value * 64) / 64;
}

enum class Transport : std::uint8_t { collectives, copies };

// A training run on this mesh, and beside it the whole parameters.
class Training {
 public:
  Training(const World& world, const Model& model, int shard, const ShardingOptions& options,
           bool dry = false, Transport transport = Transport::collectives)
      : world_(world),
        model_(model),
        backend_(dry ? plan_backend(transport == Transport::copies ? Device::cuda : Device::cpu)
                     : cpu_backend()),
        mesh_(make_mesh(shard, dry, transport)),
        state_(backend_, "state", kArena),
        transient_(backend_, "transient", kArena),
        workspace_(backend_, "workspace", kArena),
        stream_(make_stream()),
        squares_(workspace_.allocate(DType::f64, {static_cast<std::int64_t>(model.names.size())})),
        units(model.parameters, model.names, mesh_, options, *stream_, state_, transient_),
        leaves_squares_(units.leave_squares(squares_)) {
    EXPECT_EQ(leaves_squares_,
              transport == Transport::copies && mesh_.gather->size() == world.size && world.size > 1);
  }

  void initialize() {
    for (std::size_t p = 0; p < model_.parameters.size(); ++p) {
      whole_.emplace_back();
      for (std::int64_t i = 0; i < model_.parameters[p].numel(); ++i) {
        whole_.back().push_back(coarse(noise(7, p, static_cast<std::uint64_t>(i))));
      }
    }
    for_each_element([&](ParameterShard& shard, std::int64_t at, std::size_t p, std::size_t i) {
      set(shard.weight, at, whole_[p][i]);
    });
    units.weights_changed();
  }

  void forward() {
    units.begin(Direction::forward);
    for (int unit = 0; unit < units.units(); ++unit) {
      units.get(unit);
      check_weights(unit);
      units.release(unit);
    }
  }

  void backward(int micro_batch, bool last) {
    units.begin(Direction::backward);
    for (int unit = units.units() - 1; unit >= 0; --unit) {
      units.get(unit);
      check_weights(unit);
      units.begin_gradients(unit, overwrites(unit));
      add_gradients(unit, micro_batch);
      units.reduce(unit);
      units.release(unit);
    }
    units.finish(last);
  }

  // Weights go down by the gradient that all ranks' micro-batches sum to.
  void update(int micro_batches) {
    std::vector<std::vector<double>> sums(whole_.size());
    for (std::size_t p = 0; p < whole_.size(); ++p) {
      for (std::size_t i = 0; i < whole_[p].size(); ++i) {
        double sum = 0;
        for (int m = 0; m < micro_batches; ++m) {
          for (int rank = 0; rank < world_.size; ++rank) sum += part(rank, m, p, i);
        }
        sums[p].push_back(sum);
        whole_[p][i] -= sum / 4;
      }
    }
    std::int64_t wrong = 0;
    for_each_element([&](ParameterShard& shard, std::int64_t at, std::size_t p, std::size_t i) {
      wrong += get(shard.gradient, at) != sums[p][i];
      set(shard.weight, at, get(shard.weight, at) - get(shard.gradient, at) / 4);
    });
    EXPECT_EQ(wrong, 0);
    check_padding();
    check_squares();
    units.weights_changed();
  }

  std::size_t state_peak() const { return state_.peak(); }
  std::size_t transient_peak() const { return transient_.peak(); }
  void use_dry() {
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      units.begin(direction);
      for (int step = 0; step < units.units(); ++step) {
        const int unit = direction == Direction::forward ? step : units.units() - 1 - step;
        units.get(unit);
        if (direction == Direction::backward) units.begin_gradients(unit);
        if (direction == Direction::backward) units.reduce(unit);
        units.release(unit);
      }
    }
    units.finish(true);
  }

 private:
  static constexpr std::size_t kArena = std::size_t{1} << 20;

  std::unique_ptr<Stream> make_stream() {
    auto stream = backend_.make_stream("compute");
    stream->set_workspace(&workspace_);
    return stream;
  }

  Mesh make_mesh(int shard, bool dry, Transport transport) {
    if (dry) {
      MeshShape shape = resolve_mesh(world_.size, world_.rank, shard, 1, 1);
      shape.copies = transport == Transport::copies;
      return make_plan_mesh(shape, backend_);
    }
    Mesh mesh = world_.mesh(shard, 1);
    if (transport == Transport::copies) use_copies(mesh);
    return mesh;
  }

  double part(int rank, int micro_batch, std::size_t p, std::size_t i) const {
    const int who = rank * 100 + micro_batch;
    return coarse(noise(static_cast<std::uint64_t>(who), p, i));
  }

  void for_each_element(
      const std::function<void(ParameterShard&, std::int64_t, std::size_t, std::size_t)>& visit) {
    for (ParameterShard& shard : units.shards()) {
      for (const ShardSlice& slice : shard.slices) {
        for (std::int64_t i = 0; i < slice.count; ++i) {
          visit(shard, slice.offset + i, static_cast<std::size_t>(slice.parameter),
                static_cast<std::size_t>(slice.parameter_begin + i));
        }
      }
    }
  }

  void check_padding() {
    for (const ParameterShard& shard : units.shards()) {
      std::int64_t at = 0, not_zero = 0;
      const auto check_until = [&](std::int64_t end) {
        for (; at < end; ++at) not_zero += get(shard.weight, at) != 0 || get(shard.gradient, at) != 0;
      };
      for (const ShardSlice& slice : shard.slices) {
        check_until(slice.offset);
        at = slice.offset + slice.count;
      }
      check_until(shard.weight.numel());
      EXPECT_EQ(not_zero, 0);
    }
  }

  void check_squares() {
    if (!leaves_squares_) return;
    for (std::int64_t unit = 0; unit < squares_.numel(); ++unit) {
      const Tensor& gradient = units.shards()[static_cast<std::size_t>(unit)].gradient;
      double sum = 0;
      for (std::int64_t i = 0; i < gradient.numel(); ++i) sum += get(gradient, i) * get(gradient, i);
      EXPECT_EQ(get(squares_, unit), sum) << "unit " << unit;
    }
  }

  void check_weights(int unit) {
    std::int64_t wrong = 0;
    for (std::size_t p = 0; p < model_.parameters.size(); ++p) {
      if (model_.parameters[p].unit != unit) continue;
      const Tensor weight = units.weight(static_cast<int>(p));
      EXPECT_EQ(weight.dims(), static_cast<int>(model_.parameters[p].shape.size()));
      for (std::size_t i = 0; i < whole_[p].size(); ++i) {
        wrong += get(weight, static_cast<std::int64_t>(i)) != whole_[p][i];
      }
    }
    EXPECT_EQ(wrong, 0) << "unit " << unit;
  }

  // Every other unit is one whose matrices are written by products.
  static bool overwrites(int unit) { return unit % 2 == 0; }

  void add_gradients(int unit, int micro_batch) {
    for (std::size_t p = 0; p < model_.parameters.size(); ++p) {
      if (model_.parameters[p].unit != unit) continue;
      const Tensor gradient = units.gradient(static_cast<int>(p));
      const bool replaces =
          overwrites(unit) && units.gradients_blank() && model_.parameters[p].shape.size() > 1;
      for (std::size_t i = 0; i < whole_[p].size(); ++i) {
        const auto at = static_cast<std::int64_t>(i);
        set(gradient, at, (replaces ? 0.0 : get(gradient, at)) + part(world_.rank, micro_batch, p, i));
      }
    }
  }

  const World& world_;
  const Model& model_;
  Backend& backend_;
  Mesh mesh_;
  Arena state_, transient_, workspace_;
  std::unique_ptr<Stream> stream_;
  Tensor squares_;
  std::vector<std::vector<double>> whole_;

 public:
  ShardedUnits units;

 private:
  bool leaves_squares_;
};

std::vector<int> divisors(int n) {
  std::vector<int> out;
  for (int d = 1; d <= n; ++d) {
    if (n % d == 0) out.push_back(d);
  }
  return out;
}

TEST(ShardedUnits, EveryShardingTrainsTheSameModel) {
  const World world;
  for (const int count : {1, 2, 5}) {
    const Model model = random_model(static_cast<unsigned>(count), count);
    for (const int shard : divisors(world.size)) {
      for (const auto& [zero, prefetch] : {std::pair{3, 0}, {3, 1}, {3, 3}, {3, 100}, {2, 1}}) {
        for (const auto& [gradients, transport] : {std::pair{DType::f32, Transport::collectives},
                                                   {DType::f64, Transport::collectives},
                                                   {DType::f32, Transport::copies}}) {
          SCOPED_TRACE(fmt::format("{} units, shard {}, zero {}, prefetch {}, transport {}", count, shard,
                                   zero, prefetch, static_cast<int>(transport)));
          Training run(world, model, shard,
                       {.zero = zero, .weights = DType::f32, .gradients = gradients, .prefetch = prefetch},
                       false, transport);
          run.initialize();
          run.forward();  // an evaluation before the first step
          for (int step = 0; step < 2; ++step) {
            run.units.zero_gradients();
            for (int m = 0; m < 3; ++m) {
              run.forward();
              run.backward(m, m == 2);
            }
            run.update(3);
          }
          run.forward();
          EXPECT_FALSE(testing::Test::HasFailure());
          ASSERT_TRUE(everywhere(!testing::Test::HasFailure()));
        }
      }
    }
  }
}

TEST(ShardedUnits, Bfloat16WeightsAndGradients) {
  const World world;
  const Model model = random_model(9, 3);
  Training run(world, model, 0, {.weights = DType::bf16, .gradients = DType::bf16});
  run.initialize();  // multiples of 1/64 in [-1, 1] are exact
  run.forward();
  run.units.zero_gradients();
  run.backward(0, true);
  for (const ParameterShard& shard : run.units.shards()) {
    EXPECT_EQ(shard.weight.dtype(), DType::bf16);
    EXPECT_EQ(shard.gradient.dtype(), DType::bf16);
  }
}

TEST(ShardedUnits, NumbersElementsIndependentlyOfTheSharding) {
  const World world;
  const Model model = random_model(4, 4);
  Training run(world, model, 0, {});
  std::int64_t first = 0;
  for (int unit = 0; unit < 4; ++unit) {
    const UnitLayout layout = make_unit_layout(model.parameters, unit, "unit");
    const ParameterShard& shard = run.units.shards()[static_cast<std::size_t>(unit)];
    EXPECT_EQ(shard.first_index, first + world.rank * layout.shard(world.size));
    EXPECT_EQ(shard.replicas, 1);
    first += layout.numel;
  }
}

TEST(ShardedUnits, OneRankWorksInTheShardItself) {
  const World world;
  const Model model = random_model(5, 2);
  Training run(world, model, 1, {});
  EXPECT_EQ(run.transient_peak(), 0u);
  run.initialize();
  run.units.begin(Direction::backward);
  run.units.get(1);
  run.units.begin_gradients(1);
  const ParameterShard& shard = run.units.shards()[1];
  const int first = make_unit_layout(model.parameters, 1, "unit").entries.front().parameter;
  EXPECT_EQ(run.units.weight(first).data(), shard.weight.data());
  EXPECT_EQ(run.units.gradient(first).data(), shard.gradient.data());
  EXPECT_EQ(shard.replicas, world.size);
}

TEST(ShardedUnits, JoinedParametersAreOneMatrix) {
  const World world;
  const Model model = random_model(6, 2);
  Training run(world, model, 0, {});
  run.initialize();
  run.units.begin(Direction::backward);
  run.units.get(1);
  run.units.begin_gradients(1);
  const int gate = static_cast<int>(model.parameters.size()) - 2;
  const Tensor both = run.units.weight(gate, 2);
  EXPECT_EQ(both.rows(), 13);
  EXPECT_EQ(both.cols(), 6);
  EXPECT_EQ(both.row_range(7, 13).data(), run.units.weight(gate + 1).data());
  EXPECT_EQ(run.units.gradient(gate, 2).row_range(7, 13).data(), run.units.gradient(gate + 1).data());
  EXPECT_THROW(run.units.weight(gate - 1, 2), Error);
  EXPECT_THROW(run.units.weight(gate + 1, 2), Error);
  EXPECT_THROW(run.units.weight(0), Error);  // the table
  EXPECT_THROW(run.units.weight(static_cast<int>(model.parameters.size())), Error);
}

TEST(ShardedUnits, PlanCountsWhatTheRealRunTakes) {
  const World world;
  const Model model = random_model(8, 5);
  for (const int shard : divisors(world.size)) {
    for (const auto& [zero, transport] :
         {std::pair{2, Transport::collectives}, {3, Transport::collectives}, {2, Transport::copies}}) {
      const ShardingOptions options{.zero = zero, .weights = DType::bf16, .prefetch = 2};
      Training plan(world, model, shard, options, true, transport);
      plan.use_dry();
      Training real(world, model, shard, options, false, transport);
      real.use_dry();
      EXPECT_EQ(plan.state_peak(), real.state_peak());
      EXPECT_EQ(plan.transient_peak(), real.transient_peak());
      EXPECT_GT(plan.state_peak(), 0u);
      EXPECT_EQ(plan.transient_peak() == 0, shard == 1);
    }
  }
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(ShardedUnits, CallsOutOfOrderAreErrors) {
  const World world;
  const Model model = random_model(3, 3);
  Training run(world, model, 0, {});
  ShardedUnits& units = run.units;
  EXPECT_EQ(message_of([&] { units.get(0); }), "layer 0: get() before begin()");
  units.begin(Direction::forward);
  EXPECT_EQ(message_of([&] { units.get(1); }), "layer 1: get() out of order, expected layer 0");
  EXPECT_EQ(message_of([&] { units.get(3); }), "get(3) of 3 units");
  EXPECT_EQ(message_of([&] { units.weight(1); }), "layer 0: weight() outside get() and release()");
  units.get(0);
  EXPECT_EQ(message_of([&] { units.get(1); }), "layer 1: get() while layer 0 is in use");
  EXPECT_EQ(message_of([&] { units.release(1); }), "layer 1: release() while layer 0 is in use");
  EXPECT_EQ(message_of([&] { units.weights_changed(); }),
            "layer 0: weights_changed() between get() and release()");
  EXPECT_EQ(message_of([&] { units.begin(Direction::forward); }),
            "layer 0: begin() between get() and release()");
  units.release(0);
  EXPECT_EQ(message_of([&] { units.release(0); }), "layer 0: release() without get()");
  EXPECT_EQ(message_of([&] { units.begin_gradients(2); }),
            "layer 2: begin_gradients() out of order, expected begin(backward)");
  units.begin(Direction::backward);
  EXPECT_EQ(message_of([&] { units.begin_gradients(0); }),
            "layer 0: begin_gradients() out of order, expected layer 2");
  EXPECT_EQ(message_of([&] { units.finish(true); }), "layer 2: finish() before its gradient is reduced");
  units.begin_gradients(2);
  EXPECT_EQ(message_of([&] { units.begin_gradients(1); }),
            "layer 1: begin_gradients() before layer 2 is reduced");
  EXPECT_EQ(message_of([&] { units.reduce(1); }), "layer 1: reduce() while layer 2 is open");
  EXPECT_EQ(message_of([&] { units.zero_gradients(); }),
            "layer 2: zero_gradients() between begin_gradients() and reduce()");
  EXPECT_EQ(message_of([&] { units.gradient(1); }),
            "layer 0: gradient() outside begin_gradients() and reduce()");
  units.reduce(2);
  EXPECT_EQ(message_of([&] { units.reduce(2); }), "layer 2: reduce() without begin_gradients()");
}

TEST(ShardedUnits, RefusesOptionsThatDoNotExist) {
  const World world;
  const Model model = random_model(3, 3);
  EXPECT_EQ(message_of([&] { Training(world, model, 0, {.zero = 1}); }),
            "parallel.zero is 1, expected 2 or 3");
  EXPECT_EQ(message_of([&] { Training(world, model, 0, {.prefetch = -1}); }),
            "parallel.prefetch is -1, expected 0 or more units");
}

}  // namespace
}  // namespace lapidary
