// How fast a rank gets its batches: what `lapidary bench data` reports.
#pragma once
#include <cstdint>

#include "data/loader.h"

namespace lapidary {

struct LoaderSpeed {
  double open_seconds = 0;        ///< until the data sets are open
  double first_step_seconds = 0;  ///< from the beginning until the first step is there
  double seconds = 0;             ///< of reading, the first step included
  double cpu_seconds = 0;         ///< that the process computed meanwhile, in all threads
  std::int64_t steps = 0;
  std::int64_t tokens = 0, patches = 0,
               frames = 0;  ///< that this rank got; padding and soft tokens are tokens
  LoaderStats stats;
  std::int64_t documents = 0, documents_tokens = 0;  ///< in the data sets
  std::int64_t resident_bytes = 0;                   ///< the most that the process ever had in memory

  double each_second(std::int64_t count) const { return static_cast<double>(count) / seconds; }
};

/// Reads steps and drops them for about `seconds`, or to the end of one pass. Error where nothing is read.
LoaderSpeed measure_loader(const LoaderOptions& options, double seconds);

}  // namespace lapidary
