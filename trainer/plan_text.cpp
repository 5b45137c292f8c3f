// The table that `lapidary plan` prints.
#include <algorithm>
#include <functional>
#include <ostream>
#include <set>

#include "kernels/check.h"
#include "kernels/number_text.h"
#include "trainer/console.h"
#include "trainer/flops.h"
#include "trainer/forecast.h"
#include "trainer/plan.h"

namespace lapidary {

namespace {

/// What is planned for one number of ranks.
struct Column {
  RunSetup setup;
  MemoryPlan plan;
  Room room;
  std::optional<StepForecast> forecast;
};

/// The sets of the card: those that were given, else the built-in ones.
std::vector<RateSet> rates_of(const PlanOptions& options) {
  std::vector<RateSet> out;
  std::set<std::string> names;
  for (const auto* sets : {&options.rates, &built_in_rates()}) {
    for (const RateSet& set : *sets) {
      names.insert(set.device);
      if (set.device.find(options.card) != std::string::npos) out.push_back(set);
    }
    if (!out.empty()) break;
  }
  require(!out.empty(), "--card {}: no measured rates; there are some of {}", options.card,
          fmt::join(names, ", "));
  for (const RateSet& set : out)
    require(set.device == out.front().device, "--card {} is the name of several: {} and {}", options.card,
            out.front().device, set.device);
  return out;
}

class PlanTable {
 public:
  PlanTable(const RunConfig& config, const PlanOptions& options, Device device, std::ostream& out)
      : config_(config), options_(options), device_(device), out_(out) {
    if (!options.card.empty()) rates_ = rates_of(options);
    for (const int count : options.ranks) {
      const int node = std::min(count, options.ranks_per_node);
      Column c{make_run_setup(config, count, 0, node, true), {}, {}, {}};
      c.plan = make_plan(c.setup, device);
      if (options.memory > 0) c.room = find_room(config, count, node, device, options.memory);
      if (!rates_.empty())
        c.forecast = forecast_step(config, c.setup, device, rates_, options.ranks_per_node);
      columns_.push_back(std::move(c));
    }
  }

  void print() {
    const RunSetup& setup = columns_.back().setup;
    out_ << fmt::format("{} parameters ({} trained), {} layers, {} tokens a micro-batch, {} on {}\n",
                        setup.table.stored_elements(), setup.table.trainable_elements(),
                        setup.model.layers.size(), setup.options.model.capacity,
                        name_of(setup.options.model.type), name_of(device_));
    print_memory();
    if (options_.memory > 0) print_room();
    const auto logits = static_cast<std::size_t>(setup.options.model.capacity) *
                        static_cast<std::size_t>(setup.model.vocabulary);
    if (!rates_.empty()) print_forecast();
    out_ << fmt::format(
        "The loss head's chunk takes at most {} (loss.scratch); whole logits would take {} in bf16.\n",
        format_bytes(columns_.back().plan.loss_chunk), format_bytes(2 * logits));
    if (!rates_.empty()) print_ground();
  }

 private:
  void line(const char* label, const std::function<std::string(const Column&)>& value) {
    out_ << fmt::format("{:<34}", label);
    for (const Column& c : columns_) out_ << fmt::format(" {:>14}", value(c));
    out_ << '\n';
  }
  void bytes(const char* label, std::size_t MemoryPlan::*member) {
    line(label, [member](const Column& c) { return format_bytes(c.plan.*member); });
  }

  void print_memory() {
    line("bytes a rank, by number of ranks",
         [](const Column& c) { return std::to_string(c.plan.mesh.world); });
    line("replicate x shard / vocabulary", [](const Column& c) {
      const MeshShape& m = c.plan.mesh;
      return fmt::format("{} x {} / {}", m.replicate(), m.shard, m.vocabulary);
    });
    bytes("weights", &MemoryPlan::weights);
    bytes("gradients", &MemoryPlan::gradients);
    bytes("optimizer state", &MemoryPlan::optimizer);
    bytes("gathered weights and gradients", &MemoryPlan::gathered);
    bytes("activations", &MemoryPlan::activations);
    bytes("workspace", &MemoryPlan::workspace);
    line("peak", [](const Column& c) { return format_bytes(c.plan.total()); });
    bytes("optimizer state, host memory", &MemoryPlan::offloaded);
    bytes("communication, host memory", &MemoryPlan::staging);
    bytes("a checkpoint on disk, all ranks", &MemoryPlan::checkpoint);
  }

  void print_room() {
    line("fits", [&](const Column& c) {
      return c.plan.total() <= options_.memory ? std::string("yes")
                                               : "short " + format_bytes(c.plan.total() - options_.memory);
    });
    line(fmt::format("rows of {} that fit", config_.data.sequence_length).c_str(),
         [](const Column& c) { return std::to_string(c.room.rows); });
    line(config_.train.rows_per_rank == 1
             ? "longest row that fits"
             : fmt::format("longest of {} rows", config_.train.rows_per_rank).c_str(),
         [](const Column& c) { return std::to_string(c.room.row_length); });
    if (config_.memory.activations != ActivationPolicy::keep)
      line("memory.richer_layers that fit",
           [](const Column& c) { return std::to_string(c.room.richer_layers); });
  }

  void print_forecast() {
    const auto of_step = [&](const char* label,
                             const std::function<std::string(const StepForecast&)>& value) {
      line(label, [&](const Column& c) { return c.forecast ? value(*c.forecast) : std::string("-"); });
    };
    of_step("forecast: ms a step",
            [](const StepForecast& f) { return fmt::format("{:.1f}", f.seconds * 1e3); });
    of_step("forecast: waiting for ranks, ms",
            [](const StepForecast& f) { return fmt::format("{:.1f}", f.waiting * 1e3); });
    of_step(fmt::format("forecast: {} steps", with_thousands(config_.train.steps)).c_str(),
            [&](const StepForecast& f) {
              return format_duration(f.seconds * static_cast<double>(config_.train.steps));
            });
    of_step("forecast: tokens/s a rank",
            [](const StepForecast& f) { return fmt::format("{:.0f}", f.tokens / f.seconds); });
    const auto peak = peak_flops(rates_.front().device, config_.run.precision);
    if (!peak) return;
    of_step("forecast: MFU", [&](const StepForecast& f) {
      return fmt::format("{:.1f} %", 100 * f.flops / f.seconds / *peak);
    });
  }

  /// What the forecast rests on, and what it leaves out.
  void print_ground() {
    std::set<std::string> sources, guessed;
    bool any = false, all = true;
    for (const Column& c : columns_) {
      (c.forecast ? any : all) = c.forecast.has_value();
      if (!c.forecast) continue;
      sources.insert(c.forecast->sources.begin(), c.forecast->sources.end());
      guessed.insert(c.forecast->guessed.begin(), c.forecast->guessed.end());
    }
    if (any)
      out_ << fmt::format(
          "The forecast adds up rates that were measured on {}: {}. Text only, every row one document, data "
          "and checkpoints never waited for; ranks on one node, its links as fast as between two cards.\n",
          rates_.front().device, fmt::join(sources, "; "));
    if (!guessed.empty())
      out_ << fmt::format("Not measured, counted at the mean of others: {}.\n", fmt::join(guessed, ", "));
    if (!all)
      out_ << fmt::format(
          "No forecast where ranks fill more than a node of {} (links between nodes were not "
          "measured) or where no rates of the run's precision are known.\n",
          options_.ranks_per_node);
  }

  const RunConfig& config_;
  const PlanOptions& options_;
  Device device_;
  std::ostream& out_;
  std::vector<RateSet> rates_;
  std::vector<Column> columns_;
};

}  // namespace

void print_plan(const RunConfig& config, const PlanOptions& options, Device device, std::ostream& out) {
  PlanTable(config, options, device, out).print();
}

}  // namespace lapidary
