#include "data/split_document.h"

#include <algorithm>
#include <utility>

namespace lapidary {
namespace {

/// Tokens [begin, end) of one medium with the marker before and behind it.
struct Span {
  std::int64_t begin, end;
};

std::vector<Span> media_spans(const Document& document) {
  std::vector<Span> spans;
  for (const DocumentImage& image : document.images) {
    const std::int64_t count = std::int64_t{image.columns} * image.rows;
    spans.push_back({image.first_token - 1, image.first_token + count + 1});
  }
  for (const DocumentSound& sound : document.sounds)
    spans.push_back({sound.first_token - 1, std::int64_t{sound.first_token} + sound.frames + 1});
  return spans;
}

/// The last of the places to cut in (begin, end]; `end` where there is none.
std::int64_t best_cut(const std::vector<std::int32_t>& cuts, std::int64_t begin, std::int64_t end) {
  const auto behind = std::upper_bound(cuts.begin(), cuts.end(), end);
  return behind != cuts.begin() && *(behind - 1) > begin ? *(behind - 1) : end;
}

/// Moves the media whose placeholders stand in [begin, end) over to the piece.
template <class Medium>
void take_media(std::vector<Medium>& from, std::int64_t begin, std::int64_t end, std::vector<Medium>& to) {
  for (Medium& medium : from) {
    if (medium.first_token < begin || medium.first_token >= end) continue;
    to.push_back(std::move(medium));
    to.back().first_token = static_cast<std::int32_t>(to.back().first_token - begin + 1);
  }
}

/// Tokens [begin, end) behind a copy of the first one.
Document piece_of(Document& document, std::int64_t begin, std::int64_t end) {
  Document piece;
  piece.source = document.source;
  piece.tokens.push_back(document.tokens.front());
  piece.tokens.insert(piece.tokens.end(), document.tokens.begin() + begin, document.tokens.begin() + end);
  piece.trained.push_back(0);
  piece.trained.insert(piece.trained.end(), document.trained.begin() + begin, document.trained.begin() + end);
  take_media(document.images, begin, end, piece.images);
  take_media(document.sounds, begin, end, piece.sounds);
  return piece;
}

}  // namespace

std::vector<Document> split_document(Document document, std::int64_t max_tokens) {
  const auto tokens = static_cast<std::int64_t>(document.tokens.size());
  std::vector<Document> pieces;
  if (tokens <= max_tokens) {
    pieces.push_back(std::move(document));
    return pieces;
  }
  const std::vector<Span> spans = media_spans(document);
  for (std::int64_t begin = 1; begin < tokens;) {
    std::int64_t end = std::min(begin + max_tokens - 1, tokens);
    for (const Span& span : spans)
      if (span.begin < end && end < span.end) end = span.begin;
    if (end <= begin) return {};
    if (end < tokens) end = best_cut(document.cuts, begin, end);
    Document piece = piece_of(document, begin, end);
    if (std::find(piece.trained.begin(), piece.trained.end(), 1) != piece.trained.end())
      pieces.push_back(std::move(piece));
    begin = end;
  }
  return pieces;
}

}  // namespace lapidary
