#include "data/build_threads.h"

#include <utility>

namespace lapidary {
namespace {

// A worker takes this much at a time: enough that locks are not noticed, so little that a machine with many
// cores does not hold a shard's worth of pictures in flight.
constexpr std::size_t kChunkLines = 8;
constexpr std::size_t kChunkBytes = std::size_t{64} << 10;

}  // namespace

bool ChunkReader::next(Chunk& chunk) {
  const std::lock_guard lock(mutex_);
  if (ended_) return false;
  chunk = Chunk{};
  chunk.number = chunks_++;
  std::size_t bytes = 0;
  try {
    InputLine line;
    while (chunk.lines.size() < kChunkLines && bytes < kChunkBytes && read(line)) {
      bytes += line.text.size();
      chunk.lines.push_back(std::move(line));
    }
  } catch (...) {
    chunk.read_error = std::current_exception();
  }
  ended_ = chunk.read_error != nullptr || input_ == inputs_.size();
  chunk.bytes_read = bytes_before_ + (reader_ ? reader_->bytes_read() : 0);
  return !chunk.lines.empty() || chunk.read_error != nullptr;
}

bool ChunkReader::read(InputLine& line) {
  for (; input_ < inputs_.size(); ++input_) {
    if (!reader_) reader_ = std::make_unique<LineReader>(inputs_[input_]);
    const std::int64_t repairs = reader_->utf8_errors();
    if (reader_->next(line.text)) {
      line.number = samples_++;
      line.input = input_;
      line.place = reader_->place();
      line.utf8_repairs = reader_->utf8_errors() - repairs;
      return true;
    }
    bytes_before_ += reader_->bytes_read();
    reader_.reset();
  }
  return false;
}

}  // namespace lapidary
