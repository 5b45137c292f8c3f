#include "data/tokenizer.h"

#include "kernels/check.h"

namespace lapidary {

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  encode(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) text += piece(id);
  return text;
}

TokenLayout Tokenizer::layout(const TokenNames& names) const {
  const auto needed = [this](const std::string& token, const char* key) {
    const auto id = special(token);
    require(id.has_value(), "{}: the tokenizer has no token \"{}\" (markup key {})", name(), token, key);
    return *id;
  };
  const auto possible = [this](const std::string& token) { return special(token).value_or(-1); };
  TokenLayout layout;
  layout.vocabulary = vocabulary();
  layout.pad = needed(names.pad, "pad");
  layout.eos = needed(names.eos, "eos");
  layout.bos = needed(names.bos, "bos");
  layout.begin_image = possible(names.begin_image);
  layout.image = possible(names.image);
  layout.end_image = possible(names.end_image);
  layout.begin_audio = possible(names.begin_audio);
  layout.audio = possible(names.audio);
  layout.end_audio = possible(names.end_audio);
  layout.video = possible(names.video);
  return layout;
}

}  // namespace lapidary
