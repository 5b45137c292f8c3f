#include "kernels/batch.h"

#include <algorithm>

#include "kernels/check.h"

namespace lapidary {

std::int64_t Batch::target_tokens() const {
  return std::count_if(targets.begin(), targets.end(), [](std::int32_t t) { return t >= 0; });
}

void attention_intervals(const std::vector<std::int32_t>& document, const std::vector<std::uint8_t>& vision,
                         std::int32_t window, ImageAttention rule, Intervals& full, Intervals& sliding) {
  const auto tokens = static_cast<std::int32_t>(document.size());
  require(vision.size() == document.size(), "attention_intervals: {} document entries but {} vision entries",
          document.size(), vision.size());
  require(window >= 1, "attention_intervals: window is {}, expected at least 1", window);
  for (Intervals* out : {&full, &sliding}) {
    out->lo.resize(document.size());
    out->hi.resize(document.size());
  }
  std::int32_t start = 0;           // first token of the current document
  std::int32_t begin = 0, end = 0;  // current image block [begin, end); empty outside images
  for (std::int32_t q = 0; q < tokens; ++q) {
    if (q > 0 && document[q] != document[q - 1]) start = q;
    if (!vision[q]) {
      begin = end = q;
    } else if (q >= end) {
      begin = q;
      end = q + 1;
      while (end < tokens && vision[end] && document[end] == document[q]) ++end;
    }
    const bool in_block = vision[q] != 0;
    std::int32_t full_lo = start, full_hi = q + 1;
    std::int32_t slide_lo = std::max(start, q - window + 1), slide_hi = q + 1;
    if (in_block) slide_hi = end;
    if (in_block && rule == ImageAttention::all) {
      full_lo = std::min(full_lo, begin);
      slide_lo = std::min(slide_lo, begin);
      full_hi = end;
    }
    full.lo[q] = full_lo;
    full.hi[q] = full_hi;
    sliding.lo[q] = slide_lo;
    sliding.hi[q] = slide_hi;
  }
}

namespace {

void check_features(const Features& features, const Batch& batch, const char* kind,
                    const std::string& where) {
  const auto bytes = static_cast<std::size_t>(features.count * features.width) * size_of(features.dtype);
  require(features.values.size() == bytes, "{}: {} hold {} bytes, expected {} ({} x {} {})", where, kind,
          features.values.size(), bytes, features.count, features.width, name_of(features.dtype));
  require(static_cast<std::int64_t>(features.token.size()) == features.count,
          "{}: {} {} but {} token positions for them", where, features.count, kind, features.token.size());
  for (std::size_t i = 0; i < features.token.size(); ++i) {
    const std::int32_t at = features.token[i];
    require(at >= 0 && at < batch.tokens() && (i == 0 || at > features.token[i - 1]),
            "{}: {} number {} goes to token {}, expected increasing positions below {}", where, kind, i, at,
            batch.tokens());
  }
}

void check_intervals(const Intervals& intervals, std::size_t tokens, const char* kind,
                     const std::string& where) {
  require(intervals.lo.size() == tokens && intervals.hi.size() == tokens,
          "{}: {} attention intervals have {} and {} entries, expected {}", where, kind, intervals.lo.size(),
          intervals.hi.size(), tokens);
  for (std::size_t q = 0; q < tokens; ++q) {
    const std::int32_t lo = intervals.lo[q], hi = intervals.hi[q];
    const auto self = static_cast<std::int32_t>(q);
    require(
        lo >= 0 && lo <= self && hi > self && hi <= static_cast<std::int32_t>(tokens),
        "{}: {} attention interval of token {} is [{}, {}), expected it to hold the token and lie in [0, {})",
        where, kind, q, lo, hi, tokens);
    require(
        q == 0 || (lo >= intervals.lo[q - 1] && hi >= intervals.hi[q - 1]),
        "{}: {} attention interval of token {} is [{}, {}), before it [{}, {}): both ends must not decrease",
        where, kind, q, lo, hi, q ? intervals.lo[q - 1] : 0, q ? intervals.hi[q - 1] : 0);
  }
}

}  // namespace

void check_batch(const Batch& batch, std::int32_t vocabulary, const std::vector<std::int32_t>& soft_ids,
                 const std::string& where) {
  const std::size_t tokens = batch.ids.size();
  require(batch.targets.size() == tokens && batch.positions.size() == tokens,
          "{}: {} ids, {} targets, {} positions: expected equal counts", where, tokens, batch.targets.size(),
          batch.positions.size());
  for (std::size_t t = 0; t < tokens; ++t) {
    require(batch.ids[t] >= 0 && batch.ids[t] < vocabulary, "{}: token {} has id {}, expected 0 to {}", where,
            t, batch.ids[t], vocabulary - 1);
    require(batch.targets[t] >= -1 && batch.targets[t] < vocabulary,
            "{}: token {} has target {}, expected -1 (not trained) to {}", where, t, batch.targets[t],
            vocabulary - 1);
    require(batch.positions[t] >= 0, "{}: token {} has position {}, expected at least 0", where, t,
            batch.positions[t]);
  }
  check_intervals(batch.full, tokens, "full", where);
  check_intervals(batch.sliding, tokens, "sliding", where);
  check_features(batch.patches, batch, "image patches", where);
  check_features(batch.frames, batch, "audio frames", where);
  require(batch.patch_xy.size() == 2 * batch.patches.token.size(),
          "{}: {} image patches but {} grid coordinates", where, batch.patches.count, batch.patch_xy.size());

  std::vector<std::uint8_t> filled(tokens, 0);
  for (const Features* features : {&batch.patches, &batch.frames}) {
    for (const std::int32_t at : features->token) {
      require(!filled[at], "{}: token {} is given both an image patch and an audio frame", where, at);
      filled[at] = 1;
    }
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    const bool soft = std::find(soft_ids.begin(), soft_ids.end(), batch.ids[t]) != soft_ids.end();
    require(soft == (filled[t] != 0), "{}: token {} has id {}, {}: placeholders and features do not match",
            where, t, batch.ids[t],
            soft ? "a placeholder without a feature" : "an ordinary token that a feature would replace");
  }
}

}  // namespace lapidary
