// What a run reports while it goes: a console line and a line of metrics.jsonl for every logged step, and
// lines for starts, validations, checkpoints and the end. One rank has a Metrics. Format and rules:
// docs/metrics.md.
#pragma once
#include <cstdint>
#include <deque>
#include <ostream>
#include <string>

#include "kernels/file.h"
#include "kernels/stopwatch.h"
#include "trainer/console.h"

namespace lapidary {

struct EvaluationResult;

/// Appends to a file of one JSON object a line. Every line is handed to the operating system whole and at
/// once; what a killed run left without its end is cut off when the file is opened.
class JsonLines {
 public:
  explicit JsonLines(const std::string& path);
  void append(std::string line);  ///< without the newline

 private:
  File file_;
  std::int64_t size_ = 0;
};

struct MetricsOptions {
  std::string path;  ///< metrics.jsonl; appended to
  std::int64_t total_steps = 0;
  std::int64_t start_step = 0;  ///< last step that is kept: a resume's checkpoint, 0 for a new run
  double peak_flops = 0;        ///< of all ranks' devices together, a second; 0: unknown, no MFU
  int ranks = 1;
  std::string device;  ///< for the start line
};

/// One logged step. Counts and times are those since the last logged step, over all ranks.
struct StepRecord {
  std::int64_t step = 0;
  double loss = 0, grad_norm = 0, lr = 0;  ///< of this step
  std::int64_t tokens = 0;                 ///< without padding
  std::int64_t target_tokens = 0;
  std::int64_t total_tokens = 0;  ///< since the run began, resumes included
  double seconds = 0;             ///< wall time
  double data_wait_seconds = 0;   ///< of it, waiting for data on the slowest rank
  double flops = 0;               ///< of the model (flops.h)
  std::uint64_t data_hash = 0;    ///< of the ids of this step's documents; 0: not computed
};

class Metrics {
 public:
  /// Writes the start line. `console` must outlive this.
  Metrics(const MetricsOptions& options, std::ostream& console);

  void step(const StepRecord& record);
  void validation(std::int64_t step, const EvaluationResult& result, double seconds);
  /// Published, `seconds` after it was begun; training stood still for `stall_seconds` of them.
  void checkpoint(std::int64_t step, const std::string& path, double stall_seconds, double seconds);
  /// `reason`: "finished", or why the run ends before total_steps. Says how long the process trained, and how
  /// much of that went into steps.
  void end(std::int64_t step, const std::string& reason);
  /// A line for the user alone.
  void note(const std::string& text) { console_.note(text); }

 private:
  double seconds_left(std::int64_t step, double seconds);

  struct Lap {
    std::int64_t steps;
    double seconds;
  };
  MetricsOptions options_;
  JsonLines lines_;
  Console console_;
  std::int64_t last_step_;
  std::deque<Lap> laps_;  ///< the latest, for the time left
  const Clock::time_point begun_ = Clock::now();
  double step_seconds_ = 0;  ///< of all logged steps
};

}  // namespace lapidary
