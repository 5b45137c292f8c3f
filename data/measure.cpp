#include <sys/resource.h>

#include <chrono>
#include <ostream>

#include "data/loader.h"
#include "data/show.h"
#include "kernels/check.h"

namespace lapidary {

void measure_loader(const LoaderOptions& options, double seconds, std::ostream& out) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  const Clock::time_point begin = Clock::now();
  Loader loader(options);
  const double opened = since(begin);
  std::int64_t tokens = 0, patches = 0, frames = 0, steps = 0;
  double first = 0, elapsed = 0;
  for (; !loader.done() && elapsed < seconds; ++steps, elapsed = since(begin) - opened) {
    for (const Batch& batch : loader.next().micro) {
      tokens += batch.tokens();
      patches += batch.patches.count;
      frames += batch.frames.count;
    }
    if (steps == 0) first = since(begin);
  }
  require(steps > 0 && elapsed > 0, "nothing was read");
  const LoaderStats stats = loader.stats();
  const auto each_second = [&](std::int64_t count) { return static_cast<double>(count) / elapsed; };
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  out << fmt::format("opened in {:.2f} s, first step after {:.2f} s; {} documents, {} tokens\n", opened,
                     first, loader.documents(), loader.tokens());
  out << fmt::format("{} steps in {:.2f} s on rank {} of {}\n", steps, elapsed, options.rank, options.ranks);
  out << fmt::format("{:.0f} tokens/s, {:.0f} image and {:.0f} sound soft tokens/s among them\n",
                     each_second(tokens), each_second(patches), each_second(frames));
  out << fmt::format("{:.1f} MB/s from {} opened shards, rows {:.2f} % filled\n",
                     each_second(stats.bytes_read) / 1e6, stats.shards_opened,
                     100 * stats.packing_efficiency());
  out << fmt::format("largest resident memory {:.0f} MB\n",
                     static_cast<double>(usage.ru_maxrss) * 1024 / 1e6);
}

}  // namespace lapidary
