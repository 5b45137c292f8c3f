// Numbers as people read them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace lapidary {

/// "12,345,678".
std::string with_thousands(std::int64_t value);
/// "1 rank", "3 ranks".
std::string counted(std::int64_t count, const std::string& thing);
/// "1.50 GiB"; below 1 KiB "512 B".
std::string format_bytes(std::size_t bytes);

}  // namespace lapidary
