// What waiting for communication costs a step: what the network takes, apart from what a slower rank takes.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "parallel/host_group.h"
#include "parallel/timed_communicator.h"

namespace lapidary {

/// Sums over the waits of steps, seconds. All ranks wait for the same collectives in the same order, and
/// whoever comes to one last waits for nothing but the transfer: the shortest of the ranks' waits is exposed
/// communication, and what a rank waits beyond it is for a slower rank's work. Where groups do not wait for
/// each other (replicas), the shortest of all ranks counts.
class StepWaits {
 public:
  /// One step's waits of this rank. Collective over the world.
  void add(const std::vector<WaitTimer::Wait>& waits, HostGroup& world);

  const std::map<std::string, double>& exposed() const { return exposed_; }  ///< by group
  double all_exposed() const;
  double for_others() const { return for_others_; }  ///< of this rank

 private:
  std::map<std::string, double> exposed_;
  double for_others_ = 0;
};

}  // namespace lapidary
