// Memory, streams and events of one GPU. The process uses one GPU: the first call of cuda_backend chooses it.
#include "kernels/cuda/backend.h"

#include <algorithm>
#include <cstdlib>

#include "kernels/check.h"
#include "kernels/cuda/check.h"
#include "kernels/host_pages.h"

namespace lapidary {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

cudaEvent_t native(const Event& event) {
  return static_cast<cudaEvent_t>(event.native.get());
}

Event record_event(const Stream& stream, unsigned flags) {
  cudaEvent_t event = nullptr;
  cuda_ok(cudaEventCreateWithFlags(&event, flags), "creating an event");
  std::shared_ptr<void> owner(event, [](void* e) { (void)cudaEventDestroy(static_cast<cudaEvent_t>(e)); });
  cuda_ok(cudaEventRecord(event, cuda_stream(stream)), "recording an event");
  return Event{std::move(owner)};
}

}  // namespace

CudaBackend::CudaBackend(int index) : index_(index) {
  cuda_ok(cudaSetDevice(index), "choosing the GPU");
  cudaDeviceProp properties{};
  cuda_ok(cudaGetDeviceProperties(&properties, index), "reading the GPU's properties");
  name_ = properties.name;
  require(properties.major == 9 && properties.minor == 0,
          "GPU {} is a {} (compute capability {}.{}); this program is built for Hopper (9.0)", index, name_,
          properties.major, properties.minor);
  blas_ok(cublasLtCreate(&blas_handle_), "starting cuBLASLt");
}

std::string CudaBackend::description() const {
  int driver = 0, runtime = 0;
  cuda_ok(cudaDriverGetVersion(&driver), "reading the driver's version");
  cuda_ok(cudaRuntimeGetVersion(&runtime), "reading the runtime's version");
  return fmt::format("GPU {}: {}, {:.1f} GiB, CUDA {}.{} (driver for {}.{}), cuBLASLt {}", index_, name_,
                     static_cast<double>(memory().total) / kGiB, runtime / 1000, runtime % 1000 / 10,
                     driver / 1000, driver % 1000 / 10, cublasLtGetVersion());
}

DeviceMemory CudaBackend::memory() const {
  DeviceMemory out;
  cuda_ok(cudaMemGetInfo(&out.free, &out.total), "asking for free GPU memory");
  return out;
}

void* CudaBackend::allocate(std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    const DeviceMemory now = memory();
    fail("GPU {} ({}): {:.2f} GiB ({} bytes) cannot be allocated; {:.2f} of {:.2f} GiB are free", index_,
         name_, static_cast<double>(bytes) / kGiB, bytes, static_cast<double>(now.free) / kGiB,
         static_cast<double>(now.total) / kGiB);
  }
  cuda_ok(status, "allocating GPU memory");
  cuda_ok(cudaMemset(data, 0, bytes), "clearing GPU memory");
  cuda_ok(cudaDeviceSynchronize(), "clearing GPU memory");
  return data;
}

void CudaBackend::release(void* data) noexcept {
  (void)cudaFree(data);
}

void* CudaBackend::allocate_host(std::size_t bytes) {
  void* const data = map_host_pages(bytes);
  const cudaError_t status = cudaHostRegister(data, std::max<std::size_t>(bytes, 1), cudaHostRegisterDefault);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    unmap_host_pages(data, bytes);
    fail("{:.2f} GiB ({} bytes) of host memory cannot be pinned: {}", static_cast<double>(bytes) / kGiB,
         bytes, cudaGetErrorString(status));
  }
  const std::lock_guard lock(mutex_);
  pinned_[data] = bytes;
  return data;
}

void CudaBackend::release_host(void* data) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = pinned_.find(data);
  if (found == pinned_.end()) return;
  (void)cudaHostUnregister(data);
  unmap_host_pages(data, found->second);
  pinned_.erase(found);
}

std::unique_ptr<Stream> CudaBackend::make_stream(const char* /*name*/) {
  cudaStream_t stream = nullptr;
  // Non-blocking: nothing may be ordered against the legacy default stream by accident.
  cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  const std::lock_guard lock(mutex_);
  streams_.push_back(stream);
  return std::make_unique<Stream>(*this, stream, nullptr);
}

void CudaBackend::copy_to_device(const Stream& stream, void* to, const void* from_host, std::size_t bytes) {
  // The direction follows from the addresses: tensors may lie in pinned host memory (Place::host).
  cuda_ok(cudaMemcpyAsync(to, from_host, bytes, cudaMemcpyDefault, cuda_stream(stream)),
          "copying to the GPU");
}

void CudaBackend::copy_to_host(const Stream& stream, void* to_host, const void* from, std::size_t bytes) {
  cuda_ok(cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDefault, cuda_stream(stream)),
          "copying from the GPU");
}

Event CudaBackend::record(const Stream& stream) {
  return record_event(stream, cudaEventDisableTiming);
}

Event CudaBackend::record_timed(const Stream& stream) {
  return record_event(stream, cudaEventDefault);
}

double CudaBackend::seconds_between(const Event& from, const Event& to) {
  float milliseconds = 0;
  cuda_ok(cudaEventElapsedTime(&milliseconds, native(from), native(to)), "reading the time between events");
  return static_cast<double>(milliseconds) * 1e-3;
}

void CudaBackend::wait(const Stream& stream, const Event& event) {
  if (event.native)
    cuda_ok(cudaStreamWaitEvent(cuda_stream(stream), native(event), 0), "waiting in a stream");
}

void CudaBackend::synchronize(const Stream& stream) {
  cuda_ok(cudaStreamSynchronize(cuda_stream(stream)), "waiting for a stream");
}

void CudaBackend::synchronize(const Event& event) {
  if (event.native) cuda_ok(cudaEventSynchronize(native(event)), "waiting for an event");
}

BlasContext& CudaBackend::blas(const Stream& stream) {
  const std::lock_guard lock(mutex_);
  BlasContext& context = blas_[cuda_stream(stream)];
  if (!context.workspace) {
    cuda_ok(cudaMalloc(&context.workspace, kBlasWorkspace), "allocating cuBLASLt's workspace");
    context.workspace_bytes = kBlasWorkspace;
    context.handle = blas_handle_;
  }
  return context;
}

int cuda_device_count(std::string* why) {
  // CUDA reads it once, at its first call. By default streams share eight queues to the GPU, and one that
  // waits for another rank could then hold up one that this rank has to send from.
  static const int set = setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  (void)set;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  (void)cudaGetLastError();
  if (why) {
    *why = status == cudaSuccess
               ? std::string("the driver shows no GPU to this process")
               : fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
  }
  return 0;
}

Backend& cuda_backend(int index) {
  static std::mutex mutex;
  // Never destroyed: at exit CUDA's own tear-down may come first, and calls into it then crash.
  static CudaBackend* backend = nullptr;
  const std::lock_guard lock(mutex);
  if (!backend) {
    std::string why;
    const int count = cuda_device_count(&why);
    require(count > 0, "no GPU can be used: {}", why);
    require(index >= 0 && index < count, "GPU {} was asked for; this process sees {}", index, count);
    backend = new CudaBackend(index);
  }
  require(backend->index() == index, "GPU {} was asked for after GPU {}: a process uses one GPU", index,
          backend->index());
  return *backend;
}

}  // namespace lapidary
