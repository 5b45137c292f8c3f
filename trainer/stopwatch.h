// How long something took on this machine's clock.
#pragma once
#include <chrono>

namespace lapidary {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace lapidary
