// The list of the samples that a build dropped, beside its shards: one JSON object a line.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

#include "kernels/file.h"

namespace lapidary {

constexpr const char* kDropLogName = "dropped.jsonl";

/// Not thread-safe.
class DropLog {
 public:
  /// Keeps the first `bytes` of the file, where an interrupted build continues. Without bytes there is no
  /// file until something is added.
  DropLog(const std::filesystem::path& directory, std::int64_t bytes);

  /// `reason` is the counter's name, `message` opens with the sample's file and line.
  void add(const std::string& reason, const std::string& message);
  void sync();
  std::int64_t bytes() const { return bytes_; }

 private:
  std::string path_;
  std::int64_t bytes_;
  File file_;
};

}  // namespace lapidary
