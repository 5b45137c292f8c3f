#include "data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <iterator>
#include <mutex>
#include <span>
#include <thread>
#include <utility>

#include "data/batch_builder.h"
#include "data/row_source.h"
#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/stopwatch.h"

namespace lapidary {

namespace {

/// A step before its documents are read.
struct PlannedStep {
  StepBatches step;       // all but `micro`
  std::vector<Row> mine;  // this rank's rows
  Position after;
  std::int64_t tokens = 0;  // of all ranks' rows
  std::int64_t bytes = 0;   // that this rank's batches will take
};

/// What next() hands out, and what it has to know with it.
struct ReadyStep {
  StepBatches step;
  Position after;
  std::int64_t tokens = 0, bytes = 0, bytes_read = 0, shards_opened = 0;
};

// ids, targets, positions and four interval arrays of int32, and the document before it becomes a batch.
constexpr std::int64_t kBytesPerToken = 7 * 4 + 5;
constexpr std::int64_t kBytesPerStep = 4096;

std::string order_in_words(const LoaderOptions& options) {
  std::string words = fmt::format(
      "rows of {} tokens, look-ahead {}, {}{}{}, weights", options.sequence_length, options.look_ahead,
      options.shuffle ? fmt::format("shuffled with seed {}", options.seed) : "in order",
      options.one_pass ? ", one pass" : "", options.skip_too_long ? ", too long documents skipped" : "");
  for (const DataSource& source : options.sources) words += fmt::format(" {}", source.weight);
  return words;
}

void check_options(const LoaderOptions& options) {
  require(options.ranks >= 1 && options.rank >= 0 && options.rank < options.ranks, "loader: rank {} of {}",
          options.rank, options.ranks);
  require(options.rows_per_step >= 1 && options.rows_per_micro >= 1,
          "loader: {} rows a step in micro-batches of {}, expected at least 1 each", options.rows_per_step,
          options.rows_per_micro);
  require(options.window >= 1, "loader: window is {}, expected at least 1", options.window);
  require(options.read_ahead_bytes >= 0, "loader: read_ahead_bytes is {}, expected at least 0",
          options.read_ahead_bytes);
}

}  // namespace

struct Loader::Impl {
  explicit Impl(LoaderOptions given);

  // Used by the reading thread while it runs.
  bool plan_step(PlannedStep& planned);
  std::vector<PlannedStep> plan_window(std::size_t most_steps);
  void read_window(std::vector<PlannedStep> window);
  bool hand_over(ReadyStep ready);
  void run();

  void start();
  void stop();
  /// Waits for a step, the end or an error; false at the end.
  bool wait_for_step(std::unique_lock<std::mutex>& lock);

  LoaderOptions options;
  RowSource source;
  std::string data, order;  // of every Position
  Position position;        // of the consumer
  LoaderStats stats;
  std::optional<PlannedStep> held_back;  // planned, but over the last window's bound

  std::thread thread;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<ReadyStep> queue;  // from here on guarded by the mutex
  std::int64_t queued_bytes = 0;
  bool stopping = false, ended = false;
  std::exception_ptr error;
};

Loader::Impl::Impl(LoaderOptions given) : options(std::move(given)), source(options) {
  check_options(options);
  Checksum checksum;
  for (const auto& set : source.sets()) {
    checksum.add(set->manifest().checksum.data(), set->manifest().checksum.size());
    set->check_sizes(options.rank, options.ranks);
  }
  position.data = data = checksum.hex();
  position.order = order = order_in_words(options);
}

/// Plans the rows of one step; false where no row is left.
bool Loader::Impl::plan_step(PlannedStep& planned) {
  RowPlan& plan = source.plan();
  StepBatches& step = planned.step;
  step.first_row = plan.row();
  for (Row row; step.rows < options.rows_per_step && plan.next(row); ++step.rows) {
    if (step.rows == 0) step.epoch = plan.epoch();
    for (const Piece& piece : row.pieces) step.samples.push_back(piece.document);
    step.padding += options.sequence_length - row.tokens;
    planned.tokens += row.tokens;
    if (step.rows % options.ranks != options.rank) continue;
    planned.bytes += options.sequence_length * kBytesPerToken;
    for (const Piece& piece : row.pieces) planned.bytes += 1024 * plan.document_feature_kib(piece.document);
    planned.mine.push_back(std::move(row));
  }
  planned.after = {plan.row(), plan.epoch(), plan.epoch_first_row(), data, order};
  // Also a rank without rows keeps lists of every step.
  planned.bytes += static_cast<std::int64_t>(8 * step.samples.size()) + kBytesPerStep;
  return step.rows > 0;
}

/// Steps whose documents are read together: they take half of the read-ahead, the queue of finished ones the
/// other.
std::vector<PlannedStep> Loader::Impl::plan_window(std::size_t most_steps) {
  std::vector<PlannedStep> window;
  std::int64_t bytes = 0;
  while (window.size() < most_steps) {
    PlannedStep planned;
    if (held_back) {
      planned = std::move(*held_back);
      held_back.reset();
    } else if (!plan_step(planned)) {
      break;
    }
    bytes += planned.bytes;
    if (!window.empty() && bytes > options.read_ahead_bytes / 2) {
      held_back = std::move(planned);
      break;
    }
    window.push_back(std::move(planned));
  }
  return window;
}

void Loader::Impl::read_window(std::vector<PlannedStep> window) {
  std::vector<Row> rows;
  for (PlannedStep& planned : window)
    std::move(planned.mine.begin(), planned.mine.end(), std::back_inserter(rows));
  std::vector<std::vector<Document>> documents = source.read(rows);
  std::int64_t bytes_read = 0, shards_opened = 0;
  for (const auto& set : source.sets()) {
    bytes_read += set->bytes_read();
    shards_opened += set->shards_opened();
  }
  const std::int64_t per_micro = options.rows_per_micro, share = options.ranks * per_micro;
  const BatchOptions batch{options.sequence_length, options.window, options.image_attention};
  std::size_t at = 0;
  for (PlannedStep& planned : window) {
    const auto mine = static_cast<std::int64_t>(planned.mine.size());
    ReadyStep ready{std::move(planned.step), planned.after, planned.tokens,
                    planned.bytes,           bytes_read,    shards_opened};
    for (std::int64_t m = 0; m < (options.rows_per_step + share - 1) / share; ++m) {
      const std::int64_t count = std::clamp<std::int64_t>(mine - m * per_micro, 0, per_micro);
      const auto part = [&](auto& all) {
        return std::span(all).subspan(at, static_cast<std::size_t>(count));
      };
      ready.step.micro.push_back(build_batch(part(rows), part(documents), source.layout(), batch));
      for (std::vector<Document>& used : part(documents)) used = {};
      at += static_cast<std::size_t>(count);
    }
    if (!hand_over(std::move(ready))) return;
  }
}

/// Waits until the queue has room; false where the loader stops.
bool Loader::Impl::hand_over(ReadyStep ready) {
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] {
    return stopping || queue.empty() || queued_bytes + ready.bytes <= options.read_ahead_bytes / 2;
  });
  if (stopping) return false;
  queued_bytes += ready.bytes;
  queue.push_back(std::move(ready));
  changed.notify_all();
  return true;
}

void Loader::Impl::run() {
  std::exception_ptr failure;
  try {
    // The first step is wanted at once; windows grow from it, as larger ones need fewer and larger reads.
    for (std::size_t most_steps = 1;; most_steps = std::min<std::size_t>(2 * most_steps, 1 << 20)) {
      std::vector<PlannedStep> window = plan_window(most_steps);
      if (window.empty()) break;
      read_window(std::move(window));
      const std::lock_guard lock(mutex);
      if (stopping) return;
    }
  } catch (...) {
    failure = std::current_exception();
  }
  const std::lock_guard lock(mutex);
  error = failure;
  ended = true;
  changed.notify_all();
}

void Loader::Impl::start() {
  if (!thread.joinable()) thread = std::thread([this] { run(); });
}

void Loader::Impl::stop() {
  {
    const std::lock_guard lock(mutex);
    stopping = true;
    changed.notify_all();
  }
  if (thread.joinable()) thread.join();
  queue.clear();
  queued_bytes = 0;
  stopping = ended = false;
  error = nullptr;
  held_back.reset();
}

bool Loader::Impl::wait_for_step(std::unique_lock<std::mutex>& lock) {
  const auto begin = Clock::now();
  changed.wait(lock, [&] { return !queue.empty() || ended; });
  stats.seconds_waited += seconds_since(begin);
  if (queue.empty() && error) std::rethrow_exception(error);
  return !queue.empty();
}

Loader::Loader(LoaderOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}

Loader::~Loader() {
  impl_->stop();
}

StepBatches Loader::next() {
  impl_->start();
  std::unique_lock lock(impl_->mutex);
  require(impl_->wait_for_step(lock), "loader: asked for a step after the end of the data");
  ReadyStep ready = std::move(impl_->queue.front());
  impl_->queue.pop_front();
  impl_->queued_bytes -= ready.bytes;
  impl_->changed.notify_all();
  impl_->position = std::move(ready.after);
  impl_->stats.bytes_read = ready.bytes_read;
  impl_->stats.shards_opened = ready.shards_opened;
  impl_->stats.rows += ready.step.rows;
  impl_->stats.tokens += ready.tokens;
  impl_->stats.padding += ready.step.padding;
  return std::move(ready.step);
}

bool Loader::done() {
  if (!impl_->options.one_pass) return false;
  impl_->start();
  std::unique_lock lock(impl_->mutex);
  return !impl_->wait_for_step(lock);
}

Position Loader::position() const {
  return impl_->position;
}

void Loader::seek(const Position& position) {
  const Position& here = impl_->position;
  constexpr const char* kNewRun =
      "a new run can begin from the weights (model.weights, another run.directory)";
  require(
      position.data == here.data,
      "cannot continue from row {}: the data sets have changed (then {}, now {}); the same data is needed, "
      "or {}",
      position.row, position.data, here.data, kNewRun);
  require(position.order == here.order,
          "cannot continue from row {}: it was counted in another order of the data (then \"{}\", now "
          "\"{}\"); the same settings are needed, or {}",
          position.row, position.order, here.order, kNewRun);
  impl_->stop();
  impl_->source.plan().seek(position.row, position.epoch, position.epoch_first_row);
  impl_->position = position;
}

LoaderStats Loader::stats() const {
  return impl_->stats;
}

const TokenLayout& Loader::layout() const {
  return impl_->source.layout();
}

std::int64_t Loader::documents() const {
  std::int64_t sum = 0;
  for (const auto& set : impl_->source.sets()) sum += set->documents();
  return sum;
}

std::int64_t Loader::tokens() const {
  std::int64_t sum = 0;
  for (const auto& set : impl_->source.sets()) sum += set->manifest().counts.tokens;
  return sum;
}

std::int64_t Loader::skipped_documents() const {
  return impl_->source.plan().skipped_documents();
}

}  // namespace lapidary
