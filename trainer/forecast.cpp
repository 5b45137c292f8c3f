#include "trainer/forecast.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "trainer/flops.h"
#include "trainer/random_text.h"
#include "trainer/step_work.h"

namespace lapidary {

namespace {

/// Rates for one situation, looked up in sets that are sorted by how near theirs is.
class RateBook {
 public:
  RateBook(const std::vector<RateSet>& sets, std::string_view type, int ranks, std::int64_t tokens) {
    for (const RateSet& set : sets)
      if (set.type == type) sets_.push_back(&set);
    const auto distance = [&](const RateSet* set) {
      constexpr double kFar = 1e3;  // more than any ratio of tokens
      const double tokens_apart =
          set->tokens == 0
              ? kFar / 2
              : std::abs(std::log(static_cast<double>(set->tokens) / static_cast<double>(tokens)));
      return ((set->ranks > 1) == (ranks > 1) ? 0 : kFar) + tokens_apart;
    };
    std::ranges::stable_sort(sets_, {}, distance);
  }

  bool empty() const { return sets_.empty(); }

  std::optional<double> find(const std::string& kind) {
    for (const RateSet* set : sets_) {
      const auto found = set->rates.find(kind);
      if (found == set->rates.end()) continue;
      sources_.insert(set->source);
      return found->second;
    }
    return std::nullopt;
  }

  double seconds_of(const OpWork& work, bool offloaded) {
    const bool over_bus = offloaded && work.kind == "AdamW";
    const auto between = find(kRateBetween);
    const double start = between ? 1 / *between : 0;
    const double amount = work.flops > 0 ? work.flops : work.bytes;
    if (amount == 0) return start;
    if (const auto rate = find(over_bus ? kRateOffloaded : work.kind)) return start + amount / *rate;
    guessed_.insert(over_bus ? kRateOffloaded : work.kind);
    return start + amount / mean_rate(work.flops > 0);
  }

  /// The slowest of the others where a collective itself has no rate.
  double seconds_of_transfer(const std::string& collective, double bytes) {
    if (const auto rate = find(collective)) return bytes / *rate;
    guessed_.insert(collective);
    double slowest = std::numeric_limits<double>::infinity();
    for (const char* other : {"all-gather", "reduce-scatter", "all-reduce"})
      slowest = std::min(slowest, find(other).value_or(slowest));
    return bytes / slowest;
  }

  std::vector<std::string> sources() const { return {sources_.begin(), sources_.end()}; }
  std::vector<std::string> guessed() const { return {guessed_.begin(), guessed_.end()}; }

 private:
  /// Of products, or of what memory bounds. Geometric: no single kind decides.
  double mean_rate(bool products) {
    double logs = 0;
    int count = 0;
    for (const RateSet* set : sets_) {
      for (const auto& [kind, rate] : set->rates) {
        const bool product = kind.starts_with("MatMul");
        const bool memory = kind.starts_with("RmsNorm") || kind.starts_with("ResidualNorm") ||
                            kind.starts_with("GeGlu") || kind == "SquaredNorm";
        if (!(products ? product : memory)) continue;
        logs += std::log(rate);
        ++count;
      }
    }
    return count > 0 ? std::exp(logs / count) : std::numeric_limits<double>::infinity();
  }

  std::vector<const RateSet*> sets_;
  std::set<std::string> sources_, guessed_;
};

}  // namespace

std::optional<StepForecast> forecast_step(const RunConfig& config, const RunSetup& setup, Device device,
                                          const std::vector<RateSet>& sets, int ranks_per_node) {
  RateBook book(sets, name_of(setup.options.model.type), setup.mesh.world, setup.options.model.capacity);
  if (book.empty() || setup.mesh.world > ranks_per_node) return std::nullopt;
  OpTimer timer(
      {.operation = [&](const OpWork& work) { return book.seconds_of(work, config.optimizer.offload); },
       .transfer = [&](const std::string& collective,
                       double bytes) { return book.seconds_of_transfer(collective, bytes); }});
  run_dry_step(config, setup, device, timer);
  const Batch batch = random_text(setup.model, config.train.rows_per_rank, config.data.sequence_length, 1,
                                  config.model.image_attention);
  const auto micro = static_cast<double>(micro_batches(config, setup.mesh.world));
  StepForecast out;
  out.seconds = timer.clock();
  out.waiting = timer.waited();
  out.tokens = micro * static_cast<double>(batch.tokens());
  out.flops = micro * training_flops(setup.model, work_of(batch, setup.model.pad_id));
  out.sources = book.sources();
  out.guessed = book.guessed();
  return out;
}

}  // namespace lapidary
