// The CUDA backend's own face: what the launchers in this folder need beyond kernels/device.h.
#pragma once
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace lapidary {

/// cuBLASLt as one stream uses it. Products of one stream may share a workspace because they run in order.
struct BlasContext {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

/// Lives until the process ends, with its streams and workspaces.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int index);
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  Device device() const override { return Device::cuda; }
  std::string description() const override;
  DeviceMemory memory() const override;
  void* allocate(std::size_t bytes) override;
  void release(void* data) noexcept override;
  void* allocate_host(std::size_t bytes) override;
  void release_host(void* data) noexcept override;
  std::unique_ptr<Stream> make_stream(const char* name) override;
  void copy_to_device(const Stream& stream, void* to, const void* from_host, std::size_t bytes) override;
  void copy_to_host(const Stream& stream, void* to_host, const void* from, std::size_t bytes) override;
  Event record(const Stream& stream) override;
  Event record_timed(const Stream& stream) override;
  double seconds_between(const Event& from, const Event& to) override;
  void wait(const Stream& stream, const Event& event) override;
  void synchronize(const Stream& stream) override;
  void synchronize(const Event& event) override;
  void measure_products(bool on) override;
  void save_products(const std::string& path, const std::string& run) override;
  void load_products(const std::string& path) override;
  bool knows_products(const std::string& run) const override;

  int index() const { return index_; }
  /// The workspace is taken at the stream's first product and kept (kBlasWorkspace bytes).
  BlasContext& blas(const Stream& stream);

  /// cuBLASLt picks its fastest algorithms for Hopper only when it may use this much.
  static constexpr std::size_t kBlasWorkspace = std::size_t{32} << 20;

 private:
  int index_;
  std::string name_;
  cublasLtHandle_t blas_handle_ = nullptr;
  std::mutex mutex_;
  std::vector<cudaStream_t> streams_;
  std::map<cudaStream_t, BlasContext> blas_;
  std::map<void*, std::size_t> pinned_;  ///< bytes of what allocate_host gave
};

inline cudaStream_t cuda_stream(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.native());
}

}  // namespace lapidary
