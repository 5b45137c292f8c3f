// YAML as a configuration may use it, read into a small tree that remembers where everything stood.
// yaml-cpp's own nodes keep the first of two equal keys without a word and convert 010 to 8 and yes to true;
// here the scanner's events are taken instead, and every scalar stays the text that was written.
#pragma once
#include <string>
#include <vector>

#include "trainer/config_problems.h"

namespace lapidary {

struct YamlEntry;

struct YamlNode {
  enum class Kind { null, scalar, sequence, map };

  Kind kind = Kind::null;
  ConfigPlace place;
  std::string text;     ///< of a scalar, quotes and escapes resolved
  bool quoted = false;  ///< the scalar was written in quotes (or as a block): it is text, not a number
  std::vector<YamlNode> items;     ///< of a sequence
  std::vector<YamlEntry> entries;  ///< of a map, in order, without repeated keys

  /// For messages: "a list", "keys and values", "nothing", or the scalar in quotes.
  std::string describe() const;
};

struct YamlEntry {
  std::string key;
  ConfigPlace place;
  YamlNode value;
};

/// The one document in `text`; an empty one is null. `source` names it in messages, with line and column
/// where `positions` (a --set value has none). Repeated keys, anchors, aliases, tags, keys that are not words
/// and a second document are added to `problems`; what is not YAML at all, or nested too deep, throws Error
/// with line and column.
YamlNode parse_yaml(const std::string& text, const std::string& source, bool positions,
                    ConfigProblems& problems);

}  // namespace lapidary
