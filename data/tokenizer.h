// What turns text into token ids and back, whatever the vocabulary: the byte tokenizer of the small examples
// and the reader of Hugging Face's tokenizer.json implement it. Special tokens are asked for by name and are
// never produced from text, so nothing that a user writes can imitate a turn marker or an image.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/document.h"

namespace lapidary {

/// The names under which the special tokens stand in the tokenizer's file; the defaults are Gemma 4's.
struct TokenNames {
  std::string pad = "<pad>", eos = "<eos>", bos = "<bos>";
  std::string begin_turn = "<|turn>", end_turn = "<turn|>";
  std::string begin_channel = "<|channel>", end_channel = "<channel|>";
  std::string begin_image = "<|image>", image = "<|image|>", end_image = "<image|>";
  std::string begin_audio = "<|audio>", audio = "<|audio|>", end_audio = "<audio|>";
  std::string video = "<|video|>";
};

/// Implementations are immutable: every member may be called from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Appends the ids of `text` to `ids`. A special token's name inside the text is ordinary text. Bytes that
  /// are not UTF-8 are encoded as U+FFFD where the vocabulary is made of characters.
  virtual void encode(std::string_view text, std::vector<std::int32_t>& ids) const = 0;
  std::vector<std::int32_t> encode(std::string_view text) const;

  /// Id of the token with this name among the special (or otherwise added) tokens; none where there is no
  /// such token.
  virtual std::optional<std::int32_t> special(std::string_view name) const = 0;

  /// What one id stands for: a special token's name, or the bytes that it adds to the text (not always whole
  /// characters). Error for an id outside [0, vocabulary()).
  virtual std::string piece(std::int32_t id) const = 0;
  /// The text of a sequence, special tokens written by their names.
  std::string decode(std::span<const std::int32_t> ids) const;

  /// Number of ids: the largest id + 1.
  virtual std::int32_t vocabulary() const = 0;
  /// Where it came from, for messages and manifests: "bytes" or the file's path.
  virtual const std::string& name() const = 0;
  /// Tells vocabularies apart that may have the same name: a checksum of the file.
  virtual const std::string& fingerprint() const = 0;

  /// The ids that shards carry. Error where pad, eos or bos do not exist; the others become -1 where they do
  /// not.
  TokenLayout layout(const TokenNames& names = {}) const;
};

}  // namespace lapidary
