// One side of a build, training or validation: its shard writer, its counters, and where it continues after a
// kill.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/build.h"
#include "data/drop_log.h"

namespace lapidary {

/// What became of one line of the input.
struct SampleOutcome {
  enum class Kind { documents, bad_line, bad_sample, over_long };
  Kind kind = Kind::documents;
  std::vector<Document> documents;  ///< one, or several pieces; none if the sample was dropped
  std::string message;              ///< why it was dropped
  std::int64_t utf8_repairs = 0;
};

/// Not thread-safe.
class BuildSplit {
 public:
  /// Continues what an interrupted build left in `directory`. A directory that is finished already stays as
  /// it is.
  BuildSplit(const std::filesystem::path& directory, const TokenLayout& layout, std::int64_t shard_bytes);

  /// Samples before this one (counted over all inputs, from 0) are in committed shards.
  std::int64_t first_sample() const { return first_sample_; }

  /// Takes the outcome of sample `number`; numbers only grow. Commits a shard whenever one is full.
  void add(std::int64_t number, const SampleOutcome& outcome);

  /// Completes the data set. `notes` becomes part of its manifest, with the counters.
  void finish(nlohmann::json notes);

  const BuildCounts& counts() const { return counts_; }
  const std::vector<std::string>& examples() const { return examples_; }

 private:
  void drop(const SampleOutcome& outcome);
  void restore(const nlohmann::json& state);
  nlohmann::json state() const;

  TokenLayout layout_;
  std::optional<ShardWriter> writer_;  ///< none: finished already
  std::optional<DropLog> drop_log_;    ///< with the writer
  std::int64_t first_sample_ = 0;
  BuildCounts counts_;
  std::vector<std::string> examples_;  ///< of dropped samples
};

}  // namespace lapidary
