#include "data/byte_tokenizer.h"

#include <array>

#include "kernels/check.h"

namespace lapidary {
namespace {

constexpr std::array<std::string_view, 4> kControl = {"<pad>", "<eos>", "<bos>", "<unk>"};
constexpr std::int32_t kFirstMarker = ByteTokenizer::kFirstByte + 256;
constexpr std::array<std::string_view, 11> kMarkers = {
    "<|turn>",  "<turn|>",  "<|channel>", "<channel|>", "<|image>",  "<|image|>",
    "<image|>", "<|audio>", "<|audio|>",  "<audio|>",   "<|video|>",
};

}  // namespace

void ByteTokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  ids.reserve(ids.size() + text.size());
  for (const char c : text) ids.push_back(kFirstByte + static_cast<unsigned char>(c));
}

std::optional<std::int32_t> ByteTokenizer::special(std::string_view name) const {
  for (std::size_t i = 0; i < kControl.size(); ++i)
    if (kControl[i] == name) return static_cast<std::int32_t>(i);
  for (std::size_t i = 0; i < kMarkers.size(); ++i)
    if (kMarkers[i] == name) return kFirstMarker + static_cast<std::int32_t>(i);
  return std::nullopt;
}

std::string ByteTokenizer::piece(std::int32_t id) const {
  require(id >= 0 && id < kVocabulary, "token {}: the byte vocabulary has ids 0 to {}", id, kVocabulary - 1);
  if (id < kFirstByte) return std::string(kControl[static_cast<std::size_t>(id)]);
  if (id < kFirstMarker) return std::string(1, static_cast<char>(id - kFirstByte));
  const auto marker = static_cast<std::size_t>(id - kFirstMarker);
  return marker < kMarkers.size() ? std::string(kMarkers[marker]) : fmt::format("<unused{}>", id);
}

const std::string& ByteTokenizer::name() const {
  static const std::string kName = "bytes";
  return kName;
}

}  // namespace lapidary
