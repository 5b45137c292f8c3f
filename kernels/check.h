// Checks with formatted messages, for host code.
#pragma once
#include <fmt/format.h>

#include <utility>

#include "kernels/error.h"

namespace lapidary {

/// Throws Error (bad input) with the formatted message.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Throws Error (bad input) with the formatted message unless `ok`.
template <class... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]]
    throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace lapidary
