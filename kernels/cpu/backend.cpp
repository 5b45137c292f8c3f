// The CPU as a device, and the backend of planned runs, which does nothing.
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <thread>

#include "kernels/arena.h"
#include "kernels/check.h"
#include "kernels/device.h"

namespace lapidary {

namespace {

DeviceMemory host_memory() {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  DeviceMemory out{static_cast<std::size_t>(sysconf(_SC_AVPHYS_PAGES)) * page,
                   static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * page};
  // The kernel's own estimate counts what it would give back from its caches.
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  std::size_t kib = 0;
  while (info >> key >> kib) {
    if (key == "MemAvailable:") out.free = kib * 1024;
    std::getline(info, unit);
  }
  return out;
}

void* allocate_on_host(std::size_t bytes, const char* what) {
  const std::size_t rounded =
      (std::max<std::size_t>(bytes, 1) + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
  void* data = std::aligned_alloc(Arena::kAlignment, rounded);
  require(data != nullptr, "{}: cannot allocate {} bytes ({} of {} available)", what, bytes,
          host_memory().free, host_memory().total);
  std::memset(data, 0, rounded);
  return data;
}

/// Work is done when it is queued, so events and waits have nothing to do.
class CpuBackend final : public Backend {
 public:
  Device device() const override { return Device::cpu; }
  std::string description() const override {
    return fmt::format("CPU, {} hardware threads, {:.1f} GiB memory", std::thread::hardware_concurrency(),
                       static_cast<double>(host_memory().total) / (1 << 30));
  }
  DeviceMemory memory() const override { return host_memory(); }
  void* allocate(std::size_t bytes) override { return allocate_on_host(bytes, "CPU memory"); }
  void release(void* data) noexcept override { std::free(data); }
  void* allocate_host(std::size_t bytes) override { return allocate_on_host(bytes, "host memory"); }
  void release_host(void* data) noexcept override { std::free(data); }
  std::unique_ptr<Stream> make_stream(const char*) override {
    return std::make_unique<Stream>(*this, nullptr, nullptr);
  }
  void copy_to_device(const Stream&, void* to, const void* from_host, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from_host, bytes);
  }
  void copy_to_host(const Stream&, void* to_host, const void* from, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(to_host, from, bytes);
  }
  Event record(const Stream&) override { return {}; }
  Event record_timed(const Stream&) override { return {std::make_shared<Clock::time_point>(Clock::now())}; }
  double seconds_between(const Event& from, const Event& to) override {
    const auto at = [](const Event& e) { return *static_cast<const Clock::time_point*>(e.native.get()); };
    return std::chrono::duration<double>(at(to) - at(from)).count();
  }
  void wait(const Stream&, const Event&) override {}
  void synchronize(const Stream&) override {}
  void synchronize(const Event&) override {}

 private:
  using Clock = std::chrono::steady_clock;
};

/// Nothing is computed, allocated or copied. Addresses are never dereferenced; they only must not be null.
class PlanBackend final : public Backend {
 public:
  explicit PlanBackend(Device target) : target_(target) {}
  Device device() const override { return target_; }
  bool dry() const override { return true; }
  std::string description() const override { return fmt::format("plan for {}", name_of(target_)); }
  DeviceMemory memory() const override {
    constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();
    return {kUnlimited, kUnlimited};
  }
  void* allocate(std::size_t) override { return reinterpret_cast<void*>(Arena::kAlignment); }
  void release(void*) noexcept override {}
  void* allocate_host(std::size_t) override { return reinterpret_cast<void*>(Arena::kAlignment); }
  void release_host(void*) noexcept override {}
  std::unique_ptr<Stream> make_stream(const char*) override {
    return std::make_unique<Stream>(*this, nullptr, nullptr);
  }
  void copy_to_device(const Stream&, void*, const void*, std::size_t) override {}
  void copy_to_host(const Stream&, void*, const void*, std::size_t) override {}
  Event record(const Stream&) override { return {}; }
  Event record_timed(const Stream&) override { return {}; }
  double seconds_between(const Event&, const Event&) override { return 0; }
  void wait(const Stream&, const Event&) override {}
  void synchronize(const Stream&) override {}
  void synchronize(const Event&) override {}

 private:
  Device target_;
};

}  // namespace

Backend& cpu_backend() {
  static CpuBackend backend;
  return backend;
}

Backend& plan_backend(Device target) {
  static PlanBackend cpu(Device::cpu), cuda(Device::cuda);
  return target == Device::cpu ? cpu : cuda;
}

}  // namespace lapidary
