#include "data/packing.h"

#include <algorithm>
#include <limits>

#include "kernels/check.h"

namespace lapidary {

RowPlan::RowPlan(std::vector<SourceLengths> sources, const PackingOptions& options)
    : sources_(std::move(sources)), options_(options), order_(sources_, options.seed, options.shuffle) {
  require(options_.sequence_length >= 2 &&
              options_.sequence_length <= std::numeric_limits<std::int32_t>::max() / 2,
          "sequence_length is {}, expected 2 to {}", options_.sequence_length,
          std::numeric_limits<std::int32_t>::max() / 2);
  require(options_.look_ahead >= 1 && options_.look_ahead <= 1 << 20, "look_ahead is {}, expected 1 to {}",
          options_.look_ahead, 1 << 20);
  first_id_.push_back(0);
  for (const SourceLengths& source : sources_) {
    first_id_.push_back(first_id_.back() + static_cast<std::int64_t>(source.tokens.size()));
  }
  count_too_long();
  start_epoch(0);
}

void RowPlan::count_too_long() {
  for (std::size_t s = 0; s < sources_.size(); ++s) {
    std::int64_t count = 0, longest = 0;
    const auto documents = static_cast<std::int64_t>(sources_[s].tokens.size());
    for (std::int64_t d = 0; d < documents; ++d) {
      if (!too_long(s, d)) continue;
      if (count++ == 0 || sources_[s].tokens[d] > sources_[s].tokens[longest]) longest = d;
    }
    require(count == 0 || options_.skip_too_long,
            "{}: {} of {} documents hold images or sounds and are longer than a row of {} tokens (the "
            "longest, document "
            "{}, has {}): raise data.sequence_length, or set data.overlong: skip",
            sources_[s].name, count, documents, options_.sequence_length, longest,
            count ? sources_[s].tokens[longest] : 0);
    skipped_ += count;
  }
  require(skipped_ < first_id_.back(),
          "all {} documents hold images or sounds and are longer than a row of {} tokens", first_id_.back(),
          options_.sequence_length);
}

bool RowPlan::too_long(std::size_t source, std::int64_t document) const {
  return sources_[source].tokens[document] > options_.sequence_length &&
         sources_[source].feature_kib[document] > 0;
}

std::pair<std::size_t, std::int64_t> RowPlan::locate(std::int64_t id) const {
  const auto after = std::upper_bound(first_id_.begin(), first_id_.end(), id);
  const auto source = static_cast<std::size_t>(after - first_id_.begin()) - 1;
  return {source, id - first_id_[source]};
}

std::int32_t RowPlan::document_tokens(std::int64_t id) const {
  const auto [source, document] = locate(id);
  return sources_[source].tokens[document];
}

std::int64_t RowPlan::document_feature_kib(std::int64_t id) const {
  const auto [source, document] = locate(id);
  return sources_[source].feature_kib[document];
}

void RowPlan::start_epoch(std::int64_t epoch) {
  epoch_ = epoch;
  epoch_first_row_ = row_;
  order_.start(epoch);
  window_.clear();
  by_age_.clear();
  rest_ = {};
}

/// The next document that can be placed, or the next part of a long text.
bool RowPlan::next_piece(Piece& piece) {
  while (rest_.tokens() == 0) {
    const std::int64_t id = order_.next();
    if (id < 0) return false;
    const auto [source, document] = locate(id);
    if (!too_long(source, document)) rest_ = {id, 0, sources_[source].tokens[document]};
  }
  piece = rest_;
  piece.end =
      static_cast<std::int32_t>(std::min<std::int64_t>(rest_.end, rest_.begin + options_.sequence_length));
  rest_.begin = piece.end;
  return true;
}

void RowPlan::fill_window() {
  Piece piece;
  while (window_.size() < static_cast<std::size_t>(options_.look_ahead) && next_piece(piece)) {
    const Waiting waiting{piece.tokens(), --age_, piece};
    window_.insert(std::upper_bound(window_.begin(), window_.end(), waiting), waiting);
    by_age_.push_back(waiting);
  }
}

void RowPlan::take(std::vector<Waiting>::iterator chosen, Row& row) {
  row.pieces.push_back(chosen->piece);
  row.tokens += chosen->tokens;
  window_.erase(chosen);
}

bool RowPlan::take_oldest(Row& row) {
  while (!by_age_.empty()) {
    const Waiting oldest = by_age_.front();
    by_age_.pop_front();
    const auto at = std::lower_bound(window_.begin(), window_.end(), oldest);
    if (at == window_.end() || at->age != oldest.age) continue;  // already in a row
    take(at, row);
    return true;
  }
  return false;
}

bool RowPlan::take_longest(std::int64_t room, Row& row) {
  const Waiting limit{static_cast<std::int32_t>(room), std::numeric_limits<std::int64_t>::max(), {}};
  const auto after = std::upper_bound(window_.begin(), window_.end(), limit);
  if (after == window_.begin()) return false;
  take(after - 1, row);
  return true;
}

bool RowPlan::next(Row& row) {
  row = {};
  fill_window();
  while (!take_oldest(row)) {
    if (options_.one_pass) return false;
    start_epoch(epoch_ + 1);
    fill_window();
  }
  do {
    fill_window();
  } while (take_longest(options_.sequence_length - row.tokens, row));
  ++row_;
  return true;
}

void RowPlan::seek(std::int64_t row, std::int64_t epoch, std::int64_t epoch_first_row) {
  require(epoch >= 0 && epoch_first_row >= 0 && row >= epoch_first_row,
          "cannot go to row {} of an epoch {} that begins with row {}", row, epoch, epoch_first_row);
  row_ = epoch_first_row;
  start_epoch(epoch);
  Row passed;
  while (row_ < row) {
    require(next(passed), "cannot go to row {}: the data ends after {} rows", row, row_);
  }
}

}  // namespace lapidary
