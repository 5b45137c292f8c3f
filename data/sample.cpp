#include "data/sample.h"

#include <array>
#include <limits>
#include <utility>

#include "kernels/check.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

using Json = nlohmann::json;

/// Reads the values of one line; `source` opens every message.
class SampleParser {
 public:
  explicit SampleParser(const std::string& source) : source_(source) {}

  Sample parse(const Json& line) const {
    require(line.is_object(), "{}: expected a JSON object, found JSON of type {}", source_, line.type_name());
    const bool messages = line.contains("messages"), text = line.contains("text");
    const bool completion = line.contains("prompt") || line.contains("completion");
    const bool tokens = line.contains("input_ids");
    const int forms = messages + text + completion + tokens;
    require(forms == 1,
            "{}: expected exactly one of \"messages\", \"prompt\" with \"completion\", \"text\", and "
            "\"input_ids\", "
            "found {}",
            source_, forms == 0 ? "none" : "several");
    Sample sample;
    sample.source = source_;
    if (messages) {
      sample.form = Sample::Form::conversation;
      sample.messages = parse_messages(line["messages"]);
    } else if (completion) {
      sample.form = Sample::Form::completion;
      for (const char* key : {"prompt", "completion"})
        require(line.contains(key), "{}: \"prompt\" and \"completion\" go together, \"{}\" is missing",
                source_, key);
      sample.prompt = parse_content(line["prompt"], "prompt");
      sample.answer = parse_content(line["completion"], "completion");
    } else if (tokens) {
      sample.form = Sample::Form::tokens;
      parse_tokens(line, sample);
    } else {
      sample.form = Sample::Form::text;
      sample.answer = parse_content(line["text"], "text");
    }
    return sample;
  }

 private:
  /// As transformers has it: a label is the token at its own place, to be predicted from those before it.
  void parse_tokens(const Json& line, Sample& sample) const {
    constexpr std::int64_t kNotTrained = -100;
    const std::vector<std::int64_t> ids = parse_numbers(line, "input_ids");
    require(!ids.empty(), "{}: \"input_ids\" is empty", source_);
    const auto same_length = [&](const char* key) {
      std::vector<std::int64_t> numbers = parse_numbers(line, key);
      require(numbers.size() == ids.size(), "{}: \"input_ids\" has {} numbers, \"{}\" {}", source_,
              ids.size(), key, numbers.size());
      return numbers;
    };
    const auto labels = line.contains("labels") ? same_length("labels") : ids;
    const auto mask = line.contains("attention_mask") ? same_length("attention_mask")
                                                      : std::vector<std::int64_t>(ids.size(), 1);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      require(ids[i] >= 0 && ids[i] <= std::numeric_limits<std::int32_t>::max(),
              "{}: \"input_ids\" has {} at token {}, expected an id from 0 on", source_, ids[i], i);
      require(labels[i] == ids[i] || labels[i] == kNotTrained,
              "{}: \"labels\" has {} at token {}, expected {} as \"input_ids\", or {}", source_, labels[i], i,
              ids[i], kNotTrained);
      require(mask[i] == 1, "{}: \"attention_mask\" has {} at token {}: padding has to be left out", source_,
              mask[i], i);
      sample.tokens.push_back(static_cast<std::int32_t>(ids[i]));
      sample.trained.push_back(labels[i] == kNotTrained ? 0 : 1);
    }
  }

  std::vector<std::int64_t> parse_numbers(const Json& line, const char* key) const {
    const Json& list = line[key];
    require(list.is_array(), "{}: \"{}\" must be a list of whole numbers, found {}", source_, key,
            list.type_name());
    std::vector<std::int64_t> numbers;
    for (const Json& value : list) {
      require(value.is_number_integer(), "{}: \"{}\" has {} at token {}, expected a whole number", source_,
              key, value.is_number() ? value.dump() : value.type_name(), numbers.size());
      numbers.push_back(value.get<std::int64_t>());
    }
    return numbers;
  }

  std::vector<Message> parse_messages(const Json& list) const {
    require(list.is_array(), "{}: \"messages\" must be a list, found {}", source_, list.type_name());
    require(!list.empty(), "{}: \"messages\" is empty", source_);
    std::vector<Message> messages;
    for (std::size_t i = 0; i < list.size(); ++i) messages.push_back(parse_message(list[i], i + 1));
    return messages;
  }

  Message parse_message(const Json& value, std::size_t number) const {
    const std::string where = fmt::format("message {}", number);
    require(value.is_object(), "{}: {} must be an object, found {}", source_, where, value.type_name());
    for (const char* key : {"tool_calls", "tool_responses", "function_call"})
      require(!value.contains(key) || value[key].is_null() || value[key].empty(),
              "{}: {} has \"{}\": tool calls are not supported", source_, where, key);
    require(value.contains("role") && value["role"].is_string(), "{}: {} has no \"role\"", source_, where);
    Message message;
    message.role = parse_role(value["role"].get_ref<const std::string&>(), where);
    for (const char* key : {"reasoning", "reasoning_content"}) {
      if (!value.contains(key) || value[key].is_null()) continue;
      require(value[key].is_string(), "{}: \"{}\" of {} must be a string", source_, key, where);
      require(message.role == Message::Role::model, "{}: {} has \"{}\", but is not the assistant's", source_,
              where, key);
      require(message.reasoning.empty(), "{}: {} has both \"reasoning\" and \"reasoning_content\"", source_,
              where);
      message.reasoning = value[key].get<std::string>();
    }
    // OpenAI's files write null for an assistant without an answer; that is only meaningful behind a
    // reasoning.
    const bool no_content = !value.contains("content") || value["content"].is_null();
    require(!no_content || !message.reasoning.empty(), "{}: {} has no \"content\"", source_, where);
    if (!no_content) message.parts = parse_content(value["content"], "\"content\" of " + where);
    return message;
  }

  Message::Role parse_role(const std::string& role, const std::string& where) const {
    if (role == "user") return Message::Role::user;
    if (role == "assistant" || role == "model") return Message::Role::model;
    if (role == "system" || role == "developer") return Message::Role::system;
    fail("{}: {} has the role \"{}\", expected system, user or assistant", source_, where, role);
  }

  std::vector<Part> parse_content(const Json& content, const std::string& where) const {
    if (content.is_string()) return {{Part::Kind::text, content.get<std::string>()}};
    require(content.is_array(), "{}: {} must be a string or a list of parts, found {}", source_, where,
            content.type_name());
    std::vector<Part> parts;
    for (const Json& part : content) parts.push_back(parse_part(part, where));
    return parts;
  }

  Part parse_part(const Json& part, const std::string& where) const {
    if (part.is_string()) return {Part::Kind::text, part.get<std::string>()};
    require(part.is_object() && part.contains("type") && part["type"].is_string(),
            "{}: a part of {} must be a string or an object with \"type\"", source_, where);
    const std::string& type = part["type"].get_ref<const std::string&>();
    static constexpr std::array<std::pair<std::string_view, Part::Kind>, 5> kTypes = {{
        {"text", Part::Kind::text},
        {"image", Part::Kind::image},
        {"image_url", Part::Kind::image},
        {"audio", Part::Kind::audio},
        {"video", Part::Kind::video},
    }};
    for (const auto& [name, kind] : kTypes)
      if (type == name) return {kind, part_value(part, type, where)};
    fail("{}: {} has a part of type \"{}\", expected text, image, audio or video", source_, where, type);
  }

  /// The text, or the path: under the part's own type, or "path" or "url", or (OpenAI) an object with "url".
  std::string part_value(const Json& part, const std::string& type, const std::string& where) const {
    std::vector<std::string> keys = {type};
    if (type != "text") keys.insert(keys.end(), {"path", "url"});
    for (const std::string& key : keys) {
      if (!part.contains(key)) continue;
      const Json* value = &part[key];
      if (type != "text" && value->is_object() && value->contains("url")) value = &(*value)["url"];
      require(value->is_string(), "{}: \"{}\" of a part of {} must be a string", source_, key, where);
      const auto& text = value->get_ref<const std::string&>();
      require(type == "text" || !text.empty(), "{}: {} names no file for its {}", source_, where, type);
      return text;
    }
    fail("{}: a part of {} has type \"{}\" but no key \"{}\"", source_, where, type, keys.front());
  }

  const std::string& source_;
};

}  // namespace

Sample parse_sample(std::string_view line, const std::string& source) {
  return SampleParser(source).parse(parse_json(line, source));
}

}  // namespace lapidary
