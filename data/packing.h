// Packs documents into rows of a fixed number of tokens: a plan made from the documents' lengths alone, row
// after row, so that it starts at once on data of any size. Row r is a function of the data, the options and
// r.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "data/document_order.h"
#include "data/shard_reader.h"

namespace lapidary {

struct PackingOptions {
  std::int64_t sequence_length = 0;  ///< tokens of a row
  std::uint64_t seed = 0;
  bool shuffle = true;
  bool one_pass = false;           ///< end after one epoch instead of going on for ever
  std::int32_t look_ahead = 1024;  ///< documents to choose from when a row is filled
  bool skip_too_long =
      false;  ///< leave out documents that cannot be placed, instead of refusing the data set
};

struct Row {
  std::vector<Piece> pieces;  ///< Piece::document is an id over all sources
  std::int64_t tokens = 0;    ///< of all pieces, at most sequence_length
};

/// Every epoch's documents come in the order of EpochOrder. A row takes the oldest document that is waiting,
/// then again and again the longest of the look_ahead oldest ones that still fits (of equal ones the oldest).
/// So a document waits at most look_ahead rows, and every document is in exactly one row of an epoch. Longer
/// text is cut into pieces of a row's length; documents with images or sounds are never cut. Rows do not mix
/// epochs.
class RowPlan {
 public:
  /// Error where a document with images or sounds is longer than a row (unless they are skipped: the message
  /// counts them), where nothing is left to train on, or where an option is out of range.
  RowPlan(std::vector<SourceLengths> sources, const PackingOptions& options);

  /// Plans the next row; false at the end of the one pass.
  bool next(Row& row);

  std::int64_t row() const { return row_; }      ///< number of the row that next() gives
  std::int64_t epoch() const { return epoch_; }  ///< the epoch that next() continues (or has just finished)
  std::int64_t epoch_first_row() const { return epoch_first_row_; }
  /// Goes to row `row`, given that epoch `epoch` begins with row `epoch_first_row`. Plans that epoch again up
  /// to there.
  void seek(std::int64_t row, std::int64_t epoch, std::int64_t epoch_first_row);

  std::int64_t skipped_documents() const { return skipped_; }  ///< that cannot be placed, of all sources
  std::int32_t document_tokens(std::int64_t id) const;
  std::int64_t document_feature_kib(std::int64_t id) const;
  /// The source that a document id belongs to, and its number there.
  std::pair<std::size_t, std::int64_t> locate(std::int64_t id) const;

 private:
  struct Waiting {
    std::int32_t tokens;
    std::int64_t age;  // counts down: of two pieces the older has the larger
    Piece piece;
    bool operator<(const Waiting& other) const {
      return std::pair(tokens, age) < std::pair(other.tokens, other.age);
    }
  };

  void count_too_long();
  bool too_long(std::size_t source, std::int64_t document) const;
  void start_epoch(std::int64_t epoch);
  void fill_window();
  bool next_piece(Piece& piece);
  bool take_oldest(Row& row);
  bool take_longest(std::int64_t room, Row& row);
  void take(std::vector<Waiting>::iterator chosen, Row& row);

  std::vector<SourceLengths> sources_;
  std::vector<std::int64_t> first_id_;  // of every source, and the end
  PackingOptions options_;
  EpochOrder order_;
  std::vector<Waiting> window_;  // sorted by length, then age
  std::deque<Waiting> by_age_;   // the window's pieces as they came; those already taken are passed over
  Piece rest_;                   // of a long text that is being cut; empty: none
  std::int64_t age_ = 0;
  std::int64_t row_ = 0, epoch_ = 0, epoch_first_row_ = 0, skipped_ = 0;
};

}  // namespace lapidary
