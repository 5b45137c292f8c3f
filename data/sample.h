// One line of a user's JSONL file, checked and brought into one form: what the renderer turns into tokens.
//
//   {"text": "..."}
//   {"prompt": "...", "completion": "..."}
//   {"messages": [{"role": "system|user|assistant", "content": "...", "reasoning": "..."}]}
//   {"input_ids": [2, 105, ...], "labels": [-100, 105, ...]}   tokenized elsewhere; text only
//
// Wherever a text stands, a list of parts may stand instead: {"type": "text", "text": ...},
// {"type": "image", "image": "picture.jpg"}, {"type": "audio", "audio": "sound.wav"}, {"type": "video",
// "video": ...}; a bare string in the list is a text. Other keys of the line ("id", "source") are left alone.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

struct Part {
  enum class Kind { text, image, audio, video };
  Kind kind = Kind::text;
  std::string value;  ///< the text, or the medium's path as the file gives it
};

struct Message {
  enum class Role { system, user, model };
  Role role = Role::user;
  std::vector<Part> parts;
  std::string reasoning;  ///< of the model, empty where there is none
};

struct Sample {
  enum class Form { text, completion, conversation, tokens };
  Form form = Form::text;
  std::vector<Part> prompt;           ///< Form::completion
  std::vector<Part> answer;           ///< Form::completion: what follows the prompt; Form::text: the text
  std::vector<Message> messages;      ///< Form::conversation, at least one
  std::vector<std::int32_t> tokens;   ///< Form::tokens, at least one
  std::vector<std::uint8_t> trained;  ///< Form::tokens: 1 where "labels" has the token, 0 where it has -100
  std::string source;                 ///< "file:line"
};

/// Reads one line. Error, opening with `source`, for anything that is not one of the four forms, for an
/// unknown role or kind of part, for tool calls, which have no rule here, and for labels that are neither
/// -100 nor the token at their place.
Sample parse_sample(std::string_view line, const std::string& source);

}  // namespace lapidary
