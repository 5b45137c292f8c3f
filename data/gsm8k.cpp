#include "data/gsm8k.h"

#include <algorithm>

#include "data/utf8.h"
#include "kernels/check.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

std::string text_of(const nlohmann::json& line, const char* key, const std::string& source) {
  require(line.contains(key) && line[key].is_string(),
          "{}: expected a text under \"{}\", as in GSM8K's files", source, key);
  std::string text(trim(line[key].get_ref<const std::string&>()));
  require(!text.empty(), "{}: \"{}\" is empty", source, key);
  return text;
}

std::string without_notes(const std::string& answer, const std::string& source) {
  std::string text;
  for (std::size_t at = 0;;) {
    const std::size_t begin = answer.find("<<", at);
    text += answer.substr(at, begin - at);
    if (begin == std::string::npos) return text;
    const std::size_t end = answer.find(">>", begin);
    require(end != std::string::npos, "{}: the note \"{:.40}\" in \"answer\" has no \">>\"", source,
            answer.substr(begin));
    at = end + 2;
  }
}

void check_result(std::string_view answer, const std::string& source) {
  constexpr std::string_view kMark = "#### ";
  const std::size_t line_end = answer.rfind('\n');
  std::string_view last = line_end == std::string_view::npos ? answer : answer.substr(line_end + 1);
  const bool marked = last.substr(0, kMark.size()) == kMark;
  if (marked) last.remove_prefix(kMark.size());
  const bool number = std::any_of(last.begin(), last.end(), [](char c) { return c >= '0' && c <= '9'; }) &&
                      last.find_first_not_of("-0123456789.,") == std::string_view::npos;
  require(marked && number, "{}: the last line of \"answer\" is \"{:.40}\", expected \"#### \" and a number",
          source, last);
}

}  // namespace

Sample parse_gsm8k(std::string_view line, const std::string& source) {
  const nlohmann::json value = parse_json(line, source);
  require(value.is_object(), "{}: expected a JSON object, found JSON of type {}", source, value.type_name());
  const std::string answer = without_notes(text_of(value, "answer", source), source);
  check_result(answer, source);
  Sample sample;
  sample.form = Sample::Form::conversation;
  sample.source = source;
  sample.messages = {{Message::Role::user, {{Part::Kind::text, text_of(value, "question", source)}}, ""},
                     {Message::Role::model, {{Part::Kind::text, answer}}, ""}};
  return sample;
}

}  // namespace lapidary
