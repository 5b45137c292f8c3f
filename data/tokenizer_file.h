// Hugging Face's tokenizer.json, as far as Gemma's files use it: byte-pair encoding with byte fallback,
// simple text replacement before it, and added tokens. Whatever else a file asks for is refused by name: a
// rule that is silently left out would train the model on other tokens than those it is served with.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lapidary {

struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;     ///< never found in text
  bool normalized = false;  ///< looked for behind the normalizer instead of before it
};

/// One step of the normalizer: with an empty `from`, `to` is put in front of every piece of text.
struct Replacement {
  std::string from, to;
};

/// Two neighbours that become one token; the earlier in the list, the sooner. Ids of the vocabulary.
struct Merge {
  std::int32_t left = 0, right = 0, result = 0;
};

struct TokenizerFile {
  std::vector<std::string>
      vocabulary;                   ///< [largest id + 1] without added tokens; empty where an id is not used
  std::vector<std::int32_t> bytes;  ///< [256] ids of <0x00> to <0xFF>
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  std::vector<Replacement> normalizer;
  std::string split_after;  ///< the pre-tokenizer cuts behind every occurrence; empty: it does not cut
};

/// Limits of what is read: a file twice as large as the largest published ones.
inline constexpr std::int64_t kMaxTokenizerFile = std::int64_t{128} << 20;
inline constexpr std::int64_t kMaxTokenId = std::int64_t{1} << 22;

/// Reads the text of a file; `name` opens the messages. Error for ill-formed or contradictory content and for
/// every feature that is not covered here.
TokenizerFile parse_tokenizer_file(std::string_view json, const std::string& name);

}  // namespace lapidary
