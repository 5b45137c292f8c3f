#include "data/bpe_model.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <functional>
#include <string>

#include "data/utf8.h"

namespace lapidary {
namespace {

constexpr std::uint32_t kBasicPlane = 65536;

std::uint64_t mix(std::uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  return key ^ (key >> 32);
}

std::uint64_t pair_key(std::uint32_t left, std::uint32_t right) {
  return (std::uint64_t{left} << 32) | right;
}

/// Value of the UTF-8 character of `length` bytes.
std::uint32_t decode_character(std::string_view text, std::size_t length) {
  const auto byte = [&](std::size_t i) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i]));
  };
  switch (length) {
    case 1:
      return byte(0);
    case 2:
      return ((byte(0) & 0x1Fu) << 6) | (byte(1) & 0x3Fu);
    case 3:
      return ((byte(0) & 0x0Fu) << 12) | ((byte(1) & 0x3Fu) << 6) | (byte(2) & 0x3Fu);
    default:
      return ((byte(0) & 0x07u) << 18) | ((byte(1) & 0x3Fu) << 12) | ((byte(2) & 0x3Fu) << 6) |
             (byte(3) & 0x3Fu);
  }
}

/// Length of a character of well-formed text, from its first byte.
std::size_t character_length(char first) {
  const auto lead = static_cast<unsigned char>(first);
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

std::uint32_t first_character(std::string_view text) {
  return decode_character(text, character_length(text[0]));
}

std::uint32_t last_character(std::string_view text) {
  std::size_t start = text.size() - 1;
  while ((static_cast<unsigned char>(text[start]) & 0xC0u) == 0x80u) --start;
  return decode_character(text.substr(start), text.size() - start);
}

/// A piece that was encoded before, if it was short.
struct Remembered {
  static constexpr std::size_t kBytes = 24, kIds = 8;
  std::uint8_t bytes = 0, count = 0;
  std::array<char, kBytes> text;
  std::array<std::int32_t, kIds> ids;
};

/// A token under construction, in a list of neighbours.
struct Symbol {
  std::int32_t id, previous, next;  ///< -1 behind the ends; id -1: swallowed by its left neighbour
};

/// A merge that was possible when it was entered.
struct Candidate {
  std::int32_t rank, position, result;
  /// For a heap whose top is the best: lowest rank, then leftmost.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

}  // namespace

/// What a thread keeps between calls.
struct BpeModel::Scratch {
  static constexpr std::size_t kPieces = 1 << 15;
  std::uint64_t instance = 0;
  std::vector<Remembered> remembered;
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;

  void use(std::uint64_t model) {
    if (instance == model) return;
    remembered.assign(kPieces, {});
    instance = model;
  }
};

BpeModel::BpeModel(const TokenizerFile& file, const std::vector<std::int32_t>& never)
    : basic_(kBasicPlane, -1), bytes_(file.bytes), ascii_joined_(std::size_t{128} * 128, false) {
  static std::atomic<std::uint64_t> instances{0};
  instance_ = ++instances;
  for (std::size_t id = 0; id < file.vocabulary.size(); ++id) {
    const std::string& token = file.vocabulary[id];
    const bool one_character = !token.empty() && character_length(token[0]) == token.size();
    if (!one_character || std::binary_search(never.begin(), never.end(), static_cast<std::int32_t>(id)))
      continue;
    const std::uint32_t character = first_character(token);
    if (character < kBasicPlane)
      basic_[character] = static_cast<std::int32_t>(id);
    else
      other_[character] = static_cast<std::int32_t>(id);
  }
  rules_.resize(std::bit_ceil(2 * file.merges.size() + 2));
  for (std::size_t rank = 0; rank < file.merges.size(); ++rank) {
    const Merge& merge = file.merges[rank];
    if (std::binary_search(never.begin(), never.end(), merge.result)) continue;
    add_rule({pair_key(static_cast<std::uint32_t>(merge.left), static_cast<std::uint32_t>(merge.right)),
              static_cast<std::int32_t>(rank), merge.result});
  }
  learn_boundaries(file);
}

/// A pair that is given again takes the later rank, as in a dictionary.
void BpeModel::add_rule(const Rule& rule) {
  const std::size_t mask = rules_.size() - 1;
  std::size_t at = mix(rule.pair) & mask;
  while (rules_[at].pair != ~std::uint64_t{0} && rules_[at].pair != rule.pair) at = (at + 1) & mask;
  rules_[at] = rule;
}

const BpeModel::Rule* BpeModel::rule(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = pair_key(static_cast<std::uint32_t>(left), static_cast<std::uint32_t>(right));
  const std::size_t mask = rules_.size() - 1;
  for (std::size_t at = mix(key) & mask;; at = (at + 1) & mask) {
    if (rules_[at].pair == key) return &rules_[at];
    if (rules_[at].pair == ~std::uint64_t{0}) return nullptr;
  }
}

/// The characters on both sides of the seam of any merge. Where two neighbouring characters of a text are no
/// such pair, no token will ever reach across.
void BpeModel::learn_boundaries(const TokenizerFile& file) {
  std::vector<std::uint64_t> pairs;
  pairs.reserve(file.merges.size());
  for (const Merge& merge : file.merges) {
    pairs.push_back(pair_key(last_character(file.vocabulary[static_cast<std::size_t>(merge.left)]),
                             first_character(file.vocabulary[static_cast<std::size_t>(merge.right)])));
  }
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  joined_.assign(std::bit_ceil(2 * pairs.size() + 2), 0);
  for (const std::uint64_t pair : pairs) {
    const auto left = static_cast<std::uint32_t>(pair >> 32), right = static_cast<std::uint32_t>(pair);
    if (left < 128 && right < 128) ascii_joined_[left * 128 + right] = true;
    std::size_t at = mix(pair) & (joined_.size() - 1);
    while (joined_[at] != 0) at = (at + 1) & (joined_.size() - 1);
    joined_[at] = pair + 1;
  }
}

bool BpeModel::may_join(std::uint32_t left, std::uint32_t right) const {
  if (left < 128 && right < 128) return ascii_joined_[left * 128 + right];
  const std::uint64_t wanted = pair_key(left, right) + 1;
  const std::size_t mask = joined_.size() - 1;
  for (std::size_t at = mix(wanted - 1) & mask; joined_[at] != 0; at = (at + 1) & mask)
    if (joined_[at] == wanted) return true;
  return false;
}

std::int32_t BpeModel::symbol(std::uint32_t character) const {
  if (character < kBasicPlane) return basic_[character];
  const auto found = other_.find(character);
  return found == other_.end() ? -1 : found->second;
}

void BpeModel::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  thread_local Scratch scratch;
  scratch.use(instance_);
  std::size_t begin = 0;
  std::uint32_t left = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = character_length(text[at]);
    const std::uint32_t right = decode_character(text.substr(at), length);
    if (at > begin && !may_join(left, right)) {
      encode_piece(text.substr(begin, at - begin), scratch, ids);
      begin = at;
    }
    left = right;
    at += length;
  }
  if (begin < text.size()) encode_piece(text.substr(begin), scratch, ids);
}

void BpeModel::encode_piece(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (piece.size() > Remembered::kBytes) return merge(piece, scratch, ids);
  Remembered& slot = scratch.remembered[std::hash<std::string_view>{}(piece) & (Scratch::kPieces - 1)];
  if (slot.bytes == piece.size() && std::memcmp(slot.text.data(), piece.data(), piece.size()) == 0) {
    ids.insert(ids.end(), slot.ids.begin(), slot.ids.begin() + slot.count);
    return;
  }
  const std::size_t before = ids.size();
  merge(piece, scratch, ids);
  const std::size_t count = ids.size() - before;
  if (count > Remembered::kIds) return;
  slot.bytes = static_cast<std::uint8_t>(piece.size());
  slot.count = static_cast<std::uint8_t>(count);
  std::memcpy(slot.text.data(), piece.data(), piece.size());
  std::copy(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end(), slot.ids.begin());
}

void BpeModel::merge(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<Candidate>& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  const auto add = [&symbols](std::int32_t id) {
    const auto at = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  };
  for (std::size_t at = 0; at < piece.size();) {
    const std::size_t length = character_length(piece[at]);
    const std::int32_t id = symbol(decode_character(piece.substr(at), length));
    if (id >= 0) {
      add(id);
    } else {
      for (std::size_t i = 0; i < length; ++i) add(bytes_[static_cast<unsigned char>(piece[at + i])]);
    }
    at += length;
  }
  symbols.back().next = -1;

  const auto consider = [&](std::int32_t position, bool sift) {
    if (position < 0) return;
    const Symbol& left = symbols[static_cast<std::size_t>(position)];
    if (left.next < 0) return;
    const Rule* found = rule(left.id, symbols[static_cast<std::size_t>(left.next)].id);
    if (found == nullptr) return;
    heap.push_back({found->rank, position, found->result});
    if (sift) std::push_heap(heap.begin(), heap.end());
  };
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) consider(static_cast<std::int32_t>(i), false);
  std::make_heap(heap.begin(), heap.end());

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbols[static_cast<std::size_t>(best.position)];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    // Its neighbours may have changed since it was entered. The reference implementation asks for the result
    // only, so another pair with the same result is merged at the old rank; so it is here.
    const Rule* found = rule(left.id, right.id);
    if (found == nullptr || found->result != best.result) continue;
    left.id = best.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = best.position;
    consider(left.previous, true);
    consider(best.position, true);
  }
  for (std::int32_t at = 0; at >= 0; at = symbols[static_cast<std::size_t>(at)].next)
    ids.push_back(symbols[static_cast<std::size_t>(at)].id);
}

}  // namespace lapidary
