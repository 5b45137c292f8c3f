// What nccl_communicator.h promises, in a build without NCCL.
#include "kernels/check.h"
#include "parallel/nccl_communicator.h"

namespace lapidary {

bool nccl_built() {
  return false;
}

std::unique_ptr<Communicator> split_nccl_communicator(MPI_Comm, int, const std::string& name, Backend&) {
  fail(
      "communicator '{}' was to use NCCL, but this program was built without it: build it where nccl.h and "
      "libnccl are found beside the CUDA toolkit",
      name);
}

}  // namespace lapidary
