#include "trainer/step_bench.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <ostream>

#include "kernels/check.h"
#include "kernels/number_text.h"
#include "kernels/op_timer.h"
#include "kernels/stopwatch.h"
#include "model/weights.h"
#include "trainer/flops.h"
#include "trainer/plan.h"
#include "trainer/product_tuning.h"
#include "trainer/random_text.h"
#include "trainer/rates.h"
#include "trainer/step_profile.h"
#include "trainer/step_waits.h"
#include "trainer/step_work.h"

namespace lapidary {

namespace {

class StepBench {
 public:
  StepBench(const RunConfig& config, const StepBenchOptions& options, HostGroup& world,
            const NodePlace& place, std::ostream& out)
      : config_(config),
        options_(options),
        world_(world),
        out_(out),
        device_(choose_device(config.run.device)),
        setup_(make_run_setup(config, world.size(), world.rank(), place.ranks_per_node, true)),
        plan_(make_plan(setup_, device_)),
        backend_(open_backend(device_, place)),
        mesh_(make_mesh(setup_.mesh, backend_, place)),
        free_before_(backend_.memory().free) {
    check_fits(plan_, free_before_, device_);
    check_fits_host(plan_, cpu_backend().memory().free / static_cast<std::size_t>(place.ranks_per_node));
    time_waits(mesh_, wait_timer_);
    instance_ =
        std::make_unique<Instance>(setup_.model, setup_.table, setup_.options, mesh_, backend_, plan_.sizes);
    micro_ = micro_batches(config, world.size());
    batch_ =
        random_text(setup_.model, config.train.rows_per_rank, config.data.sequence_length,
                    static_cast<std::uint64_t>(config.run.seed + world.rank()), config.model.image_attention);
  }

  void run() {
    Stream& stream = instance_->stream();
    initialize_weights(stream, setup_.model, setup_.table, instance_->shards(),
                       static_cast<std::uint64_t>(config_.run.seed));
    instance_->weights_loaded();
    print_setup();
    tune_products(*instance_, setup_, batch_, config_.run.products, world_, out_);
    std::vector<double> seconds;
    for (int i = 1; i <= options_.warmup + options_.steps; ++i) {
      (void)wait_timer_.collect(stream);
      const double time = timed_step(i);
      if (i <= options_.warmup) continue;
      seconds.push_back(time);
      waits_.add(wait_timer_.collect(stream), world_);
    }
    print_result(seconds);
    print_waits(seconds);
    if (options_.profile) print_profile(options_.warmup + options_.steps + 1);
  }

 private:
  bool leads() const { return world_.rank() == 0; }

  void step(std::int64_t number) {
    const double targets = static_cast<double>(batch_.target_tokens() * micro_ * world_.size());
    run_step(*instance_, batch_, micro_, targets, config_.optimizer.lr, number);
  }

  /// The slowest rank's time between events around the step.
  double timed_step(int number) {
    world_.barrier("a step of the benchmark");
    const Event from = backend_.record_timed(instance_->stream());
    const auto start = Clock::now();
    step(number);
    queued_.push_back(seconds_since(start));
    const Event to = backend_.record_timed(instance_->stream());
    std::vector<double> totals = instance_->read_totals();  // waits
    world_.all_reduce(totals, HostGroup::Reduce::sum, "loss of a step");
    const double seconds =
        world_.all_reduce(backend_.seconds_between(from, to), HostGroup::Reduce::max, "time of a step");
    if (leads())
      out_ << fmt::format("step {:>3}  loss {:9.5f}  norm {:9.4f}  {:9.2f} ms{}\n", number,
                          totals[kTotalLoss] / totals[kTotalTokens], instance_->read_norm(), seconds * 1e3,
                          number <= options_.warmup ? "  (warm-up)" : "")
           << std::flush;
    return seconds;
  }

  void print_setup() {
    if (!leads()) return;
    out_ << describe(setup_, backend_) << '\n';
    if (mesh_.gather->copies()) out_ << "weights and gradients move by copy engines\n";
  }

  void print_result(const std::vector<double>& seconds) {
    const MemorySizes peaks = instance_->peaks();
    const std::size_t used = free_before_ - std::min(free_before_, backend_.memory().free);
    if (!leads()) return;
    const double median = median_of(seconds);
    StepWork work = work_of(batch_, setup_.model.pad_id);
    const double flops = training_flops(setup_.model, work) * static_cast<double>(micro_);
    const double tokens = static_cast<double>(batch_.tokens() * micro_);
    out_ << fmt::format("median of {} steps: {:.2f} ms, {:.1f} tokens/s a rank", seconds.size(), median * 1e3,
                        tokens / median);
    const auto peak = peak_flops(backend_.description(), config_.run.precision);
    if (peak)
      out_ << fmt::format(", {:.1f} TFLOP/s = {:.2f} % of {:.1f}", flops / median * 1e-12,
                          100 * flops / median / *peak, *peak * 1e-12);
    out_ << fmt::format("\nthe host took {:.2f} ms (median) to queue a step\n", median_of(queued_) * 1e3);
    out_ << fmt::format("memory: planned {}, arenas' peaks {}, taken of the device {}\n",
                        format_bytes(plan_.total()), format_bytes(peaks.total()), format_bytes(used));
  }

  /// Means over the timed steps.
  void print_waits(const std::vector<double>& seconds) {
    std::vector<double> others(static_cast<std::size_t>(world_.size()), 0.0);
    others[static_cast<std::size_t>(world_.rank())] = waits_.for_others();
    world_.all_reduce(others, HostGroup::Reduce::sum, "waits of the ranks");
    if (!leads()) return;
    const double steps = static_cast<double>(seconds.size());
    const double all = std::accumulate(seconds.begin(), seconds.end(), 0.0);
    out_ << fmt::format("exposed communication: {:.3f} ms a step = {:.2f} %",
                        waits_.all_exposed() / steps * 1e3, 100 * waits_.all_exposed() / all);
    for (const auto& [group, exposed] : waits_.exposed())
      out_ << fmt::format(", {} {:.3f}", group, exposed / steps * 1e3);
    out_ << '\n';
    if (world_.size() == 1) return;
    const auto [least, most] = std::ranges::minmax_element(others);
    out_ << fmt::format(
        "waits for slower ranks: {:.3f} ms a step = {:.2f} % on rank {}, {:.3f} = {:.2f} % on rank {}\n",
        *least / steps * 1e3, 100 * *least / all, least - others.begin(), *most / steps * 1e3,
        100 * *most / all, most - others.begin());
  }

  /// Of the rank that waits least: the others wait for it.
  void print_profile(int number) {
    const StepProfile profile = profiled_step(number);
    const std::vector<std::string> tables = world_.gather(profile.table(), 0, "profiles");
    const std::vector<std::string> summaries = world_.gather(profile.summary(), 0, "profiles");
    std::vector<double> waited(static_cast<std::size_t>(world_.size()), 0.0);
    waited[static_cast<std::size_t>(world_.rank())] = profile.waited();
    world_.all_reduce(waited, HostGroup::Reduce::sum, "profiles");
    if (!leads()) return;
    const auto slowest = static_cast<std::size_t>(std::ranges::min_element(waited) - waited.begin());
    out_ << '\n';
    if (world_.size() > 1) {
      for (std::size_t r = 0; r < summaries.size(); ++r)
        out_ << fmt::format("rank {}: {}{}\n", r, summaries[r], r == slowest ? " (its table follows)" : "");
    }
    out_ << tables[slowest];
    if (!options_.rates.empty()) save(profile);
  }

  StepProfile profiled_step(int number) {
    Stream& stream = instance_->stream();
    OpTimer timer;
    world_.barrier("a step of the benchmark");
    stream.set_timer(&timer);
    const Event from = backend_.record_timed(stream);
    step(number);
    const Event to = backend_.record_timed(stream);
    stream.set_timer(nullptr);
    std::vector<OpTimer::Line> operations = timer.collect(stream);
    return {std::move(operations), wait_timer_.collect(stream), backend_.seconds_between(from, to)};
  }

  /// Adds this rank's profile to the file of rates.
  void save(const StepProfile& profile) const {
    RateSet out;
    out.device = device_name(backend_.description());
    out.type = name_of(setup_.options.model.type);
    out.ranks = world_.size();
    out.tokens = batch_.tokens();
    out.source = fmt::format("bench step, {} ranks, {} tokens", out.ranks, out.tokens);
    std::map<std::string, std::pair<double, double>> kinds;  // amount, seconds
    double calls = 0;
    for (const OpTimer::Line& l : profile.operations()) {
      calls += static_cast<double>(l.count);
      const bool over_bus = l.work.kind == "AdamW" && config_.optimizer.offload;
      auto& [amount, seconds] = kinds[over_bus ? kRateOffloaded : l.work.kind];
      amount += l.work.flops > 0 ? l.work.flops : l.work.bytes;
      seconds += l.seconds;
    }
    for (const auto& [kind, sum] : kinds) {
      if (sum.first > 0 && sum.second > 0) out.rates[kind] = sum.first / sum.second;
    }
    // With several ranks the rest of the step holds waits for them too, which a forecast finds by itself.
    if (out.ranks == 1 && profile.between() > 0) out.rates[kRateBetween] = calls / profile.between();
    save_rates(options_.rates, out);
  }

  const RunConfig& config_;
  const StepBenchOptions& options_;
  HostGroup& world_;
  std::ostream& out_;
  Device device_;
  RunSetup setup_;
  MemoryPlan plan_;
  Backend& backend_;
  WaitTimer wait_timer_;  ///< of the mesh's communicators
  Mesh mesh_;
  std::size_t free_before_;
  std::unique_ptr<Instance> instance_;
  std::int64_t micro_ = 1;
  Batch batch_;
  StepWaits waits_;             ///< of the timed steps
  std::vector<double> queued_;  ///< seconds from a step's first call to the return of its last
};

}  // namespace

void bench_step(const RunConfig& config, const StepBenchOptions& options, HostGroup& world,
                const NodePlace& place, std::ostream& out) {
  require(options.steps >= 1, "--steps is {}, expected at least 1", options.steps);
  StepBench(config, options, world, place, out).run();
}

}  // namespace lapidary
