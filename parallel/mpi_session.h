// The start and the end of a process that is one rank of a job: MPI, the place among the ranks and nodes, and
// what becomes of an exception, so that no rank waits for one that failed and the shell sees the exit code.
#pragma once
#include <functional>
#include <string>

namespace lapidary {

/// MPI between construction and destruction. One per process.
class MpiSession {
 public:
  /// Throws Error where the process was started by srun without PMIx: MPI would end it with a page of text,
  /// or every task would take itself for the whole job.
  MpiSession(int argc, char** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  ///< among the ranks of this node: chooses the GPU
  /// Ranks on the node that has fewest: the same number on every rank.
  int ranks_per_node() const { return ranks_per_node_; }
  const std::string& host() const { return host_; }

 private:
  int rank_ = 0, size_ = 1, local_rank_ = 0, ranks_per_node_ = 1;
  std::string host_;
};

/// The whole life of a rank: starts MPI, runs `body` and returns what main should return. body's result, or
/// its exception's exit code, becomes that of the job.
/// All ranks end in failure: rank 0 prints each different message once, with the ranks it comes from unless
/// all agree, and all return the code of the lowest rank that failed.
/// A rank fails and others have not ended two seconds later: it prints "rank 3: .." and ends the job through
/// MPI_Abort with its code.
/// A rank that is done waits for the others.
int run_guarded(int argc, char** argv, const std::function<int(const MpiSession&)>& body);

}  // namespace lapidary
