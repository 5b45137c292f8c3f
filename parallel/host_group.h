// Small collectives between the hosts of a group of ranks: agreement, flags, names, short texts. Unlike MPI's
// own calls none of them waits for ever: a rank that does not come is an Error that names it.
#pragma once
#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

/// Ranks that call the same operations in the same order.
///
/// `what` says in messages what the caller is doing ("checkpoint 40: shards written").
///
/// Deadline: an operation that is not complete in time throws Error with ExitCode::peer_lost that names the
/// operation and the ranks that did not arrive. The first rank to run out of time tells the others, so those
/// that wait end within a few seconds, whatever their own deadline. After such an error the group is
/// unusable and every further call throws at once; what was under way is abandoned, never waited for, so a
/// process that saw the error should leave through MPI_Abort: MPI_Finalize may wait for the missing rank.
///
/// Threads: one thread at a time per group, any thread (MPI_THREAD_MULTIPLE). Two groups over the same ranks
/// do not disturb each other, so a thread that works beside the main one gets a group of its own.
class HostGroup {
 public:
  using Duration = std::chrono::milliseconds;

  /// This process alone; needs no MPI.
  HostGroup();
  /// Collective over `communicator`, which is duplicated.
  HostGroup(MPI_Comm communicator, Duration deadline);
  /// Another group over the same ranks with the same deadline, for a thread of its own. Collective.
  HostGroup duplicate() const;
  HostGroup(HostGroup&&) noexcept;
  HostGroup& operator=(HostGroup&&) noexcept;
  ~HostGroup();

  int rank() const;
  int size() const;
  Duration deadline() const;
  void set_deadline(Duration deadline);
  bool usable() const;  ///< no rank was lost so far

  enum class Reduce : std::uint8_t { sum, min, max };

  void barrier(std::string_view what);
  /// Element by element; the same bits on every rank. Every rank brings equally many.
  void all_reduce(std::span<std::int64_t> values, Reduce reduce, std::string_view what);
  void all_reduce(std::span<double> values, Reduce reduce, std::string_view what);
  std::int64_t all_reduce(std::int64_t value, Reduce reduce, std::string_view what);
  double all_reduce(double value, Reduce reduce, std::string_view what);
  /// root's text on every rank; the others' argument does not matter. Any length up to 1 GiB.
  std::string broadcast(std::string text, int root, std::string_view what);
  /// Every rank's value in rank order.
  std::vector<std::int64_t> all_gather(std::int64_t value, std::string_view what);
  /// root receives every rank's text in rank order, the others nothing. Together up to 1 GiB.
  std::vector<std::string> gather(const std::string& text, int root, std::string_view what);

  /// Runs `work` on every rank, then makes sure that all succeeded: if it threw anywhere, every rank throws
  /// the error of the lowest rank it failed on, with its exit code and (in a group) that rank's number before
  /// the message.
  void all_or_error(std::string_view what, const std::function<void()>& work);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lapidary
