// lapidary bench ops: every operation of a training step that memory bounds, beside two copies: a large one,
// and one that moves as many bytes as the operation, because starting and ending cost a short one much of its
// time.
//
// They are timed where they belong: inside steps of the configuration's model, cut to its first layer of each
// kind so that it fits any device. Caches then hold what they hold in a run. Copies read and write what no
// cache holds.
#include <algorithm>
#include <iostream>
#include <map>

#include "kernels/check.h"
#include "kernels/number_text.h"
#include "kernels/ops.h"
#include "kernels/stopwatch.h"
#include "launch/bench.h"
#include "launch/commands.h"
#include "model/weights.h"
#include "trainer/plan.h"
#include "trainer/product_tuning.h"
#include "trainer/random_text.h"
#include "trainer/step_work.h"

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
    tune_products(*instance_, cut_, batch_, config.run.products, alone, std::cout);
  }

  void run() {
    Arena memory(backend_, "copy", 2 * copied_bytes(backend_.device()));
    from_ = memory.allocate_bytes(copied_bytes(backend_.device()));
    to_ = memory.allocate_bytes(copied_bytes(backend_.device()));
    BenchOptions options;
    options.rounds = arguments_.rounds;
    options.least_ms = 0;  // every measurement of a step is one step
    const std::vector<BenchTime> times =
        time_in_turn(instance_->stream(),
                     {{"copy", [&] { lapidary::run(instance_->stream(), Copy{.in = from_, .out = to_}); }},
                      {"step", [&] { step(); }}},
                     options);
    print(2.0 * static_cast<double>(from_.bytes()) / times[0].median * 1e3);
  }

 private:
  static std::size_t copied_bytes(Device device) {
    return device == Device::cuda ? std::size_t{1} << 30 : std::size_t{256} << 20;
  }

  /// Seconds a byte in each round, of an operation and of a copy of its size.
  struct Rates {
    std::vector<double> operation, copy;
  };

  /// A step, and what each of its operations and a copy of its size took, beside those of the steps before.
  void step() {
    Stream& stream = instance_->stream();
    OpTimer timer;
    stream.set_timer(&timer);
    run_step(*instance_, batch_, 1, static_cast<double>(batch_.target_tokens()), config_.optimizer.lr,
             ++number_);
    stream.set_timer(nullptr);
    std::vector<OpTimer::Line> lines = timer.collect(stream);
    std::erase_if(lines, [](const OpTimer::Line& line) { return line.work.bytes == 0; });
    for (const OpTimer::Line& line : lines) copy_as_much(stream, timer, line);
    for (const OpTimer::Line& line : lines)
      rates_[line.work.kind].operation.push_back(line.seconds / line.work.bytes);
    for (const OpTimer::Line& line : timer.collect(stream))
      rates_[line.work.kind].copy.push_back(line.seconds / line.work.bytes);
  }

  /// Copies half of what a call of the operation moves on average, as often as the step called it, so reads
  /// and writes as many bytes.
  void copy_as_much(Stream& stream, OpTimer& timer, const OpTimer::Line& line) {
    constexpr std::size_t kLine = 128;
    const std::size_t half = static_cast<std::size_t>(line.work.bytes / 2 / static_cast<double>(line.count));
    const std::size_t bytes = std::clamp((half + kLine - 1) / kLine * kLine, kLine, from_.bytes());
    OpWork work = line.work;
    work.bytes = 2.0 * static_cast<double>(bytes);
    for (std::int64_t i = 0; i < line.count; ++i) {
      // One range behind the other: none is in a cache when its turn comes again.
      if (next_ + bytes > from_.bytes()) next_ = 0;
      const auto part = [&](const Tensor& t) {
        return t.flat_range(static_cast<std::int64_t>(next_), static_cast<std::int64_t>(bytes));
      };
      timer.begin(stream, work);
      lapidary::run(stream, Copy{.in = part(from_), .out = part(to_)});
      timer.end(stream);
      next_ += bytes;
    }
  }

  void print(double copy) const {
    std::cout << fmt::format(
        "{}\n{} tokens a micro-batch; a copy of {} moves {:.1f} GB/s (read and written)\n"
        "{:<28}{:>7}{:>12}{:>10}{:>10}{:>14}\n",
        backend_.description(), batch_.tokens(), format_bytes(from_.bytes()), copy * 1e-9,
        "operation, in one step", "calls", "ms", "GB/s", "of copy", "of same size");
    std::vector<OpTimer::Line> lines = step_operations(config_, setup_, device_);
    std::erase_if(lines, [&](const OpTimer::Line& l) { return !rates_.contains(l.work.kind); });
    for (OpTimer::Line& l : lines) l.seconds = l.work.bytes * median_of(rates_.at(l.work.kind).operation);
    std::ranges::sort(lines, std::greater{}, &OpTimer::Line::seconds);
    OpTimer::Line all{{.label = "all of them"}, 0, 0};
    double all_copies = 0;
    const auto line = [&](const OpTimer::Line& l, double copy_seconds) {
      const double rate = l.work.bytes / l.seconds;
      std::cout << fmt::format("{:<28}{:>7}{:>12.3f}{:>10.1f}{:>9.1f}%{:>13.1f}%\n", l.work.label, l.count,
                               l.seconds * 1e3, rate * 1e-9, 100 * rate / copy,
                               100 * copy_seconds / l.seconds);
    };
    for (const OpTimer::Line& l : lines) {
      const double copies = l.work.bytes * median_of(rates_.at(l.work.kind).copy);
      line(l, copies);
      all.count += l.count;
      all.seconds += l.seconds;
      all.work.bytes += l.work.bytes;
      all_copies += copies;
    }
    line(all, all_copies);
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
  Tensor from_, to_;                    ///< u8
  std::size_t next_ = 0;                ///< where the next copy begins
  std::map<std::string, Rates> rates_;  ///< by kind
};

}  // namespace

int run_bench_ops(const BenchOpsArguments& arguments) {
  const RunConfig config = load_config(arguments.config.sources);
  OpsBench(arguments, config).run();
  return 0;
}

}  // namespace lapidary
