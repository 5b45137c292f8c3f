// Finds added tokens in text, as Hugging Face's tokenizers do: from left to right, the longest at each place.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "data/tokenizer_file.h"

namespace lapidary {

class AddedTokens {
 public:
  AddedTokens();
  /// A token that is special is found like any other, so that it hides what overlaps it, but reported as
  /// text.
  void add(const AddedToken& token);

  /// Calls text(piece) and token(id) for the parts of `input` in their order; pieces of text are not empty.
  template <class Text, class Token>
  void split(std::string_view input, Text text, Token token) const {
    std::size_t begin = 0;
    for (std::size_t at = 0; at < input.size();) {
      const Found found = find_at(input, at);
      if (found.length == 0) {
        ++at;
        continue;
      }
      if (!found.special) {
        if (begin < at) text(input.substr(begin, at - begin));
        token(found.id);
        begin = at + found.length;
      }
      at += found.length;
    }
    if (begin < input.size()) text(input.substr(begin));
  }

 private:
  struct Found {
    std::size_t length = 0;  ///< 0: no token begins here
    std::int32_t id = 0;
    bool special = false;
  };
  struct Edge {
    unsigned char byte;
    std::int32_t node;
  };
  struct Node {
    std::vector<Edge> edges;
    std::int32_t token = -1;  ///< that ends here
    bool special = false;
  };

  Found find_at(std::string_view input, std::size_t at) const;
  std::int32_t child(std::int32_t node, unsigned char byte) const;

  std::array<std::int32_t, 256> first_;  ///< nodes of the first byte: almost all text leaves here
  std::vector<Node> nodes_;
};

}  // namespace lapidary
