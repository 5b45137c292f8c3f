#include "data/utf8.h"

#include <algorithm>
#include <cstdint>

namespace lapidary {
namespace {

unsigned byte_at(std::string_view text, std::size_t i) {
  return static_cast<unsigned char>(text[i]);
}
bool is_ascii(char c) {
  return static_cast<unsigned char>(c) < 0x80;
}

/// How many bytes of the front belong together: a whole character, or the longest prefix of one ("maximal
/// subpart").
struct Piece {
  std::size_t length;
  bool whole;
};

Piece front(std::string_view text) {
  const unsigned lead = byte_at(text, 0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const std::size_t wanted = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (std::size_t i = 1; i < wanted; ++i) {
    unsigned low = 0x80, high = 0xBF;
    if (i == 1) {  // the second byte's range keeps out overlong forms, surrogates and values above U+10FFFF
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (i >= text.size() || byte_at(text, i) < low || byte_at(text, i) > high) return {i, false};
  }
  return {wanted, true};
}

/// Bytes of the white-space character at the front, 0 if there is none.
std::size_t space_length(std::string_view text) {
  const unsigned c = byte_at(text, 0);
  if ((c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20)) return 1;
  if (c == 0xC2 && text.size() >= 2) return byte_at(text, 1) == 0x85 || byte_at(text, 1) == 0xA0 ? 2 : 0;
  if (text.size() < 3 || c < 0xE1 || c > 0xE3) return 0;
  const unsigned code = ((c & 0x0Fu) << 12) | ((byte_at(text, 1) & 0x3Fu) << 6) | (byte_at(text, 2) & 0x3Fu);
  const bool space = code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
                     code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
  return space ? 3 : 0;
}

}  // namespace

std::size_t utf8_length(std::string_view text) {
  const Piece piece = front(text);
  return piece.whole ? piece.length : 0;
}

std::size_t repair_utf8(std::string& text) {
  // Almost all text is well-formed: look first, copy only when something is found.
  std::size_t at = 0;
  const auto skip_good = [&] {
    while (at < text.size()) {
      if (is_ascii(text[at])) {
        ++at;
        continue;
      }
      const Piece piece = front(std::string_view(text).substr(at));
      if (!piece.whole) return;
      at += piece.length;
    }
  };
  skip_good();
  if (at == text.size()) return 0;

  std::string repaired;
  std::size_t kept = 0, count = 0;
  while (at < text.size()) {
    repaired.append(text, kept, at - kept).append("\xEF\xBF\xBD");
    at += front(std::string_view(text).substr(at)).length;
    kept = at;
    ++count;
    skip_good();
  }
  repaired.append(text, kept);
  text = std::move(repaired);
  return count;
}

std::string_view trim(std::string_view text) {
  while (!text.empty()) {
    const std::size_t n = space_length(text);
    if (n == 0) break;
    text.remove_prefix(n);
  }
  while (!text.empty()) {
    std::size_t start = text.size() - 1;  // first byte of the last character
    while (start > 0 && (byte_at(text, start) & 0xC0u) == 0x80u) --start;
    if (space_length(text.substr(start)) != text.size() - start) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

}  // namespace lapidary
