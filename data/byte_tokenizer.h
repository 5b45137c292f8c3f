// A vocabulary that needs no file: one token for each of the 256 bytes, behind the special tokens of Gemma
// 4's markup. It serves small models and tests; every byte string is encoded exactly, UTF-8 or not.
//
//   id 0 <pad>   1 <eos>   2 <bos>   3 <unk>   4 + b: the byte b   then
//   260 <|turn>   261 <turn|>   262 <|channel>  263 <channel|>  264 <|image>  265 <|image|>  266 <image|>
//   267 <|audio>  268 <|audio|> 269 <audio|>    270 <|video|>   271..287 unused, so that 288 = 9 * 32 divides
//   well
#pragma once
#include "data/tokenizer.h"

namespace lapidary {

class ByteTokenizer : public Tokenizer {
 public:
  static constexpr std::int32_t kFirstByte = 4;
  static constexpr std::int32_t kVocabulary = 288;

  using Tokenizer::encode;
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override;
  std::optional<std::int32_t> special(std::string_view name) const override;
  std::string piece(std::int32_t id) const override;
  std::int32_t vocabulary() const override { return kVocabulary; }
  const std::string& name() const override;
  const std::string& fingerprint() const override { return name(); }
};

}  // namespace lapidary
