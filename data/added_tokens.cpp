#include "data/added_tokens.h"

namespace lapidary {

AddedTokens::AddedTokens() {
  first_.fill(-1);
}

std::int32_t AddedTokens::child(std::int32_t node, unsigned char byte) const {
  for (const Edge& edge : nodes_[static_cast<std::size_t>(node)].edges)
    if (edge.byte == byte) return edge.node;
  return -1;
}

void AddedTokens::add(const AddedToken& token) {
  std::int32_t node = -1;
  for (const char c : token.content) {
    const auto byte = static_cast<unsigned char>(c);
    std::int32_t next = node < 0 ? first_[byte] : child(node, byte);
    if (next < 0) {
      next = static_cast<std::int32_t>(nodes_.size());
      nodes_.emplace_back();
      if (node < 0)
        first_[byte] = next;
      else
        nodes_[static_cast<std::size_t>(node)].edges.push_back({byte, next});
    }
    node = next;
  }
  nodes_[static_cast<std::size_t>(node)].token = token.id;
  nodes_[static_cast<std::size_t>(node)].special = token.special;
}

AddedTokens::Found AddedTokens::find_at(std::string_view input, std::size_t at) const {
  Found found;
  std::int32_t node = first_[static_cast<unsigned char>(input[at])];
  for (std::size_t end = at + 1; node >= 0; ++end) {
    const Node& here = nodes_[static_cast<std::size_t>(node)];
    if (here.token >= 0) found = {end - at, here.token, here.special};
    if (end == input.size()) break;
    node = child(node, static_cast<unsigned char>(input[end]));
  }
  return found;
}

}  // namespace lapidary
