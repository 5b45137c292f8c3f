// The table of steps that a user watches: aligned columns, one line a step, plain text also on a terminal.
#pragma once
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

namespace lapidary {

/// What one line shows.
struct ConsoleRow {
  std::int64_t step = 0;
  double loss = 0, grad_norm = 0, lr = 0;
  double tokens_per_second = 0;
  std::optional<double> mfu;  ///< share of the devices' peak
  double data_wait = 0;       ///< share of the time spent waiting for data
  std::optional<double> seconds_left;
};

class Console {
 public:
  /// `with_mfu`: the devices' peak is known, there is a column for it.
  Console(std::ostream& out, std::int64_t total_steps, bool with_mfu);

  /// The header comes first, again after every 40 rows, and after notes.
  void row(const ConsoleRow& row);
  /// A line between the rows.
  void note(const std::string& text);

 private:
  void header();

  std::ostream& out_;
  std::int64_t total_steps_;
  std::size_t step_width_;
  bool with_mfu_;
  int rows_until_header_ = 0;
};

/// "45s", "4m05s", "1h02m", "3d04h".
std::string format_duration(double seconds);

}  // namespace lapidary
