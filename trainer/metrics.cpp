#include "trainer/metrics.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/build_info.h"
#include "kernels/commit.h"
#include "kernels/number_text.h"
#include "trainer/evaluate.h"
#include "trainer/metrics_history.h"

namespace lapidary {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kLaps = 20;

// Seconds since 1970, to the millisecond.
double now() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(since).count()) / 1000.0;
}

Json event(const char* name, std::int64_t step) {
  return {{"event", name}, {"step", step}, {"time", now()}};
}

// Bytes up to and including the last newline.
std::int64_t complete_bytes(const std::string& path) {
  const File file = File::open_to_read(path);
  char block[4096];
  for (std::int64_t end = file.size(); end > 0;) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - static_cast<std::int64_t>(sizeof block));
    const auto bytes = static_cast<std::size_t>(end - begin);
    file.read_at(block, bytes, begin);
    for (std::size_t i = bytes; i > 0; --i)
      if (block[i - 1] == '\n') return begin + static_cast<std::int64_t>(i);
    end = begin;
  }
  return 0;
}

Json start_line(const MetricsOptions& options, const MetricsHistory& before, std::int64_t lost_steps) {
  Json line = event("start", options.start_step);
  line["restarts"] = before.starts.size();
  line["lost_steps"] = lost_steps;
  line["total_steps"] = options.total_steps;
  line["ranks"] = options.ranks;
  line["device"] = options.device;
  line["version"] = kVersion;
  line["commit"] = kCommit;
  return line;
}

// Null for what is not finite: JSON has no word for it.
std::string dump(const Json& line) {
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

JsonLines::JsonLines(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    file_ = File::create(path);
    return;
  }
  size_ = complete_bytes(path);
  std::error_code error;
  std::filesystem::resize_file(path, static_cast<std::uintmax_t>(size_), error);
  if (error) fail_with_errno("cannot shorten", path, error.value());
  file_ = File::open_to_write(path);
}

void JsonLines::append(std::string line) {
  line += '\n';
  file_.write_at(line.data(), line.size(), size_);
  size_ += static_cast<std::int64_t>(line.size());
}

Metrics::Metrics(const MetricsOptions& options, std::ostream& console)
    : options_(options),
      lines_(options.path),
      console_(console, options.total_steps, options.peak_flops > 0),
      last_step_(options.start_step) {
  const MetricsHistory before = read_metrics(options.path);
  std::int64_t last = options.start_step;
  if (!before.train.empty()) last = std::max(last, before.train.back().step);
  lines_.append(dump(start_line(options, before, last - options.start_step)));
}

double Metrics::seconds_left(std::int64_t step, double seconds) {
  // The first step of a process warms caches and workers up: it counts only as long as there is no other.
  if (laps_.size() == 1 && last_step_ == options_.start_step + laps_.front().steps) laps_.clear();
  laps_.push_back({std::max<std::int64_t>(1, step - last_step_), seconds});
  if (laps_.size() > kLaps) laps_.pop_front();
  Lap sum{0, 0};
  for (const auto& lap : laps_) {
    sum.steps += lap.steps;
    sum.seconds += lap.seconds;
  }
  return sum.seconds / static_cast<double>(sum.steps) *
         static_cast<double>(std::max<std::int64_t>(0, options_.total_steps - step));
}

void Metrics::step(const StepRecord& r) {
  ConsoleRow row{r.step, r.loss, r.grad_norm, r.lr};
  row.seconds_left = seconds_left(r.step, r.seconds);
  last_step_ = r.step;
  step_seconds_ += r.seconds;
  Json line = event("step", r.step);
  line["loss"] = r.loss;
  line["grad_norm"] = r.grad_norm;
  line["lr"] = r.lr;
  line["tokens"] = r.tokens;
  line["target_tokens"] = r.target_tokens;
  line["total_tokens"] = r.total_tokens;
  line["seconds"] = r.seconds;
  line["data_wait_seconds"] = r.data_wait_seconds;
  line["flops"] = r.flops;
  if (r.seconds > 0) {
    row.tokens_per_second = static_cast<double>(r.tokens) / r.seconds;
    row.data_wait = r.data_wait_seconds / r.seconds;
    if (options_.peak_flops > 0) row.mfu = r.flops / r.seconds / options_.peak_flops;
    line["tokens_per_second"] = row.tokens_per_second;
    if (row.mfu) line["mfu"] = *row.mfu;
  }
  if (r.data_hash != 0) line["data_hash"] = fmt::format("{:016x}", r.data_hash);
  lines_.append(dump(line));
  console_.row(row);
}

void Metrics::validation(std::int64_t step, const EvaluationResult& result, double seconds) {
  const auto target_tokens = static_cast<std::int64_t>(result.tokens);
  Json line = event("validation", step);
  line["validation_loss"] = result.loss;
  line["nll"] = result.nll;
  line["accuracy"] = result.accuracy;
  line["entropy"] = result.entropy;
  line["target_tokens"] = target_tokens;
  line["seconds"] = seconds;
  lines_.append(dump(line));
  console_.note(fmt::format("step {}: held-out loss {:.4f} over {} tokens, {}", step, result.loss,
                            with_thousands(target_tokens), format_duration(seconds)));
}

void Metrics::checkpoint(std::int64_t step, const std::string& path, double stall_seconds, double seconds) {
  Json line = event("checkpoint", step);
  line["path"] = path;
  line["stall_seconds"] = stall_seconds;
  line["seconds"] = seconds;
  lines_.append(dump(line));
  console_.note(fmt::format("step {}: saved {}, {:.1f} s, of which training waited {:.2f} s", step, path,
                            seconds, stall_seconds));
}

void Metrics::end(std::int64_t step, const std::string& reason) {
  Json line = event("end", step);
  line["reason"] = reason;
  const double seconds = seconds_since(begun_);
  line["seconds"] = seconds;
  line["step_seconds"] = step_seconds_;
  lines_.append(dump(line));
  console_.note(fmt::format("step {}: {}, {} after the start, {:.1f} % of that in steps", step, reason,
                            format_duration(seconds), 100 * step_seconds_ / seconds));
}

}  // namespace lapidary
