#include "data/tokenizer_file.h"

#include <unordered_map>

#include "kernels/check.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

using Json = nlohmann::json;
using Type = Json::value_t;
using Vocabulary = std::unordered_map<std::string, std::int32_t>;

class FileParser {
 public:
  explicit FileParser(const std::string& name) : name_(name) {}

  TokenizerFile parse(const Json& file) {
    const Json& model = json_member(file, "model", Type::object, name_);
    check_model(model);
    TokenizerFile result;
    read_vocabulary(json_member(model, "vocab", Type::object, name_), result);
    read_bytes(result);
    read_merges(json_member(model, "merges", Type::array, name_), result);
    if (file.contains("added_tokens"))
      for (const Json& token : json_member(file, "added_tokens", Type::array, name_))
        read_added(token, result);
    if (file.contains("normalizer")) read_normalizer(file["normalizer"], result);
    if (file.contains("pre_tokenizer")) read_pre_tokenizer(file["pre_tokenizer"], result);
    check_post_processor(file);
    check_decoder(file);
    return result;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    fail("{}: {}: only Gemma's kind of tokenizer.json is supported", name_, what);
  }

  std::string type_of(const Json& part, const char* what) const {
    return json_string(part, "type", fmt::format("{}: {}", name_, what));
  }

  static bool is_absent(const Json& object, const char* key) {
    return !object.contains(key) || object[key].is_null();
  }
  static bool is_empty(const Json& object, const char* key) {
    return is_absent(object, key) ||
           (object[key].is_string() && object[key].get_ref<const std::string&>().empty());
  }
  static bool is_true(const Json& object, const char* key) {
    return object.contains(key) && object[key].is_boolean() && object[key].get<bool>();
  }

  void check_model(const Json& model) const {
    const std::string type = model.contains("type") ? type_of(model, "model") : "BPE";
    if (type != "BPE") refuse(fmt::format("the model is \"{}\", expected \"BPE\"", type));
    if (!is_true(model, "byte_fallback")) refuse("the model has no byte_fallback");
    if (is_true(model, "ignore_merges")) refuse("the model has ignore_merges");
    const bool dropout =
        !is_absent(model, "dropout") && !(model["dropout"].is_number() && model["dropout"] == 0);
    if (dropout) refuse("the model has dropout");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!is_empty(model, key)) refuse(fmt::format("the model has a {}", key));
  }

  std::int32_t read_id(const Json& value, const std::string& token) const {
    const std::int64_t id = as_count(value, fmt::format("{}: id of \"{}\"", name_, token));
    require(id < kMaxTokenId, "{}: the id of \"{}\" is {}, more than the {} allowed", name_, token, id,
            kMaxTokenId - 1);
    return static_cast<std::int32_t>(id);
  }

  void read_vocabulary(const Json& vocab, TokenizerFile& result) {
    ids_.reserve(vocab.size());
    for (const auto& [token, value] : vocab.items()) {
      require(!token.empty(), "{}: the vocabulary has an empty token", name_);
      const std::int32_t id = read_id(value, token);
      if (static_cast<std::size_t>(id) >= result.vocabulary.size())
        result.vocabulary.resize(static_cast<std::size_t>(id) + 1);
      std::string& entry = result.vocabulary[static_cast<std::size_t>(id)];
      require(entry.empty(), "{}: \"{}\" and \"{}\" have the same id {}", name_, entry, token, id);
      entry = token;
      ids_.emplace(token, id);
    }
    require(!ids_.empty(), "{}: the vocabulary is empty", name_);
  }

  void read_bytes(TokenizerFile& result) const {
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = ids_.find(fmt::format("<0x{:02X}>", byte));
      require(found != ids_.end(), "{}: byte fallback needs the token <0x{:02X}>, which is missing", name_,
              byte);
      result.bytes.push_back(found->second);
    }
  }

  void read_merges(const Json& merges, TokenizerFile& result) const {
    result.merges.reserve(merges.size());
    std::vector<bool> is_byte(result.vocabulary.size(), false);
    for (const std::int32_t id : result.bytes) is_byte[static_cast<std::size_t>(id)] = true;
    for (std::size_t i = 0; i < merges.size(); ++i) {
      const auto [left, right] = read_pair(merges[i], i);
      const auto id = [&, at = i](const std::string& token) {
        const auto found = ids_.find(token);
        require(found != ids_.end(), "{}: merge {} needs \"{}\", which is not in the vocabulary", name_, at,
                token);
        return found->second;
      };
      result.merges.push_back({id(left), id(right), id(left + right)});
      const Merge& merge = result.merges.back();
      for (const std::int32_t part : {merge.left, merge.right})
        if (is_byte[static_cast<std::size_t>(part)])
          refuse(fmt::format("merge {} joins the byte token {}", i,
                             result.vocabulary[static_cast<std::size_t>(part)]));
    }
  }

  /// ["a", "b"], or the older "a b".
  std::pair<std::string, std::string> read_pair(const Json& merge, std::size_t number) const {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
      return {merge[0].get<std::string>(), merge[1].get<std::string>()};
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      const std::size_t space = text.find(' ');
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
        return {text.substr(0, space), text.substr(space + 1)};
    }
    fail("{}: merge {} is not a pair of tokens", name_, number);
  }

  void read_added(const Json& token, TokenizerFile& result) {
    const std::string where = fmt::format("{}: added token {}", name_, result.added.size());
    AddedToken added;
    added.content = json_string(token, "content", where);
    require(!added.content.empty(), "{}: is empty", where);
    require(token.contains("id"), "{}: \"id\" is missing", where);
    added.id = read_id(token["id"], added.content);
    added.special = is_true(token, "special");
    added.normalized = is_true(token, "normalized");
    for (const char* key : {"single_word", "lstrip", "rstrip"})
      if (is_true(token, key)) refuse(fmt::format("the added token \"{}\" has {}", added.content, key));
    check_added_id(added, where);
    const auto [place, is_new] = added_by_id_.emplace(added.id, result.added.size());
    if (!is_new) {
      const std::string& other = result.added[place->second].content;
      require(other == added.content, "{}: \"{}\" and \"{}\" have the same id {}", where, other,
              added.content, added.id);
      return;  // the same token twice
    }
    check_free(added, result, where);
    result.added.push_back(std::move(added));
  }

  /// A token of the vocabulary keeps its id when it is also an added token.
  void check_added_id(const AddedToken& added, const std::string& where) const {
    const auto known = ids_.find(added.content);
    if (known == ids_.end()) return;
    require(known->second == added.id, "{}: \"{}\" has the id {}, but {} in the vocabulary", where,
            added.content, added.id, known->second);
  }

  /// An id belongs to one token.
  void check_free(const AddedToken& added, const TokenizerFile& result, const std::string& where) const {
    const auto id = static_cast<std::size_t>(added.id);
    if (id >= result.vocabulary.size() || result.vocabulary[id].empty()) return;
    require(result.vocabulary[id] == added.content,
            "{}: \"{}\" has the id {}, which is \"{}\" in the vocabulary", where, added.content, added.id,
            result.vocabulary[id]);
  }

  /// The literal text that a step looks for; regular expressions are another matter.
  std::string literal_pattern(const Json& step, const char* what) const {
    const std::string where = fmt::format("{}: {}", name_, what);
    const Json& pattern = json_member(step, "pattern", Type::object, where);
    if (!pattern.contains("String")) refuse(fmt::format("the {} has a pattern that is not a string", what));
    const std::string text = json_string(pattern, "String", where);
    require(!text.empty(), "{} has an empty pattern", where);
    return text;
  }

  void read_normalizer(const Json& normalizer, TokenizerFile& result) const {
    if (normalizer.is_null()) return;
    const std::string where = name_ + ": normalizer";
    const std::string type = type_of(normalizer, "normalizer");
    if (type == "Sequence") {
      for (const Json& step : json_member(normalizer, "normalizers", Type::array, where))
        read_normalizer(step, result);
    } else if (type == "Replace") {
      result.normalizer.push_back(
          {literal_pattern(normalizer, "normalizer"), json_string(normalizer, "content", where)});
    } else if (type == "Prepend") {
      result.normalizer.push_back({"", json_string(normalizer, "prepend", where)});
    } else {
      refuse(fmt::format("the normalizer \"{}\" is not known", type));
    }
  }

  void read_pre_tokenizer(const Json& pre_tokenizer, TokenizerFile& result) const {
    if (pre_tokenizer.is_null()) return;
    const std::string type = type_of(pre_tokenizer, "pre_tokenizer");
    if (type != "Split") refuse(fmt::format("the pre_tokenizer \"{}\" is not known", type));
    const std::string behavior = json_string(pre_tokenizer, "behavior", name_ + ": pre_tokenizer");
    if (behavior != "MergedWithPrevious")
      refuse(fmt::format("the pre_tokenizer's behavior \"{}\" is not known", behavior));
    if (is_true(pre_tokenizer, "invert")) refuse("the pre_tokenizer has invert");
    result.split_after = literal_pattern(pre_tokenizer, "pre_tokenizer");
  }

  /// Adds <bos> around a text; conversations write theirs themselves.
  void check_post_processor(const Json& file) const {
    if (is_absent(file, "post_processor")) return;
    const std::string type = type_of(file["post_processor"], "post_processor");
    if (type != "TemplateProcessing") refuse(fmt::format("the post_processor \"{}\" is not known", type));
  }

  void check_decoder(const Json& file) const {
    if (is_absent(file, "decoder")) return;
    const Json& decoder = file["decoder"];
    const bool sequence = type_of(decoder, "decoder") == "Sequence";
    const Json steps =
        sequence ? json_member(decoder, "decoders", Type::array, name_ + ": decoder") : Json{decoder};
    for (const Json& step : steps) {
      const std::string type = type_of(step, "decoder");
      if (type != "Replace" && type != "ByteFallback" && type != "Fuse" && type != "Strip")
        refuse(fmt::format("the decoder \"{}\" is not known", type));
    }
  }

  const std::string& name_;
  Vocabulary ids_;
  std::unordered_map<std::int32_t, std::size_t> added_by_id_;
};

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view json, const std::string& name) {
  return FileParser(name).parse(parse_json(json, name));
}

}  // namespace lapidary
