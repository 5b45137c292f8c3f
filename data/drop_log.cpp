#include "data/drop_log.h"

#include <nlohmann/json.hpp>

#include "kernels/check.h"

namespace lapidary {

DropLog::DropLog(const std::filesystem::path& directory, std::int64_t bytes)
    : path_((directory / kDropLogName).string()), bytes_(bytes) {
  if (bytes == 0) {
    std::filesystem::remove(path_);
    return;
  }
  file_ = File::open_to_write(path_);
  require(file_.size() >= bytes, "{}: {} bytes, expected at least {}: remove the directory and build again",
          path_, file_.size(), bytes);
  std::filesystem::resize_file(path_, static_cast<std::uintmax_t>(bytes));
}

void DropLog::add(const std::string& reason, const std::string& message) {
  if (bytes_ == 0) file_ = File::create(path_);
  const nlohmann::json entry = {{"reason", reason}, {"message", message}};
  // A message quotes the sample, and may cut a character in two.
  const std::string line = entry.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
  file_.write_at(line.data(), line.size(), bytes_);
  bytes_ += static_cast<std::int64_t>(line.size());
}

void DropLog::sync() {
  if (bytes_ > 0) file_.sync();
}

}  // namespace lapidary
