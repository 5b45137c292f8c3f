// Rates in a file, the forecast that is made of them, and how many tokens fit.
#include "trainer/forecast.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "kernels/check.h"
#include "tests/temporary_folder.h"
#include "trainer/plan.h"
#include "trainer/step_work.h"

namespace lapidary {
namespace {

RunConfig config() {
  RunConfig out;
  out.model.config.text = std::string(LAPIDARY_SOURCE_DIR) + "/tests/launch/tiny-model.json";
  out.data.sequence_length = 128;
  out.train.rows_per_step = 8;
  out.parallel.gradient_dtype = Precision::bf16;
  return out;
}

/// Everything takes a microsecond a call, and a byte or FLOP at these rates.
RateSet rates(int ranks, double compute, double transfer) {
  RateSet out{"NVIDIA H200", "bf16", ranks, 128, "a test", {}};
  for (const char* kind : {"MatMul forward",
                           "MatMul input gradient",
                           "MatMul weight gradient",
                           "Attention d = 16",
                           "AttentionBackward d = 16",
                           "Attention d = 32",
                           "AttentionBackward d = 32",
                           "LossScores",
                           "LossGradient",
                           "RmsNorm",
                           "RmsNormBackward",
                           "ResidualNorm",
                           "ResidualNormBackward",
                           "QkvNormRope",
                           "QkvNormRopeBackward",
                           "GeGlu",
                           "GeGluBackward",
                           "EmbeddingLookup",
                           "EmbeddingBackward",
                           "AdamW",
                           "SquaredNorm",
                           "Fill",
                           "Copy",
                           "Add",
                           "RopeTable",
                           "LossCombine",
                           "ClipFactor"})
    out.rates[kind] = compute;
  for (const char* kind : {"all-gather", "reduce-scatter", "all-reduce"}) out.rates[kind] = transfer;
  out.rates[kRateBetween] = 1e6;
  return out;
}

StepForecast forecast(const RunConfig& c, int ranks, const std::vector<RateSet>& sets) {
  const RunSetup setup = make_run_setup(c, ranks, 0, ranks, true);
  const auto out = forecast_step(c, setup, Device::cuda, sets, 8);
  require(out.has_value(), "no forecast");
  return *out;
}

TEST(Forecast, OfOneRankIsTheSumOfItsOperations) {
  const RunConfig c = config();
  double expected = 0;
  for (const OpTimer::Line& l : step_operations(c, make_run_setup(c, 1, 0, 1, true), Device::cuda))
    expected += static_cast<double>(l.count) * 1e-6 + (l.work.flops > 0 ? l.work.flops : l.work.bytes) / 1e10;
  const StepForecast f = forecast(c, 1, {rates(1, 1e10, 1)});
  EXPECT_NEAR(f.seconds, expected, 1e-9 * expected);
  EXPECT_EQ(f.waiting, 0);
  EXPECT_EQ(f.tokens, 8 * 128);
  EXPECT_EQ(f.sources, std::vector<std::string>{"a test"});
  EXPECT_EQ(f.guessed, std::vector<std::string>{});
}

TEST(Forecast, CommunicationIsHiddenWhereItIsShorterThanTheWorkBesideIt) {
  RunConfig c = config();
  for (const int zero : {2, 3}) {
    c.parallel.zero = zero;
    const double alone = forecast(c, 2, {rates(2, 1e10, 1e18)}).seconds;
    const StepForecast quick = forecast(c, 2, {rates(2, 1e10, 1e12)});
    EXPECT_LT(quick.waiting, 0.02 * quick.seconds) << zero;
    const StepForecast slow = forecast(c, 2, {rates(2, 1e10, 1e7)});
    EXPECT_GT(slow.waiting, 0.5 * slow.seconds) << zero;
    EXPECT_NEAR(slow.seconds - slow.waiting, alone, 1e-6 * alone) << zero;
  }
}

TEST(Forecast, MoreMicroBatchesGatherOftenerUnlessWeightsAreKept) {
  RunConfig c = config();
  const auto waiting = [&](int zero, int rows) {
    c.parallel.zero = zero;
    c.train.rows_per_step = rows;
    return forecast(c, 2, {rates(2, 1e15, 1e7)}).waiting;
  };
  EXPECT_GT(waiting(3, 8) - waiting(2, 8), 1.5 * (waiting(3, 2) - waiting(2, 2)));
}

TEST(Forecast, TakesTheNearestSituation) {
  const RunConfig c = config();
  RateSet near = rates(1, 1e10, 1), far = rates(1, 1e8, 1), ranks = rates(2, 1e9, 1);
  near.source = "near", far.source = "far", far.tokens = 4096, ranks.source = "ranks";
  EXPECT_EQ(forecast(c, 1, {far, ranks, near}).sources, std::vector<std::string>{"near"});
  near.rates.erase("GeGlu");
  EXPECT_EQ(forecast(c, 1, {far, ranks, near}).sources, (std::vector<std::string>{"far", "near"}));
  near.type = "f32";
  EXPECT_EQ(forecast(c, 1, {far, ranks, near}).sources, std::vector<std::string>{"far"});
}

TEST(Forecast, SaysWhatItHadToGuess) {
  const RunConfig c = config();
  RateSet set = rates(1, 1e10, 1);
  const double exact = forecast(c, 1, {set}).seconds;
  set.rates.erase("Attention d = 32");
  set.rates.erase("RopeTable");
  const StepForecast f = forecast(c, 1, {set});
  EXPECT_EQ(f.guessed, (std::vector<std::string>{"Attention d = 32", "RopeTable"}));
  EXPECT_NEAR(f.seconds, exact, 1e-6 * exact);  // the others' mean is the same here
}

TEST(Forecast, NoneBeyondANodeNorOfAnotherPrecision) {
  RunConfig c = config();
  EXPECT_FALSE(forecast_step(c, make_run_setup(c, 16, 0, 8, true), Device::cuda, {rates(1, 1, 1)}, 8));
  c.run.precision = Precision::float32;
  EXPECT_FALSE(forecast_step(c, make_run_setup(c, 1, 0, 8, true), Device::cuda, {rates(1, 1, 1)}, 8));
}

TEST(Rates, AFileHoldsWhatWasMeasuredLast) {
  const TemporaryFolder folder;
  const std::string path = folder / "rates.jsonl";
  save_rates(path, rates(1, 1, 2));
  save_rates(path, rates(2, 3, 4));
  RateSet again{"NVIDIA H200", "bf16", 1, 128, "another test", {{"GeGlu", 5}}};
  save_rates(path, again);
  const auto sets = read_rates(path);
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_EQ(sets[0].source, "another test");
  EXPECT_EQ(sets[0].rates.at("GeGlu"), 5);
  EXPECT_EQ(sets[0].rates.at("RmsNorm"), 1);
  EXPECT_EQ(sets[1].ranks, 2);
  EXPECT_EQ(sets[1].rates.at("all-gather"), 4);
}

TEST(Rates, ADamagedFileIsAnErrorThatNamesTheLine) {
  const TemporaryFolder folder;
  const std::string path = folder / "rates.jsonl";
  const auto message = [&](const std::string& second) -> std::string {
    std::ofstream(path) << R"({"device":"a","type":"bf16","ranks":1,"tokens":1,"source":"s","rates":{}})"
                        << '\n'
                        << second << '\n';
    try {
      read_rates(path);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_NE(message("{").find(path + ":2"), std::string::npos);
  EXPECT_NE(message(R"({"device":"a"})").find("type"), std::string::npos);
  for (const char* rate : {"0", "-1", "\"fast\"", "null"}) {
    const std::string text =
        message(R"({"device":"a","type":"bf16","ranks":1,"tokens":1,"source":"s","rates":{"GeGlu":)" +
                std::string(rate) + "}}");
    EXPECT_NE(text.find("GeGlu"), std::string::npos) << text;
  }
  EXPECT_THROW(read_rates(folder / "none"), Error);
}

TEST(Rates, ADeviceIsNamedByWhatEqualOnesShare) {
  EXPECT_EQ(device_name("GPU 3: NVIDIA H200, 139.8 GiB, CUDA 13.0 (driver for 13.0)"), "NVIDIA H200");
  EXPECT_EQ(device_name("CPU, 2 hardware threads, 23.5 GiB memory"), "CPU, 2 hardware threads");
}

TEST(Plan, ACheckpointHoldsEveryWeightAndItsStateOnce) {
  const auto planned = [](const RunConfig& config, int ranks) {
    return make_plan(make_run_setup(config, ranks, 0, ranks, true), Device::cpu).checkpoint;
  };
  RunConfig c = config();
  const ParameterTable table = make_run_setup(c, 1, 0, 1, true).table;
  const auto stored = static_cast<std::size_t>(table.stored_elements());
  const auto trained = static_cast<std::size_t>(table.trainable_elements());
  const std::pair<OptimizerState, std::size_t> layouts[] = {{OptimizerState::float32, 12},
                                                            {OptimizerState::split, 6},
                                                            {OptimizerState::bf16, 4},
                                                            {OptimizerState::float8, 2}};
  c.run.precision = Precision::bf16;
  for (const auto& [layout, state] : layouts) {
    c.optimizer.state = layout;
    for (const bool offload : {false, true}) {
      c.optimizer.offload = offload;
      EXPECT_EQ(planned(c, 1), 2 * stored + state * trained);
      EXPECT_EQ(planned(c, 3), 2 * stored + state * trained);
    }
  }
  c = config();
  c.run.precision = Precision::float32;
  EXPECT_EQ(planned(c, 2), 4 * stored + 8 * trained);
}

TEST(Plan, RoomIsTheMostThatFits) {
  RunConfig c = config();
  const auto total = [](const RunConfig& config) {
    return make_plan(make_run_setup(config, 2, 0, 2, true), Device::cuda).total();
  };
  RunConfig larger = c;
  larger.train.rows_per_rank = 11;
  const std::size_t memory = total(larger) + 1;
  const Room room = find_room(c, 2, 2, Device::cuda, memory);
  EXPECT_EQ(room.rows, 11);
  c.data.sequence_length = room.row_length;
  EXPECT_LE(total(c), memory);
  c.data.sequence_length += Room::kRowStep;
  EXPECT_GT(total(c), memory);
  EXPECT_EQ(find_room(config(), 2, 2, Device::cuda, 1000).rows, 0);
  EXPECT_EQ(find_room(config(), 2, 2, Device::cuda, 1000).row_length, 0);
}

TEST(Plan, RoomForLayersThatKeepMoreIsTheMostThatFits) {
  RunConfig c = config();
  c.data.sequence_length = 1 << 17;  // so many that the layers decide the peak, not the embedders
  const auto total = [](const RunConfig& config) {
    return make_plan(make_run_setup(config, 2, 0, 2, true), Device::cuda).total();
  };
  for (const auto policy : {ActivationPolicy::recompute_cheap, ActivationPolicy::recompute_gate_up,
                            ActivationPolicy::recompute_block}) {
    c.memory.activations = policy;
    c.memory.richer_layers = 0;
    const std::size_t least = total(c);
    EXPECT_EQ(find_room(c, 2, 2, Device::cuda, least).richer_layers, 0);
    EXPECT_EQ(find_room(c, 2, 2, Device::cuda, least - 1).richer_layers, 0);
    c.memory.richer_layers = 1;
    const std::size_t one = total(c);
    EXPECT_GT(one, least);
    EXPECT_EQ(find_room(c, 2, 2, Device::cuda, one).richer_layers, 1);
    EXPECT_EQ(find_room(c, 2, 2, Device::cuda, one - 1).richer_layers, 0);
    // All of them: the plan of the policy before.
    c.memory.richer_layers = static_cast<std::int64_t>(make_run_setup(c, 2, 0, 2, true).model.layers.size());
    RunConfig before = c;
    before.memory.richer_layers = 0;
    before.memory.activations = richer(policy);
    EXPECT_EQ(total(c), total(before));
    ++c.memory.richer_layers;
    EXPECT_THROW(make_run_setup(c, 2, 0, 2, true), Error);
  }
}

TEST(Plan, PrintsAForecastWithItsGround) {
  PlanOptions options;
  options.ranks = {1, 2, 16};
  options.card = "H200";
  options.rates = {rates(1, 1e10, 1e9), rates(2, 1e10, 1e9)};
  options.memory = std::size_t{1} << 30;
  std::ostringstream out;
  print_plan(config(), options, Device::cuda, out);
  for (const char* text : {"forecast: ms a step", "forecast: MFU", "rows of 128 that fit",
                           "measured on NVIDIA H200", "a test", "more than a node of 8"})
    EXPECT_NE(out.str().find(text), std::string::npos) << text << "\n" << out.str();
  options.card = "A100";
  EXPECT_THROW(print_plan(config(), options, Device::cuda, out), Error);
}

}  // namespace
}  // namespace lapidary
