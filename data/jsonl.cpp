#include "data/jsonl.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "data/utf8.h"
#include "kernels/check.h"

namespace lapidary {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 20;

bool is_blank(const std::string& line) {
  return line.find_first_not_of(" \t\r\v\f") == std::string::npos;
}

}  // namespace

LineReader::LineReader(std::string path, std::size_t max_line) : path_(std::move(path)), max_line_(max_line) {
  // Opening a directory succeeds and only reading it fails, with a message that helps nobody.
  require(!std::filesystem::is_directory(path_), "{}: is a directory, expected a JSONL file", path_);
  file_.open(path_, std::ios::binary);
  require(file_.is_open(), "{}: cannot open: {}", path_, std::strerror(errno));
  if (fill() && buffer_.compare(0, 3, "\xEF\xBB\xBF") == 0) at_ = 3;
}

bool LineReader::fill() {
  buffer_.resize(kBuffer);
  at_ = 0;
  file_.read(buffer_.data(), static_cast<std::streamsize>(kBuffer));
  require(!file_.bad(), "{}: read failed: {}", path_, std::strerror(errno));
  buffer_.resize(static_cast<std::size_t>(file_.gcount()));
  return !buffer_.empty();
}

bool LineReader::read_line(std::string& line) {
  line.clear();
  if (at_ == buffer_.size() && !fill()) return false;
  ++line_number_;
  for (;;) {
    const std::size_t end = buffer_.find('\n', at_);
    const std::size_t stop = end == std::string::npos ? buffer_.size() : end;
    require(line.size() + (stop - at_) <= max_line_, "{}: the line is longer than {} bytes", place(),
            max_line_);
    line.append(buffer_, at_, stop - at_);
    bytes_read_ += static_cast<std::int64_t>(stop - at_);
    at_ = stop;
    if (end != std::string::npos) {
      ++at_;
      ++bytes_read_;
      break;
    }
    if (!fill()) break;  // the last line has no end
  }
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return true;
}

bool LineReader::next(std::string& line) {
  while (read_line(line)) {
    if (is_blank(line)) continue;
    utf8_errors_ += static_cast<std::int64_t>(repair_utf8(line));
    return true;
  }
  return false;
}

std::string LineReader::place() const {
  return fmt::format("{}:{}", path_, line_number_);
}

}  // namespace lapidary
