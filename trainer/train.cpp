#include "trainer/train.h"

#include <unistd.h>

#include <cmath>
#include <csignal>
#include <limits>
#include <ostream>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"
#include "kernels/number_text.h"
#include "kernels/stopwatch.h"
#include "parallel/watchdog.h"
#include "trainer/config_reader.h"
#include "trainer/config_text.h"
#include "trainer/flops.h"
#include "trainer/loss_curve.h"
#include "trainer/metrics.h"
#include "trainer/product_tuning.h"
#include "trainer/run_lock.h"
#include "trainer/schedule.h"
#include "trainer/stop_signal.h"
#include "trainer/training_run.h"

namespace lapidary {

namespace {

/// What happened since the last logged step.
struct Interval {
  Clock::time_point start = Clock::now();
  StepWork work;             ///< of this rank
  std::int64_t targets = 0;  ///< of all ranks
  double waited_before = 0;  ///< Loader's seconds_waited at the start
};

class Trainer {
 public:
  Trainer(TrainingRun& run, Watchdog& watch, std::ostream& console)
      : run_(run), watch_(watch), console_(console), config_yaml_(config_to_yaml(run.config())) {}

  ExitCode train() {
    start();
    StopRequest request = StopRequest::none;
    while (progress_.step < run_.config().train.steps && request != StopRequest::stop) {
      watch_.at(progress_.step + 1, "waits for data");
      const StepBatches data = run_.data().next();
      const double loss = train_step(data);
      if (progress_.step % run_.config().log.every == 0) log(loss, data);
      if (due(run_.config().validation.every)) validate();
      request = agree_on_stop();
      if (due(run_.config().checkpoint.every) || request != StopRequest::none) save();
      report(run_.checkpoints().take_save());
    }
    return finish(request);
  }

 private:
  bool leads() const { return run_.world().rank() == 0; }
  bool due(std::int64_t every) const { return every > 0 && progress_.step % every == 0; }

  void start() {
    const RunConfig& config = run_.config();
    if (leads()) print_start();  // before what takes long: weights, or the search of algorithms
    begin_or_resume();
    save_configuration();
    tune_products(run_.instance(), run_.setup(),
                  synthetic_batch(run_.setup().model, run_.setup().options.model.capacity,
                                  config.data.sequence_length, config.model.image_attention),
                  config.run.products, run_.world(), console_);
    run_.prepare_saving(config_yaml_);
    if (leads()) {
      MetricsOptions options;
      options.path = run_.directory() + "/metrics.jsonl";
      options.total_steps = config.train.steps;
      options.start_step = progress_.step;
      options.ranks = run_.world().size();
      options.device = run_.backend().description();
      options.peak_flops = peak_flops(options.device, config.run.precision).value_or(0) * run_.world().size();
      metrics_.emplace(options, console_);
    }
    if (progress_.step == 0 && config.validation.every > 0) validate();
    interval_ = {};
    interval_.waited_before = run_.data().stats().seconds_waited;
  }

  /// Weights and position of a new or a resumed run.
  void begin_or_resume() {
    const RunConfig& config = run_.config();
    const auto resumed = run_.checkpoints().resume(config.checkpoint.resume, console_);
    if (resumed) {
      progress_ = resumed->progress;
      require(progress_.seed == config.run.seed,
              "run.seed is {}, but the checkpoint was written with seed {}: its data order would change; set "
              "run.seed to {}, or begin a new run from its weights (model.weights, another run.directory)",
              config.run.seed, progress_.seed, progress_.seed);
      run_.data().seek(progress_.data);
      if (resumed->own) saved_step_ = save_begun_ = progress_.step;
      if (leads()) print_changes(resumed->config);
    } else {
      run_.start_weights(console_);
      progress_.seed = config.run.seed;
    }
    start_step_ = progress_.step;
  }

  /// What is not as it was when the checkpoint was written: nothing that a run goes on with is silent.
  void print_changes(const std::string& saved_config) {
    try {
      const RunConfig before = parse_saved_config(saved_config, "the checkpoint's configuration");
      const auto keys = differing_keys(run_.config(), before);
      if (!keys.empty()) console_ << fmt::format("Changed since then: {}\n", fmt::join(keys, "; "));
    } catch (const Error& e) {  // keys of another version
      console_ << fmt::format("What changed since then is not known: {}\n", e.what());
    }
    if (progress_.step >= run_.config().train.steps)
      console_ << fmt::format("Nothing is left to train: step {} is reached, train.steps is {}\n",
                              progress_.step, run_.config().train.steps);
  }

  /// Not before the run is known to go on: a start that is refused leaves what the run's folder says.
  void save_configuration() {
    run_.world().all_or_error("saving the configuration", [&] {
      if (leads()) publish_text_file(run_.directory() + "/config.yaml", config_yaml_);
    });
  }

  void print_start() {
    const MemoryPlan& plan = run_.plan();
    console_ << describe(run_.setup(), run_.backend()) << '\n';
    console_ << fmt::format(
        "Memory a rank: {} (weights {}, gradients {}, optimizer {}, gathered {}, activations {}, workspace "
        "{})\n",
        format_bytes(plan.total()), format_bytes(plan.weights), format_bytes(plan.gradients),
        format_bytes(plan.optimizer), format_bytes(plan.gathered), format_bytes(plan.activations),
        format_bytes(plan.workspace));
    std::vector<std::string> folders;
    for (const ConfiguredSource& source : run_.config().data.train) folders.push_back(source.path.text);
    console_ << fmt::format("Data: {} documents, {} tokens in {}\n", run_.data().documents(),
                            run_.data().tokens(), fmt::join(folders, ", "));
    print_idle_ranks();
    console_.flush();
  }

  /// Ranks compute micro-batches of equal size: rows that are missing are padding, and nobody else's gain.
  void print_idle_ranks() {
    const RunConfig::Train& train = run_.config().train;
    const std::int64_t at_once = run_.world().size() * train.rows_per_rank;
    const std::int64_t computed = (train.rows_per_step + at_once - 1) / at_once * at_once;
    if (computed == train.rows_per_step) return;
    console_ << fmt::format(
        "A step takes the time of {} rows for its {} (train.rows_per_step): a multiple of {} would waste "
        "none ({}, train.rows_per_rank {})\n",
        computed, train.rows_per_step, at_once, counted(run_.world().size(), "rank"), train.rows_per_rank);
  }

  /// Forward, backward and update for one global batch; returns its mean loss.
  double train_step(const StepBatches& data) {
    Instance& instance = run_.instance();
    HostGroup& world = run_.world();
    const std::int64_t step = progress_.step + 1;
    inject_fault(step);
    watch_.at(step, "counts its tokens");
    StepWork work;
    std::vector<std::int64_t> counts = {0, 0};  // target tokens, tokens
    for (const Batch& batch : data.micro) {
      work += work_of(batch, run_.setup().model.pad_id);
      counts[0] += batch.target_tokens();
    }
    counts[1] = work.tokens;
    interval_.work += work;
    world.all_reduce(counts, HostGroup::Reduce::sum, "tokens of a step");
    const std::int64_t targets = counts[0];
    interval_.targets += targets;
    require(targets > 0,
            "step {}: no token of the global batch is to be predicted (rows {} to {}): check the data with "
            "`lapidary data show`",
            step, data.first_row, data.first_row + data.rows - 1);

    instance.begin_step();
    for (std::size_t i = 0; i < data.micro.size(); ++i) {
      watch_.at(step, "forward and backward");
      instance.run_training(data.micro[i], 1.0 / static_cast<double>(targets), i + 1 == data.micro.size());
    }
    const RunConfig& config = run_.config();
    lr_ = learning_rate(config.schedule, config.optimizer.lr, step, config.train.steps);
    watch_.at(step, "update");
    instance.finish_step(lr_, step);
    watch_.at(step, "waits for the end of the step");
    const double loss = read_step(step, static_cast<double>(targets));
    progress_.step = step;
    progress_.tokens += counts[1];
    progress_.data = run_.data().position();
    watch_.calm(step, "between steps");
    return loss;
  }

  /// Loss and norm of the step on the host. Where one is not finite the update left the weights as they were;
  /// the run ends.
  double read_step(std::int64_t step, double targets) {
    std::vector<double> totals = run_.instance().read_totals();
    norm_ = run_.instance().read_norm();
    const bool broken_here = !std::isfinite(totals[kTotalLoss]);
    HostGroup& world = run_.world();
    const std::int64_t first_broken = world.all_reduce(
        std::int64_t{broken_here ? world.rank() : world.size()}, HostGroup::Reduce::min, "state of a step");
    world.all_reduce(totals, HostGroup::Reduce::sum, "loss of a step");
    if (first_broken < world.size()) {
      throw Error(
          fmt::format("step {}: the loss is not finite (first seen on rank {}{}); nothing was updated "
                      "or saved, the last checkpoint is that of step {}",
                      step, first_broken, broken_weights(), last_saved()),
          ExitCode::numeric);
    }
    if (!std::isfinite(norm_)) {
      throw Error(
          fmt::format(
              "step {}: the gradient norm is not finite (loss {}); nothing was updated or saved, the last "
              "checkpoint is that of step {}",
              step, totals[kTotalLoss] / targets, last_saved()),
          ExitCode::numeric);
    }
    return totals[kTotalLoss] / targets;
  }

  /// Names the first rank that holds weights that are not finite, if one does: they reach every rank's loss.
  std::string broken_weights() {
    HostGroup& world = run_.world();
    const std::int64_t mine = run_.instance().weights_finite() ? world.size() : world.rank();
    const std::int64_t first = world.all_reduce(mine, HostGroup::Reduce::min, "state of the weights");
    return first < world.size() ? fmt::format("; weights on rank {} are not finite", first) : "";
  }

  void log(double loss, const StepBatches& data) {
    HostGroup& world = run_.world();
    StepWork& w = interval_.work;
    std::vector<std::int64_t> counts = {w.tokens, w.full_pairs, w.sliding_pairs, w.image_tokens,
                                        w.audio_tokens};
    world.all_reduce(counts, HostGroup::Reduce::sum, "counts of a step");
    w = {counts[0], counts[1], counts[2], counts[3], counts[4]};
    const double waited = run_.data().stats().seconds_waited;
    StepRecord record;
    record.data_wait_seconds =
        world.all_reduce(waited - interval_.waited_before, HostGroup::Reduce::max, "data wait");
    if (leads()) {
      record.step = progress_.step;
      record.loss = loss;
      record.grad_norm = norm_;
      record.lr = lr_;
      record.tokens = w.tokens;
      record.target_tokens = interval_.targets;
      record.total_tokens = progress_.tokens;
      record.seconds = seconds_since(interval_.start);
      record.flops = training_flops(run_.setup().model, w);
      const std::string hash = checksum_of({reinterpret_cast<const char*>(data.samples.data()),
                                            data.samples.size() * sizeof(data.samples[0])});
      record.data_hash = std::stoull(hash.substr(0, 16), nullptr, 16);
      metrics_->step(record);
    }
    interval_ = {};
    interval_.waited_before = waited;
  }

  void validate() {
    if (!run_.has_validation()) return;
    const auto start = Clock::now();
    const EvaluationResult result = run_.validate();
    validation_loss_ = result.loss;
    validated_step_ = progress_.step;
    if (leads()) metrics_->validation(progress_.step, result, seconds_since(start));
    interval_.start += Clock::now() - start;  // not the training's time
  }

  /// Begins a save; the one before has to end first.
  void save() {
    if (save_begun_ == progress_.step) return;
    const auto start = Clock::now();
    report(run_.checkpoints().wait_for_save());
    const bool validated = validated_step_ == progress_.step;
    run_.checkpoints().start_save(progress_, validated ? validation_loss_ : std::nullopt);
    save_begun_ = progress_.step;
    interval_.start += Clock::now() - start;  // not the training's time
  }

  /// A disk that is full or slow costs a checkpoint, not the run; a rank that is gone ends it.
  void report(const std::optional<SaveOutcome>& save) {
    if (!save) return;
    if (!save->path.empty()) saved_step_ = save->step;
    if (run_.checkpoints().ranks_lost()) throw Error(save->error, ExitCode::peer_lost);
    if (!leads()) return;
    if (save->path.empty())
      metrics_->note(fmt::format("step {}: NOT SAVED, training goes on: {}", save->step, save->error));
    else
      metrics_->checkpoint(save->step, save->path, save->stall_seconds, save->seconds);
    for (const std::string& problem : save->problems) metrics_->note(problem);
  }

  /// Step of the newest checkpoint, the one under way included.
  std::int64_t last_saved() {
    report(run_.checkpoints().wait_for_save());
    return saved_step_;
  }

  StopRequest agree_on_stop() {
    auto mine = static_cast<std::int64_t>(signals_.take());
    const double limit = run_.config().run.stop_after;
    if (limit > 0 && seconds_since(begun_) >= limit) mine = static_cast<std::int64_t>(StopRequest::stop);
    return static_cast<StopRequest>(run_.world().all_reduce(mine, HostGroup::Reduce::max, "signals"));
  }

  ExitCode finish(StopRequest request) {
    const bool stopped = request == StopRequest::stop && progress_.step < run_.config().train.steps;
    if (!stopped && run_.config().validation.every > 0 && !due(run_.config().validation.every)) validate();
    save();
    report(run_.checkpoints().wait_for_save());
    if (leads()) {
      metrics_->end(progress_.step, stopped ? "stopped by a signal or run.stop_after" : "finished");
      if (progress_.step > start_step_)
        write_loss_curve(run_.directory() + "/metrics.jsonl", run_.directory() + "/loss.svg");
    }
    if (saved_step_ != progress_.step) return ExitCode::peer_lost;  // said above: a batch script tries again
    return stopped ? ExitCode::interrupted : ExitCode::ok;
  }

  /// What tests ask for (fault.*): refused by the configuration unless the environment allows it.
  void inject_fault(std::int64_t step) {
    const RunConfig::Fault& fault = run_.config().fault;
    if (fault.kind == FaultKind::none || fault.step != step || fault.rank != run_.world().rank()) return;
    switch (fault.kind) {
      case FaultKind::throw_error:
        fail("fault.kind: this rank was told to fail at step {}", step);
      case FaultKind::kill:
        kill(getpid(), SIGKILL);
        break;
      case FaultKind::hang:
        for (;;) pause();
      case FaultKind::nan:
        run(run_.instance().stream(), Fill{.x = run_.instance().shards().back()->weight.row_range(0, 1),
                                           .value = std::numeric_limits<double>::quiet_NaN()});
        break;
      case FaultKind::none:
        break;
    }
  }

  TrainingRun& run_;
  Watchdog& watch_;
  std::ostream& console_;
  std::string config_yaml_;
  StopSignals signals_;
  const Clock::time_point begun_ = Clock::now();
  std::optional<Metrics> metrics_;  ///< rank 0 only
  RunProgress progress_;
  Interval interval_;
  double lr_ = 0, norm_ = 0;
  std::optional<double> validation_loss_;
  std::int64_t validated_step_ = -1;
  std::int64_t start_step_ = 0;
  std::int64_t save_begun_ = -1, saved_step_ = -1;
};

}  // namespace

int train(const RunConfig& config, HostGroup& world, const NodePlace& place, std::ostream& console) {
  require(!config.data.train.empty(), "data.train: no data set is given");
  std::optional<RunLock> lock;
  world.all_or_error("preparing the run's folder", [&] {
    if (world.rank() != 0) return;
    const std::string folder = config.run.directory.resolve();
    create_directories(folder);
    lock.emplace(folder);
  });
  TrainingRun run(config, world, place, true);
  Watchdog watch(
      world.size() > 1 ? MPI_COMM_WORLD : MPI_COMM_NULL,
      std::chrono::duration_cast<Watchdog::Duration>(std::chrono::duration<double>(config.run.patience)));
  return static_cast<int>(Trainer(run, watch, console).train());
}

int evaluate_run(const RunConfig& config, const std::string& checkpoint, HostGroup& world,
                 const NodePlace& place, std::ostream& console) {
  require(!config.data.validation.empty(), "data.validation: no data set is given");
  TrainingRun run(config, world, place, false);
  const std::int64_t step =
      run.checkpoints().load_weights_only(checkpoint.empty() ? run.directory() : checkpoint, console);
  const EvaluationResult r = run.validate();
  if (world.rank() == 0) {
    console << fmt::format(
        "step {}: loss {:.6f}, negative log-likelihood {:.6f}, perplexity {:.4f}, accuracy {:.2f} %, "
        "entropy {:.6f}, {} tokens\n",
        step, r.loss, r.nll, std::exp(r.nll), 100 * r.accuracy, r.entropy,
        static_cast<std::int64_t>(r.tokens));
  }
  return 0;
}

}  // namespace lapidary
