// Reads a JSONL file line by line, in bounded memory.
#pragma once
#include <cstdint>
#include <fstream>
#include <string>

namespace lapidary {

class LineReader {
 public:
  static constexpr std::size_t kMaxLine = std::size_t{64} << 20;

  /// Error where the file cannot be opened. A byte-order mark at its start is skipped.
  explicit LineReader(std::string path, std::size_t max_line = kMaxLine);

  /// Puts the next line that is not blank into `line`, without its end (\n or \r\n), ill-formed UTF-8
  /// replaced. False at the end of the file. Error for a line longer than the limit or a failed read.
  bool next(std::string& line);

  /// Number, from 1, of the line that next() gave.
  std::int64_t line_number() const { return line_number_; }
  /// "path:line" of it, as messages begin.
  std::string place() const;
  /// Bytes of the file that were read so far, for progress.
  std::int64_t bytes_read() const { return bytes_read_; }
  /// Ill-formed UTF-8 sequences that were replaced so far.
  std::int64_t utf8_errors() const { return utf8_errors_; }
  const std::string& path() const { return path_; }

 private:
  bool read_line(std::string& line);
  bool fill();

  std::string path_;
  std::size_t max_line_;
  std::ifstream file_;
  std::string buffer_;
  std::size_t at_ = 0;
  std::int64_t line_number_ = 0, bytes_read_ = 0, utf8_errors_ = 0;
};

}  // namespace lapidary
