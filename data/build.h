// What `lapidary data build` does: JSONL files and the media that they name become one or two data sets of
// shards. Parallel over cores, and the result is the same whatever their number; restartable after a kill;
// nothing is visible under the output's name before all of it is complete (docs/ingestion.md).
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/conversation.h"
#include "data/media_files.h"
#include "data/shard_writer.h"

namespace lapidary {

enum class InputForm { samples, gsm8k };  ///< of the lines: sample.h, gsm8k.h
enum class OnError { error, skip };  ///< what a sample that cannot be used does: end the build, or be counted
enum class OverLong { drop, split };  ///< what becomes of documents with more than max_tokens

struct BuildOptions {
  std::vector<std::string> inputs;  ///< JSONL files, taken in this order
  std::string output;  ///< directory: OUTPUT/train and, where a share is asked for, OUTPUT/validation
  InputForm form = InputForm::samples;
  ConversationOptions conversation;
  MediaOptions media;
  std::int64_t max_tokens = 0;  ///< of a document; 0: no limit
  OverLong over_long = OverLong::drop;
  OnError on_error = OnError::error;
  double validation = 0;  ///< share of the samples, 0 <= share < 1, chosen by the hash of their content
  std::int64_t shard_bytes = ShardWriter::kShardBytes;
  int threads = 0;  ///< 0: as many as there are cores
};

/// One of the two data sets.
struct BuildCounts {
  std::int64_t samples = 0, documents = 0, tokens = 0, trained_tokens = 0;
  std::int64_t images = 0, image_tokens = 0, sounds = 0, sound_tokens = 0;
  std::int64_t video_frames = 0, video_tokens = 0;             ///< not among the images
  std::int64_t utf8_repairs = 0;                               ///< ill-formed sequences replaced by U+FFFD
  std::int64_t bad_lines = 0, bad_samples = 0, over_long = 0;  ///< dropped, by reason
  std::int64_t split = 0;                                      ///< samples that became more than one document
  std::int64_t dropped() const { return bad_lines + bad_samples + over_long; }
};

struct BuildReport {
  BuildCounts train, validation;
  std::vector<std::string> dropped_examples;  ///< the first messages, "file:line: why"
  bool resumed = false;                       ///< an interrupted build was continued
};

/// Where a build stands; given to the callback after every few samples, by one thread at a time.
struct BuildProgress {
  std::int64_t bytes_read = 0, bytes_total = 0;  ///< of the JSONL files
  std::int64_t samples = 0, documents = 0, tokens = 0, dropped = 0;
};

/// Builds the data set. Error (with file and line) for bad options, an unusable sample under OnError::error,
/// an output that exists, an interrupted build of the same output with other settings or inputs, or a result
/// without documents. `progress` may be empty; if it throws, the build stops and can be continued later.
BuildReport build_dataset(const BuildOptions& options, const Tokenizer& tokenizer,
                          const std::function<void(const BuildProgress&)>& progress = {});

}  // namespace lapidary
