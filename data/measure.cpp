#include "data/measure.h"

#include <sys/resource.h>

#include "kernels/check.h"
#include "kernels/stopwatch.h"

namespace lapidary {

namespace {

rusage usage_of_process() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage;
}

double cpu_seconds(const rusage& usage) {
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

LoaderSpeed measure_loader(const LoaderOptions& options, double seconds) {
  const Clock::time_point begin = Clock::now();
  Loader loader(options);
  LoaderSpeed speed;
  speed.open_seconds = seconds_since(begin);
  const double cpu_before = cpu_seconds(usage_of_process());
  for (; !loader.done() && speed.seconds < seconds; ++speed.steps) {
    const StepBatches step = loader.next();
    for (const Batch& batch : step.micro) {
      speed.tokens += batch.tokens();
      speed.patches += batch.patches.count;
      speed.frames += batch.frames.count;
    }
    if (speed.steps == 0) speed.first_step_seconds = seconds_since(begin);
    speed.seconds = seconds_since(begin) - speed.open_seconds;
  }
  require(speed.steps > 0 && speed.seconds > 0, "nothing was read");
  speed.stats = loader.stats();
  speed.documents = loader.documents();
  speed.documents_tokens = loader.tokens();
  const rusage usage = usage_of_process();
  speed.cpu_seconds = cpu_seconds(usage) - cpu_before;
  speed.resident_bytes = std::int64_t{1024} * usage.ru_maxrss;
  return speed;
}

}  // namespace lapidary
