// Damaged text and binary files for tests that a reader survives them.
#pragma once
#include <random>
#include <string>
#include <vector>

namespace lapidary {

/// One to eight changes: bytes overwritten, removed, repeated, or words put in that a parser may stumble
/// over.
inline std::string mutate(std::string bytes, std::mt19937& random) {
  static const std::vector<std::string> words = {"{",
                                                 "}",
                                                 "[",
                                                 "]",
                                                 ",",
                                                 ":",
                                                 "\"",
                                                 "\\u0000",
                                                 "-1",
                                                 "1e400",
                                                 "null",
                                                 "18446744073709551615",
                                                 "9223372036854775807",
                                                 "4294967296",
                                                 "0",
                                                 "\"shape\":[",
                                                 "\"data_offsets\":",
                                                 "__metadata__",
                                                 "\xf0\x9f"};
  const auto below = [&](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
  };
  const std::size_t changes = 1 + below(8);
  for (std::size_t i = 0; i < changes && bytes.size() > 16; ++i) {
    const std::size_t at = below(4) == 0 ? below(8) : below(bytes.size());
    switch (below(5)) {
      case 0:
        bytes[at] = static_cast<char>(below(256));
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 2:
        bytes.erase(at, 1 + below(16));
        break;
      case 3:
        bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(64)));
        break;
      default:
        bytes.insert(at, words[below(words.size())]);
        break;
    }
  }
  return bytes;
}

}  // namespace lapidary
