// Byte-pair encoding: merges neighbours, the best pair first, until none is left.
//
// Text is cut first where no merge can ever join its two sides, which is nearly everywhere between words, and
// the short pieces that come again and again are remembered per thread. Neither changes a result: a merge
// depends on nothing outside of its piece.
#pragma once
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/tokenizer_file.h"

namespace lapidary {

/// Immutable; encode() may be called from several threads at once.
class BpeModel {
 public:
  /// Merges whose result is in `never` (sorted ids) are left out: text does not become a special token.
  BpeModel(const TokenizerFile& file, const std::vector<std::int32_t>& never);

  /// Appends the ids of `text`, which must be UTF-8.
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const;

 private:
  struct Rule {
    std::uint64_t pair = ~std::uint64_t{0};  ///< left id in the upper half, right id in the lower
    std::int32_t rank = 0, result = 0;
  };
  struct Scratch;

  std::int32_t symbol(std::uint32_t character) const;
  bool may_join(std::uint32_t left, std::uint32_t right) const;
  const Rule* rule(std::int32_t left, std::int32_t right) const;
  void add_rule(const Rule& rule);
  void learn_boundaries(const TokenizerFile& file);
  void encode_piece(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void merge(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const;

  std::vector<std::int32_t> basic_;  ///< [65536] id of each character of the basic plane, -1: none
  std::unordered_map<std::uint32_t, std::int32_t> other_;
  std::vector<std::int32_t> bytes_;
  std::vector<Rule> rules_;  ///< open addressing, a power of two
  std::vector<std::uint64_t>
      joined_;  ///< the same: pairs of characters that some merge joins, + 1 so that 0 is free
  std::vector<bool> ascii_joined_;  ///< [128 * 128]
  std::uint64_t instance_;          ///< tells the models apart whose pieces a thread may remember
};

}  // namespace lapidary
