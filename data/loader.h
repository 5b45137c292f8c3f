// Streams packed batches from data sets to one rank, reading ahead in the background within a bound on
// memory. Every rank plans the same rows from the documents' lengths and takes its share: the rows of a step
// depend on data, seed and options alone, not on the number of ranks.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/document.h"
#include "data/loader_options.h"
#include "kernels/batch.h"

namespace lapidary {

/// What next() gives: this rank's share of one optimizer step, and what all ranks know of the whole.
struct StepBatches {
  std::int64_t first_row = 0;  ///< global number of the step's first row, counted over epochs
  std::int64_t rows = 0;       ///< rows_per_step, or fewer in the last step of one_pass
  std::int64_t epoch = 0;      ///< of the first row
  std::vector<Batch> micro;    ///< the same number on every rank; a batch without tokens where rows ran out
  std::vector<std::int64_t>
      samples;               ///< ids of all documents of the step on all ranks, in the order of the rows
  std::int64_t padding = 0;  ///< pad tokens in all rows of the step
};

/// Where the next row stands in the order of the data; saved in checkpoints. `data` and `order` say which
/// data and which order that is: a resume on others is refused with the difference.
struct Position {
  std::int64_t row = 0;
  std::int64_t epoch = 0,
               epoch_first_row = 0;  ///< the epoch that `row` is in: only it has to be planned again
  std::string data;                  ///< XXH3-128 over the data sets' manifests
  std::string order;                 ///< the options that decide what row r holds, in words

  bool operator==(const Position&) const = default;
};

struct LoaderStats {
  double seconds_waited = 0;       ///< in next() and done(), for data that was not there yet
  std::int64_t bytes_read = 0;     ///< from shards, by this rank
  std::int64_t shards_opened = 0;  ///< by this rank
  std::int64_t rows = 0, tokens = 0,
               padding = 0;  ///< given out so far over all ranks; tokens without padding

  /// Share of the tokens that are not padding.
  double packing_efficiency() const {
    return tokens + padding == 0 ? 1 : static_cast<double>(tokens) / static_cast<double>(tokens + padding);
  }
};

/// Row i of a step goes to rank i % ranks, as its row i / ranks; rows_per_micro of those make a micro-batch.
/// A rank has ceil(rows_per_step / (ranks * rows_per_micro)) micro-batches in every step.
///
/// Memory: the index (8 bytes a document, 32 MB a TB), read_ahead_bytes, and two steps: the one given out
/// and, where it is larger than half the read-ahead, the one being read. Member functions are for one thread.
class Loader {
 public:
  /// Reads the manifests and indices and compares the shards' sizes (each rank a part of them). Error for bad
  /// options, damaged or empty data, another token layout, and documents that no row can hold.
  explicit Loader(LoaderOptions options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next step; the first call starts reading ahead. Error where reading failed, or nothing is left of
  /// one_pass.
  StepBatches next();
  /// With one_pass: nothing is left. Otherwise always false.
  bool done();

  /// Of the row after the last step that next() gave.
  Position position() const;
  /// Goes on from `position`, of any run on the same data with the same order, whatever its ranks and batch
  /// sizes. Error saying what differs.
  void seek(const Position& position);

  LoaderStats stats() const;
  const TokenLayout& layout() const;
  std::int64_t documents() const;          ///< in all sources
  std::int64_t tokens() const;             ///< in all sources
  std::int64_t skipped_documents() const;  ///< left out by skip_too_long

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lapidary
