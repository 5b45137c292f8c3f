#include "data/bpe_tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "data/byte_tokenizer.h"
#include "data/utf8.h"
#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, which stands for a space in the vocabulary

bool is_well_formed(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_length(text.substr(at));
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  result.reserve(text.size() + text.size() / 4);
  std::size_t begin = 0;
  for (std::size_t at; (at = text.find(from, begin)) != std::string_view::npos; begin = at + from.size())
    result.append(text, begin, at - begin).append(to);
  return result.append(text, begin);
}

bool is_protected(const std::string& content, const TokenNames& n) {
  const std::string* names[] = {&n.pad,           &n.eos,         &n.bos,         &n.begin_turn, &n.end_turn,
                                &n.begin_channel, &n.end_channel, &n.begin_image, &n.image,      &n.end_image,
                                &n.begin_audio,   &n.audio,       &n.end_audio,   &n.video};
  return std::any_of(std::begin(names), std::end(names),
                     [&](const std::string* name) { return *name == content; });
}

}  // namespace

BpeTokenizer::BpeTokenizer(std::string_view json, std::string name, const TokenNames& names)
    : BpeTokenizer(parse_tokenizer_file(json, name), name, checksum_of(json), names) {}

BpeTokenizer::BpeTokenizer(TokenizerFile file, std::string name, std::string fingerprint,
                           const TokenNames& names)
    : name_(std::move(name)),
      fingerprint_(std::move(fingerprint)),
      normalizer_(std::move(file.normalizer)),
      split_after_(std::move(file.split_after)) {
  std::vector<std::int32_t> never;
  for (AddedToken& token : file.added) {
    token.special |= is_protected(token.content, names);
    if (token.special) never.push_back(token.id);
    any_normalized_ |= token.normalized;
    if (token.normalized)  // looked for as the normalizer leaves it
      added_normalized_.add({token.id, normalize(token.content), token.special, true});
    else
      added_.add(token);
    special_.emplace(token.content, token.id);
  }
  std::sort(never.begin(), never.end());
  model_ = std::make_unique<BpeModel>(file, never);

  pieces_.reserve(file.vocabulary.size());
  for (const std::string& token : file.vocabulary) pieces_.push_back(replace_all(token, kSpace, " "));
  for (std::size_t byte = 0; byte < file.bytes.size(); ++byte)
    pieces_[static_cast<std::size_t>(file.bytes[byte])] = std::string(1, static_cast<char>(byte));
  for (const AddedToken& token : file.added) {
    const auto id = static_cast<std::size_t>(token.id);
    if (id >= pieces_.size()) pieces_.resize(id + 1);
    pieces_[id] = token.special ? token.content : replace_all(token.content, kSpace, " ");
  }
}

void BpeTokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  std::string repaired;
  if (!is_well_formed(text)) {
    repaired = text;
    repair_utf8(repaired);
    text = repaired;
  }
  added_.split(
      text, [&](std::string_view piece) { encode_text(piece, ids); },
      [&](std::int32_t id) { ids.push_back(id); });
}

std::string BpeTokenizer::normalize(std::string_view text) const {
  std::string normalized(text);
  for (const Replacement& step : normalizer_)
    normalized = step.from.empty() ? step.to + normalized : replace_all(normalized, step.from, step.to);
  return normalized;
}

void BpeTokenizer::encode_text(std::string_view text, std::vector<std::int32_t>& ids) const {
  const std::string normalized = normalize(text);
  if (!any_normalized_) return encode_normalized(normalized, ids);
  added_normalized_.split(
      normalized, [&](std::string_view piece) { encode_normalized(piece, ids); },
      [&](std::int32_t id) { ids.push_back(id); });
}

void BpeTokenizer::encode_normalized(std::string_view text, std::vector<std::int32_t>& ids) const {
  if (split_after_.empty()) return model_->encode(text, ids);
  while (!text.empty()) {
    const std::size_t found = text.find(split_after_);
    const std::size_t end = found == std::string_view::npos ? text.size() : found + split_after_.size();
    model_->encode(text.substr(0, end), ids);
    text.remove_prefix(end);
  }
}

std::optional<std::int32_t> BpeTokenizer::special(std::string_view name) const {
  const auto found = special_.find(std::string(name));
  return found == special_.end() ? std::nullopt : std::optional<std::int32_t>(found->second);
}

std::string BpeTokenizer::piece(std::int32_t id) const {
  require(id >= 0 && id < vocabulary(), "token {}: {} has ids 0 to {}", id, name_, vocabulary() - 1);
  const std::string& piece = pieces_[static_cast<std::size_t>(id)];
  return piece.empty() ? fmt::format("<unused id {}>", id) : piece;
}

std::unique_ptr<const Tokenizer> load_tokenizer(const std::string& what, const TokenNames& names) {
  if (what == "bytes") return std::make_unique<ByteTokenizer>();
  const std::filesystem::path path = std::filesystem::is_directory(what)
                                         ? std::filesystem::path(what) / "tokenizer.json"
                                         : std::filesystem::path(what);
  return std::make_unique<BpeTokenizer>(read_text_file(path.string(), kMaxTokenizerFile), path.string(),
                                        names);
}

}  // namespace lapidary
