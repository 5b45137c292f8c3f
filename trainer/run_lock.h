// One run at a time in a folder: the ranks of a job that was killed may live on for a moment, and two writers
// would spoil each other's metrics and checkpoints.
#pragma once
#include <chrono>
#include <string>

namespace lapidary {

/// Holds FOLDER/.lock (an advisory lock that the system drops with the process) from construction to
/// destruction. Waits for another holder up to `patience`, then throws Error (peer_lost: trying again later
/// may help) naming the folder.
class RunLock {
 public:
  explicit RunLock(const std::string& folder, std::chrono::seconds patience = std::chrono::seconds(20));
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_;
};

}  // namespace lapidary
