#include "launch/bench.h"

#include <algorithm>
#include <cmath>

#include "kernels/stopwatch.h"

namespace lapidary {

namespace {

/// Milliseconds of one run, over `repeats` of them.
double time_once(Stream& stream, const BenchCase& what, int repeats) {
  Backend& backend = stream.backend();
  const Event start = backend.record_timed(stream);
  for (int i = 0; i < repeats; ++i) what.run();
  const Event end = backend.record_timed(stream);
  backend.synchronize(end);
  return backend.seconds_between(start, end) * 1000 / repeats;
}

}  // namespace

std::vector<BenchTime> time_in_turn(Stream& stream, const std::vector<BenchCase>& cases,
                                    const BenchOptions& options) {
  std::vector<double> once(cases.size(), 0.0);
  std::vector<std::vector<double>> times(cases.size());
  for (const BenchCase& one : cases) one.run();  // what happens only once, such as choosing algorithms
  double warm = 0;
  do {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const double ms = time_once(stream, cases[i], 1);
      once[i] = std::max(options.agree ? options.agree(ms) : ms, 1e-6);
      warm += once[i];
    }
  } while (warm < options.warm_up_ms);
  for (int round = 0; round < options.rounds; ++round) {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      if (options.align) options.align();
      const int repeats = static_cast<int>(std::ceil(std::max(1.0, options.least_ms / once[i])));
      times[i].push_back(time_once(stream, cases[i], repeats));
    }
  }
  std::vector<BenchTime> out;
  out.reserve(times.size());
  for (const std::vector<double>& t : times)
    out.push_back(
        {median_of(t), *std::min_element(t.begin(), t.end()), *std::max_element(t.begin(), t.end())});
  return out;
}

}  // namespace lapidary
