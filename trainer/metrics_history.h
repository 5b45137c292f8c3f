// Reads metrics.jsonl back (docs/metrics.md): the run as it stands, with what a resume took back left out.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lapidary {

struct MetricsHistory {
  struct Point {
    std::int64_t step = 0;
    double loss = 0;  ///< NaN where the file says null
  };
  struct Start {
    std::int64_t step = 0;        ///< the last step that was kept; 0 at the beginning
    std::int64_t lost_steps = 0;  ///< logged steps after it, which this start takes back
  };
  std::vector<Point> train, validation;  ///< steps increase
  std::vector<Start> starts;             ///< all of them, in order of time
  std::int64_t damaged_lines = 0;        ///< complete lines that are no record
};

/// Throws Error if the file cannot be read. A last line without its end (the run was killed, or is writing)
/// is not looked at; lines that are no record are counted and skipped.
MetricsHistory read_metrics(const std::string& path);

}  // namespace lapidary
