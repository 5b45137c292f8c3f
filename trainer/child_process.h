// Work on bytes that a library may crash on, in a process of its own.
#pragma once
#include <functional>
#include <string>

namespace lapidary {

/// Forks, runs `work` in the child and waits for it, at most so many seconds. Empty: it returned. Otherwise
/// the message of its exception, or what ended it ("ended by signal 11 (Segmentation fault)"). Nothing that
/// the child changes, prints or breaks reaches this process.
std::string run_in_child(const std::function<void()>& work, int seconds);

}  // namespace lapidary
