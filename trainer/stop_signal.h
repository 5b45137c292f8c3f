// What signals ask of a run. Handlers only set a flag; the training loop asks at the end of a step, agrees
// with the other ranks, and acts: USR1 and TERM save and end (exit code 75), USR2 saves and goes on. A second
// TERM ends the process at once, by the system's own default.
#pragma once
#include <csignal>

namespace lapidary {

enum class StopRequest : int { none = 0, save = 1, stop = 2 };  ///< the larger wins when ranks agree

/// Handlers are installed for the time of its life; one at a time. System calls that a signal interrupts are
/// resumed.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// What was asked since the last call. A request to stop stays, one to save is answered once.
  StopRequest take();

 private:
  struct sigaction before_usr1_ {
  }, before_usr2_{}, before_term_{};
};

}  // namespace lapidary
