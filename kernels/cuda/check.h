// Every return code of the CUDA runtime, the driver and cuBLASLt goes through one of these: an Error that
// names the call site, CUDA's name for the error and its explanation. Free of fmt: CUDA sources include it.
#pragma once
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <source_location>
#include <string>

#include "kernels/error.h"

namespace lapidary {

inline std::string call_site(const std::source_location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

/// Throws where `status` is an error, and clears it so that the next call does not report it again. (An error
/// that destroyed the context cannot be cleared: every later call then throws too.)
inline void cuda_ok(cudaError_t status, const char* what,
                    const std::source_location& where = std::source_location::current()) {
  if (status == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();
  throw Error(std::string(what) + ": " + cudaGetErrorName(status) + " (" + cudaGetErrorString(status) +
                  ") at " + call_site(where),
              ExitCode::peer_lost);
}

/// After a kernel launch: a bad configuration, or an earlier asynchronous error that surfaces here.
inline void launched(const char* kernel,
                     const std::source_location& where = std::source_location::current()) {
  cuda_ok(cudaGetLastError(), kernel, where);
}

inline void blas_ok(cublasStatus_t status, const std::string& what,
                    const std::source_location& where = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  throw Error(what + ": cuBLASLt status " + std::to_string(static_cast<int>(status)) + " (" +
                  cublasLtGetStatusString(status) + ") at " + call_site(where),
              ExitCode::peer_lost);
}

}  // namespace lapidary
