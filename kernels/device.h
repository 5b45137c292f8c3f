// Devices, streams and events: the little that the rest of the program needs to know about where numbers
// live. Model code takes a Stream and never names a device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/tensor.h"

namespace lapidary {

class Arena;
class Backend;
class OpTimer;

enum class Device : std::uint8_t { cpu, cuda };

constexpr const char* name_of(Device d) {
  return d == Device::cpu ? "cpu" : "cuda";
}

/// A point in a stream's work. Copyable, cheap. On the CPU every event has already happened.
struct Event {
  std::shared_ptr<void> native;  ///< backend's event; empty: nothing to wait for
};

/// A queue of work on one device, in order. On the CPU work is done when it is queued. A dry stream
/// (Backend::plan) does nothing at all: the same model code then only allocates, and the arenas report what a
/// run needs.
class Stream {
 public:
  Stream(Backend& backend, void* native, Arena* workspace)
      : backend_(&backend), native_(native), workspace_(workspace) {}

  Backend& backend() const { return *backend_; }
  Device device() const;
  bool dry() const;
  void* native() const { return native_; }  ///< cudaStream_t; null on the CPU
  /// Scratch of operations that need some; taken and given back within one call of run().
  Arena& workspace() const { return *workspace_; }
  void set_workspace(Arena* workspace) { workspace_ = workspace; }
  /// Measures every operation that run() queues here; null: none.
  OpTimer* timer() const { return timer_; }
  void set_timer(OpTimer* timer) { timer_ = timer; }

 private:
  Backend* backend_;
  void* native_;
  Arena* workspace_;
  OpTimer* timer_ = nullptr;
};

struct DeviceMemory {
  std::size_t free = 0, total = 0;  ///< bytes
};

/// One device, as the process uses it. Obtained from cpu_backend(), cuda_backend() or plan_backend().
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device device() const = 0;
  virtual bool dry() const { return false; }
  virtual std::string description() const = 0;  ///< for the start-up lines: name, memory, driver
  virtual DeviceMemory memory() const = 0;

  virtual void* allocate(
      std::size_t bytes) = 0;  ///< 256-byte aligned, zeroed; throws Error with the sum needed
  virtual void release(void* data) noexcept = 0;
  virtual void* allocate_host(std::size_t bytes) = 0;  ///< pinned where the device copies asynchronously
  virtual void release_host(void* data) noexcept = 0;

  virtual std::unique_ptr<Stream> make_stream(const char* name) = 0;  ///< without workspace
  virtual void copy_to_device(const Stream& stream, void* to, const void* from_host, std::size_t bytes) = 0;
  virtual void copy_to_host(const Stream& stream, void* to_host, const void* from, std::size_t bytes) = 0;
  virtual Event record(const Stream& stream) = 0;
  virtual Event record_timed(const Stream& stream) = 0;  ///< an event that seconds_between() takes
  /// Between two timed events of one stream, both of which have happened.
  virtual double seconds_between(const Event& from, const Event& to) = 0;
  virtual void wait(const Stream& stream,
                    const Event& event) = 0;           ///< later work of `stream` comes after the event
  virtual void synchronize(const Stream& stream) = 0;  ///< the host waits
  virtual void synchronize(const Event& event) = 0;    ///< the host waits

  /// While on, matrix products that are worth it measure which algorithm is fastest, on the operands at hand
  /// (results that accumulate are then worthless), and keep it. Off, what was found is used; without
  /// measurements, the library's first choice. Backends without a choice do nothing.
  virtual void measure_products(bool /*on*/) {}
  /// What measure_products found, in a text file for the next process. Loading skips what was measured on
  /// another device or library version, and replaces what this process has found. No file: nothing. `run`
  /// names a run (any text without line breaks) whose products are all in the file from now on.
  virtual void save_products(const std::string& /*path*/, const std::string& /*run*/) {}
  virtual void load_products(const std::string& /*path*/) {}
  /// Whether the file that was loaded last holds all products of a run.
  virtual bool knows_products(const std::string& /*run*/) const { return true; }
};

/// The CPU.
Backend& cpu_backend();
/// The GPU with this index among the visible ones; throws Error with the reason where there is none, or where
/// the program was built without CUDA. The first call chooses the process's GPU.
Backend& cuda_backend(int index);
/// GPUs that the process can see; 0 in a build without CUDA or without a driver (then `why`, if given, says
/// why).
int cuda_device_count(std::string* why = nullptr);
/// Nothing is computed, allocated or copied; sizes are those of `target`.
Backend& plan_backend(Device target);

inline Device Stream::device() const {
  return backend_->device();
}
inline bool Stream::dry() const {
  return backend_->dry();
}

}  // namespace lapidary
