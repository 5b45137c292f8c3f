// Checks with formatted messages, for host code.
#pragma once
#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

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

/// Throws Error (bad input) with `what` and the problems below it, a line each and at most twenty, unless
/// there are none.
inline void require_none(std::vector<std::string> problems, const std::string& what) {
  constexpr std::size_t kShown = 20;
  if (problems.empty()) return;
  const std::size_t count = problems.size();
  if (count > kShown) {
    problems.resize(kShown);
    problems.push_back(fmt::format("and {} more", count - kShown));
  }
  fail("{}:\n  {}", what, fmt::join(problems, "\n  "));
}

}  // namespace lapidary
