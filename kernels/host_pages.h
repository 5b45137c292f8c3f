// Large host memory whose pages are present before a device pins them.
#pragma once
#include <cstddef>

namespace lapidary {

/// Zeroed memory of whole pages (huge ones where the system gives them), every page written once by one of
/// several threads. cudaMallocHost makes its pages present one after the other: 40 GiB took it 32 s on an
/// H100's host; there pages made so took 1.4 s, and pinning them 1.1 s. Throws Error where less than `bytes`
/// is available, because pages that cannot be had end the process. Give back by unmap_host_pages() with the
/// same size.
void* map_host_pages(std::size_t bytes);
void unmap_host_pages(void* data, std::size_t bytes) noexcept;

}  // namespace lapidary
