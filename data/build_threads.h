// How a build is spread over threads: lines are dealt in small chunks, and results are handed in in the order
// of the chunks, so that the output does not depend on who was fast.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "data/jsonl.h"

namespace lapidary {

struct InputLine {
  std::int64_t number = 0;  ///< of the sample, from 0, over all inputs
  std::size_t input = 0;
  std::string text, place;
  std::int64_t utf8_repairs = 0;
};

struct Chunk {
  std::int64_t number = 0;
  std::vector<InputLine> lines;
  std::int64_t bytes_read = 0;    ///< of all inputs, when it was read
  std::exception_ptr read_error;  ///< what ended reading behind these lines
};

/// Deals the lines of all inputs, in order, to whoever asks. Thread-safe. `inputs` must outlive it.
class ChunkReader {
 public:
  explicit ChunkReader(const std::vector<std::string>& inputs) : inputs_(inputs) {}
  /// False at the end.
  bool next(Chunk& chunk);

 private:
  bool read(InputLine& line);

  const std::vector<std::string>& inputs_;
  std::mutex mutex_;
  std::unique_ptr<LineReader> reader_;
  std::size_t input_ = 0;
  std::int64_t samples_ = 0, chunks_ = 0, bytes_before_ = 0;
  bool ended_ = false;
};

/// Lets workers through in the order of the chunks, one at a time.
class Turnstile {
 public:
  /// Runs `work` when all chunks before `number` have passed. False, without running it, if one of them
  /// failed. What `work` throws is kept and ends the turns.
  template <class Work>
  bool pass(std::int64_t number, Work work) {
    std::unique_lock lock(mutex_);
    turn_.wait(lock, [&] { return failure_ || next_ == number; });
    if (failure_) return false;
    try {
      work();
    } catch (...) {
      failure_ = std::current_exception();
    }
    ++next_;
    turn_.notify_all();
    return failure_ == nullptr;
  }
  /// Asked when all workers have ended.
  std::exception_ptr failure() const { return failure_; }

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  std::int64_t next_ = 0;
  std::exception_ptr failure_;
};

}  // namespace lapidary
