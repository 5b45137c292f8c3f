#include "kernels/host_pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/check.h"
#include "kernels/device.h"

namespace lapidary {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
constexpr std::size_t kBytesOfAThread = std::size_t{256}
                                        << 20;  // below, starting one costs more than it saves
constexpr std::size_t kMostThreads = 8;         // more did not help

/// Writes into every page of [begin, end).
void touch(std::byte* begin, const std::byte* end, std::size_t page) {
  for (; begin < end; begin += page) *static_cast<volatile std::byte*>(begin) = std::byte{0};
}

}  // namespace

void* map_host_pages(std::size_t bytes) {
  const std::size_t free = cpu_backend().memory().free;
  require(bytes <= free, "{:.2f} GiB ({} bytes) of host memory cannot be allocated; {:.2f} GiB are available",
          static_cast<double>(bytes) / kGiB, bytes, static_cast<double>(free) / kGiB);
  const std::size_t length = std::max<std::size_t>(bytes, 1);
  void* const data = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(data != MAP_FAILED, "{:.2f} GiB ({} bytes) of host memory cannot be mapped: {}",
          static_cast<double>(bytes) / kGiB, bytes, std::strerror(errno));
  (void)madvise(data, length, MADV_HUGEPAGE);  // a wish: without it there are just more pages

  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t pages = (length + page - 1) / page;
  const std::size_t threads = std::clamp<std::size_t>(length / kBytesOfAThread, 1, kMostThreads);
  auto* const first = static_cast<std::byte*>(data);
  std::vector<std::jthread> touching;
  for (std::size_t i = 1; i < threads; ++i)
    touching.emplace_back(touch, first + pages * i / threads * page, first + pages * (i + 1) / threads * page,
                          page);
  touch(first, first + pages / threads * page, page);
  return data;
}

void unmap_host_pages(void* data, std::size_t bytes) noexcept {
  (void)munmap(data, std::max<std::size_t>(bytes, 1));
}

}  // namespace lapidary
