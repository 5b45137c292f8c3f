#include "trainer/step_profile.h"

#include "kernels/check.h"

namespace lapidary {

StepProfile::StepProfile(std::vector<OpTimer::Line> operations, const std::vector<WaitTimer::Wait>& waits,
                         double seconds)
    : operations_(std::move(operations)), seconds_(seconds), between_(seconds) {
  for (const WaitTimer::Wait& wait : waits) {
    Waits& of_group = waits_[wait.group];
    ++of_group.count;
    of_group.seconds += wait.seconds;
    waited_ += wait.seconds;
  }
  for (const OpTimer::Line& line : operations_) between_ -= line.seconds;
  between_ -= waited_;
}

std::string StepProfile::table() const {
  std::string out =
      fmt::format("{:<52}{:>7}{:>11}{:>8}{:>10}{:>9}\n", "operation (one step, events around each)", "calls",
                  "ms", "share", "TFLOP/s", "GB/s");
  const auto rate = [](double amount, double s, double unit) {
    return amount > 0 ? fmt::format("{:.1f}", amount / s * unit) : std::string();
  };
  const auto line = [&](const OpWork& work, std::int64_t calls, double s) {
    out += fmt::format("{:<52}{:>7}{:>11.3f}{:>7.2f}%{:>10}{:>9}\n", work.label, calls, s * 1e3,
                       100 * s / seconds_, rate(work.flops, s, 1e-12), rate(work.bytes, s, 1e-9));
  };
  for (const OpTimer::Line& l : operations_) line(l.work, l.count, l.seconds);
  for (const auto& [group, waits] : waits_)
    line({.label = "waits for communication: " + group}, waits.count, waits.seconds);
  line({.label = "between operations: copies, launches"}, 0, between_);
  line({.label = "whole step"}, 1, seconds_);
  return out;
}

std::string StepProfile::summary() const {
  return fmt::format("{:.2f} ms: operations {:.2f}, waits for communication {:.2f}, between them {:.2f}",
                     seconds_ * 1e3, (seconds_ - waited_ - between_) * 1e3, waited_ * 1e3, between_ * 1e3);
}

}  // namespace lapidary
