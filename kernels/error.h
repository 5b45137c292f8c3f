// How anything that goes wrong is reported: one exception type that carries the message a user reads and the
// exit code a batch script acts on. Free of fmt so that CUDA sources can include it; see check.h for
// formatting.
#pragma once
#include <stdexcept>
#include <string>

namespace lapidary {

/// Exit codes of the program (docs/errors.md). A batch script requeues on 75 and 76.
enum class ExitCode : int {
  ok = 0,
  bad_input = 1,     ///< configuration, data, files or command line
  interrupted = 75,  ///< stopped on a signal after a save
  peer_lost = 76,    ///< a rank died, communication or I/O failed
  numeric = 77,      ///< a non-finite number that reproduces
  hardware = 78,     ///< a non-finite number that does not reproduce
};

/// The message names the file, the place, what was found and what was expected.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ExitCode code = ExitCode::bad_input)
      : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

}  // namespace lapidary
