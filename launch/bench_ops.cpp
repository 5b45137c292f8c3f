// lapidary bench ops: every operation of a training step that memory bounds, beside a copy.
//
// They are timed where they belong: inside steps of the configuration's model, cut to its first layer of each
// kind so that it fits any device. Caches then hold what they hold in a run.
#include <algorithm>
#include <iostream>
#include <map>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "launch/bench.h"
#include "launch/commands.h"
#include "model/weights.h"
#include "trainer/plan.h"
#include "trainer/product_tuning.h"
#include "trainer/random_text.h"
#include "trainer/step_work.h"
#include "trainer/stopwatch.h"

namespace lapidary {

namespace {

RunSetup cut_to_one_layer_a_kind(RunSetup setup) {
  std::vector<LayerConfig>& layers = setup.model.layers;
  std::vector<LayerConfig> kept;
  for (const bool full : {false, true}) {
    const auto found = std::ranges::find(layers, full, &LayerConfig::full);
    if (found != layers.end()) kept.push_back(*found);
  }
  layers = kept;
  setup.table = make_parameter_table(setup.model);
  return setup;
}

class OpsBench {
 public:
  OpsBench(const BenchOpsArguments& arguments, const RunConfig& config)
      : arguments_(arguments),
        config_(config),
        device_(choose_device(config.run.device)),
        setup_(make_run_setup(config, 1, 0, 1, true)),
        cut_(cut_to_one_layer_a_kind(setup_)),
        backend_(open_backend(device_, NodePlace{})),
        mesh_(make_mesh(cut_.mesh, backend_, NodePlace{})) {
    const MemoryPlan plan = make_plan(cut_, device_);
    check_fits(plan, backend_.memory().free, device_);
    instance_ = std::make_unique<Instance>(cut_.model, cut_.table, cut_.options, mesh_, backend_, plan.sizes);
    initialize_weights(instance_->stream(), cut_.model, cut_.table, instance_->shards(),
                       static_cast<std::uint64_t>(config.run.seed));
    instance_->weights_loaded();
    batch_ = random_text(cut_.model, config.train.rows_per_rank, config.data.sequence_length,
                         static_cast<std::uint64_t>(config.run.seed), config.model.image_attention);
    HostGroup alone;
    tune_products(*instance_, cut_, batch_, config.run.products, alone);
  }

  void run() {
    const std::size_t bytes =
        backend_.device() == Device::cuda ? std::size_t{1} << 30 : std::size_t{256} << 20;
    Arena memory(backend_, "copy", 2 * bytes);
    const Tensor from = memory.allocate_bytes(bytes), to = memory.allocate_bytes(bytes);
    BenchOptions options;
    options.rounds = arguments_.rounds;
    options.least_ms = 0;  // every measurement of a step is one step
    const std::vector<BenchTime> times =
        time_in_turn(instance_->stream(),
                     {{"copy", [&] { lapidary::run(instance_->stream(), Copy{.in = from, .out = to}); }},
                      {"step", [&] { step(); }}},
                     options);
    print(2.0 * static_cast<double>(bytes) / times[0].median * 1e3, bytes);
  }

 private:
  /// A step, and what each of its operations took, beside those of the steps before.
  void step() {
    Stream& stream = instance_->stream();
    OpTimer timer;
    stream.set_timer(&timer);
    run_step(*instance_, batch_, 1, static_cast<double>(batch_.target_tokens()), config_.optimizer.lr,
             ++number_);
    stream.set_timer(nullptr);
    for (const OpTimer::Line& line : timer.collect(stream)) {
      if (line.work.bytes > 0) seconds_a_byte_[line.work.kind].push_back(line.seconds / line.work.bytes);
    }
  }

  void print(double copy, std::size_t copied) const {
    std::cout << fmt::format(
        "{}\n{} tokens a micro-batch; a copy of {} moves {:.1f} GB/s (read and written)\n"
        "{:<28}{:>7}{:>12}{:>10}{:>10}\n",
        backend_.description(), batch_.tokens(), format_bytes(copied), copy * 1e-9, "operation, in one step",
        "calls", "ms", "GB/s", "of copy");
    std::vector<OpTimer::Line> lines = step_operations(config_, setup_, device_);
    std::erase_if(lines, [&](const OpTimer::Line& l) { return !seconds_a_byte_.contains(l.work.kind); });
    for (OpTimer::Line& l : lines) l.seconds = l.work.bytes * median_of(seconds_a_byte_.at(l.work.kind));
    std::ranges::sort(lines, std::greater{}, &OpTimer::Line::seconds);
    OpTimer::Line all{{.label = "all of them"}, 0, 0};
    const auto line = [&](const OpTimer::Line& l) {
      const double rate = l.work.bytes / l.seconds;
      std::cout << fmt::format("{:<28}{:>7}{:>12.3f}{:>10.1f}{:>9.1f}%\n", l.work.label, l.count,
                               l.seconds * 1e3, rate * 1e-9, 100 * rate / copy);
    };
    for (const OpTimer::Line& l : lines) {
      line(l);
      all.count += l.count;
      all.seconds += l.seconds;
      all.work.bytes += l.work.bytes;
    }
    line(all);
  }

  const BenchOpsArguments& arguments_;
  const RunConfig& config_;
  Device device_;
  RunSetup setup_, cut_;
  Backend& backend_;
  Mesh mesh_;
  std::unique_ptr<Instance> instance_;
  Batch batch_;
  std::int64_t number_ = 0;
  std::map<std::string, std::vector<double>> seconds_a_byte_;
};

}  // namespace

int run_bench_ops(const BenchOpsArguments& arguments) {
  const RunConfig config = load_config(arguments.config.sources);
  OpsBench(arguments, config).run();
  return 0;
}

}  // namespace lapidary
