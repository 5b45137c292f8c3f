// Ends a run that does not go on: a rank that was stopped, whose host is gone, or that waits for ever. The
// collectives of MPI, of NCCL and of copy engines wait without end for a rank that does not come.
#pragma once
#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <memory>

namespace lapidary {

/// A thread on every rank. Each tells the next rank (a ring) several times in `patience` how far it has come,
/// and watches the one before it:
///
/// - no sign of life for `patience`: the process is stopped or gone;
/// - alive, but behind this rank and not going on for `patience`: it is what the others wait for;
/// - all at the same place, and none goes on, for one and a half times `patience`: rank 0 says so.
///
/// Whoever sees it prints one line that names the rank and what it last did, and ends the job (MPI_Abort)
/// with ExitCode::peer_lost. Nothing here waits for another rank, not even the end of a Watchdog.
class Watchdog {
 public:
  using Duration = std::chrono::milliseconds;

  /// Collective over `group`, which is duplicated; MPI_COMM_NULL: this process alone. patience 0: nothing is
  /// watched. Begins calm, at step 0.
  Watchdog(MPI_Comm group, Duration patience);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// This rank has come to the next place of its run, `doing` something (a literal, as in "waits for data")
  /// for `step`. All ranks call it in the same order.
  void at(std::int64_t step, const char* doing);
  /// As at(), for work that may take any time (a start, a validation, a save): only signs of life count.
  void calm(std::int64_t step, const char* doing);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lapidary
