// A step taken apart: its operations, its waits for communication, and what lies between.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "kernels/op_timer.h"
#include "parallel/timed_communicator.h"

namespace lapidary {

/// One rank's step, from events around every operation and every wait.
class StepProfile {
 public:
  StepProfile(std::vector<OpTimer::Line> operations, const std::vector<WaitTimer::Wait>& waits,
              double seconds);

  const std::vector<OpTimer::Line>& operations() const { return operations_; }
  double waited() const { return waited_; }    ///< seconds
  double between() const { return between_; }  ///< seconds of neither: copies, launches
  std::string table() const;
  std::string summary() const;  ///< one line

 private:
  struct Waits {
    std::int64_t count = 0;
    double seconds = 0;
  };
  std::vector<OpTimer::Line> operations_;
  std::map<std::string, Waits> waits_;  // by group
  double seconds_, waited_ = 0, between_ = 0;
};

}  // namespace lapidary
