#include "parallel/mpi_check.h"

#include <fmt/format.h>

#include <array>
#include <atomic>

#include "kernels/error.h"

namespace lapidary {

namespace {
std::atomic<bool> abandoned{false};
}

void mpi_check(int code, const char* operation, const std::string& communicator) {
  if (code == MPI_SUCCESS) [[likely]]
    return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) length = 0;
  throw Error(fmt::format("{} on communicator '{}': MPI error {}: {}", operation, communicator, code,
                          std::string(text.data(), static_cast<std::size_t>(length))),
              ExitCode::peer_lost);
}

void abandon_communication() {
  abandoned = true;
}

bool communication_abandoned() {
  return abandoned;
}

}  // namespace lapidary
