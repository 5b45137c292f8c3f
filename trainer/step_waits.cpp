#include "trainer/step_waits.h"

namespace lapidary {

void StepWaits::add(const std::vector<WaitTimer::Wait>& waits, HostGroup& world) {
  std::vector<double> shortest;
  shortest.reserve(waits.size());
  for (const WaitTimer::Wait& wait : waits) shortest.push_back(wait.seconds);
  world.all_reduce(shortest, HostGroup::Reduce::min, "waits of a step");
  for (std::size_t i = 0; i < waits.size(); ++i) {
    exposed_[waits[i].group] += shortest[i];
    for_others_ += waits[i].seconds - shortest[i];
  }
}

double StepWaits::all_exposed() const {
  double sum = 0;
  for (const auto& [group, seconds] : exposed_) sum += seconds;
  return sum;
}

}  // namespace lapidary
