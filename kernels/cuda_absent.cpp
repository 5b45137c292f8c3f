// What device.h promises about GPUs, in a build without the CUDA backend.
#include "kernels/check.h"
#include "kernels/device.h"

namespace lapidary {

namespace {
constexpr const char* kReason = "this program was built without CUDA";
}

Backend& cuda_backend(int index) {
  fail("GPU {} was asked for, but {}: build it where nvcc is found, or set device: cpu", index, kReason);
}

int cuda_device_count(std::string* why) {
  if (why) *why = kReason;
  return 0;
}

}  // namespace lapidary
