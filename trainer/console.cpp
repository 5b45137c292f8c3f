#include "trainer/console.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/number_text.h"

namespace lapidary {
namespace {

constexpr int kRowsPerHeader = 40;

// Eight characters, four decimals as long as they fit; inf and nan as they are.
std::string four_decimals(double value) {
  const bool fits = std::abs(value) < 1000 || !std::isfinite(value);
  return fits ? fmt::format("{:8.4f}", value) : fmt::format("{:8.1e}", value);
}

}  // namespace

Console::Console(std::ostream& out, std::int64_t total_steps, bool with_mfu)
    : out_(out),
      total_steps_(total_steps),
      step_width_(std::max<std::size_t>(4, 2 * std::to_string(total_steps).size() + 1)),
      with_mfu_(with_mfu) {}

void Console::header() {
  out_ << fmt::format("{:>{}}  {:>8}  {:>8}  {:>8}  {:>11}  {}{:>6}  {:>6}\n", "step", step_width_, "loss",
                      "norm", "lr", "tokens/s", with_mfu_ ? "   MFU  " : "", "data", "left");
}

void Console::row(const ConsoleRow& row) {
  if (rows_until_header_ == 0) {
    header();
    rows_until_header_ = kRowsPerHeader;
  }
  --rows_until_header_;
  std::string mfu;
  if (with_mfu_) mfu = row.mfu ? fmt::format("{:5.1f}%  ", *row.mfu * 100) : fmt::format("{:>6}  ", "-");
  const auto rate = with_thousands(std::llround(row.tokens_per_second));
  const auto left = row.seconds_left ? format_duration(*row.seconds_left) : "-";
  out_ << fmt::format("{:>{}}  {}  {}  {:8.2e}  {:>11}  {}{:5.1f}%  {:>6}\n",
                      fmt::format("{}/{}", row.step, total_steps_), step_width_, four_decimals(row.loss),
                      four_decimals(row.grad_norm), row.lr, rate, mfu, row.data_wait * 100, left)
       << std::flush;
}

void Console::note(const std::string& text) {
  out_ << text << '\n' << std::flush;
  rows_until_header_ = 0;
}

std::string format_duration(double seconds) {
  const std::int64_t s = std::llround(std::clamp(seconds, 0.0, 1e10));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
}

}  // namespace lapidary
