// Tokenizers from Hugging Face's tokenizer.json (data/tokenizer_file.h says which), with the ids that the
// `tokenizers` library gives when special tokens in the text are treated as text.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "data/added_tokens.h"
#include "data/bpe_model.h"
#include "data/tokenizer.h"

namespace lapidary {

class BpeTokenizer : public Tokenizer {
 public:
  /// From the text of a file; `name` opens the messages. `names` are never found in text, whether the file
  /// calls them special or not.
  BpeTokenizer(std::string_view json, std::string name, const TokenNames& names = {});

  using Tokenizer::encode;
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override;
  std::optional<std::int32_t> special(std::string_view name) const override;
  std::string piece(std::int32_t id) const override;
  std::int32_t vocabulary() const override { return static_cast<std::int32_t>(pieces_.size()); }
  const std::string& name() const override { return name_; }
  const std::string& fingerprint() const override { return fingerprint_; }

 private:
  BpeTokenizer(TokenizerFile file, std::string name, std::string fingerprint, const TokenNames& names);
  std::string normalize(std::string_view text) const;
  void encode_text(std::string_view text, std::vector<std::int32_t>& ids) const;
  void encode_normalized(std::string_view text, std::vector<std::int32_t>& ids) const;

  std::string name_, fingerprint_;
  std::unique_ptr<const BpeModel> model_;
  AddedTokens added_, added_normalized_;
  bool any_normalized_ = false;
  std::vector<Replacement> normalizer_;
  std::string split_after_;
  std::vector<std::string> pieces_;  ///< [vocabulary] what each id adds to a text
  std::unordered_map<std::string, std::int32_t> special_;
};

/// "bytes", or the path of a tokenizer.json or of the folder that holds one.
std::unique_ptr<const Tokenizer> load_tokenizer(const std::string& what, const TokenNames& names = {});

}  // namespace lapidary
