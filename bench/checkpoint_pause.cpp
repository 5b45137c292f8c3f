// How long training stands still for an asynchronous save, against the bare copy of the same state to the
// same kind of memory: checkpoint_pause FOLDER MEBIBYTES ROUNDS. On the GPU where there is one. Interleaved,
// medians.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <vector>

#include "kernels/check.h"
#include "kernels/stopwatch.h"
#include "trainer/checkpoint_saver.h"

namespace lapidary {
namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void print(const char* what, const std::vector<double>& seconds, double gigabytes) {
  std::cout << fmt::format("{:<32} {:8.2f} ms  ({:.2f} to {:.2f}), {:.1f} GB/s\n", what,
                           1e3 * median(seconds), 1e3 * *std::min_element(seconds.begin(), seconds.end()),
                           1e3 * *std::max_element(seconds.begin(), seconds.end()),
                           gigabytes / median(seconds));
}

/// Tensors as a layer has them: large and small ones, every one in four parts.
std::vector<CheckpointTensor> make_state(std::byte* memory, std::int64_t bytes) {
  std::vector<CheckpointTensor> tensors;
  std::int64_t at = 0;
  for (int i = 0; at < bytes; ++i) {
    const std::int64_t elements = std::min<std::int64_t>(i % 3 == 0 ? 3840 : 8 << 20, (bytes - at) / 4);
    if (elements == 0) break;
    tensors.push_back(
        {fmt::format("t{}", i), "master", DType::f32, {elements}, {{0, elements, memory + at}}});
    at += 4 * elements;
  }
  return tensors;
}

void run(const std::string& folder, std::int64_t bytes, int rounds) {
  Backend& backend = cuda_device_count() > 0 ? cuda_backend(0) : cpu_backend();
  const std::unique_ptr<Stream> compute = backend.make_stream("compute"),
                                copies = backend.make_stream("copies");
  auto* const state = static_cast<std::byte*>(backend.allocate(static_cast<std::size_t>(bytes)));
  const std::vector<CheckpointTensor> tensors = make_state(state, bytes);
  auto* const bare = static_cast<std::byte*>(backend.allocate_host(static_cast<std::size_t>(bytes)));
  CheckpointSaver saver(folder, {.keep_last = 1}, tensors, backend, static_cast<std::size_t>(bytes) * 2,
                        HostGroup());
  std::vector<double> copy, returned, copied, published;
  for (int i = 0; i < rounds + 1; ++i) {
    auto start = Clock::now();
    std::int64_t at = 0;
    for (const CheckpointTensor& t : tensors) {
      const std::int64_t size = 4 * t.slices[0].count;
      backend.copy_to_host(*copies, bare + at, t.slices[0].data, static_cast<std::size_t>(size));
      at += size;
    }
    backend.synchronize(*copies);
    copy.push_back(seconds_since(start));
    start = Clock::now();
    const Event done = saver.start(i, "{}", std::nullopt, *compute);
    returned.push_back(seconds_since(start));
    backend.synchronize(done);
    copied.push_back(seconds_since(start));
    const auto outcome = saver.wait();
    require(outcome->error.empty(), "{}", outcome->error);
    published.push_back(outcome->seconds);
    if (i == 0)  // first touches of memory
      for (auto* list : {&copy, &returned, &copied, &published}) list->clear();
  }
  const double gigabytes = static_cast<double>(bytes) / 1e9;
  std::cout << fmt::format("{}, {:.2f} GB, {} tensors, {} rounds\n", backend.description(), gigabytes,
                           tensors.size(), rounds);
  print("bare copy", copy, gigabytes);
  print("start() returns", returned, gigabytes);
  print("the state may change", copied, gigabytes);
  print("published", published, gigabytes);
  std::cout << fmt::format("pause / bare copy: {:.3f}\n", median(copied) / median(copy));
  backend.release_host(bare);
  backend.release(state);
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  try {
    lapidary::require(argc == 4, "usage: checkpoint_pause FOLDER MEBIBYTES ROUNDS");
    lapidary::run(argv[1], std::stoll(argv[2]) << 20, std::stoi(argv[3]));
    std::filesystem::remove_all(argv[1]);
  } catch (const std::exception& e) {
    std::cerr << e.what() << std::endl;
    return 1;
  }
  return 0;
}
