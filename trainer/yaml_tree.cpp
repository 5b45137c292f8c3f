#include "trainer/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <optional>
#include <sstream>
#include <unordered_map>

#include "kernels/check.h"

namespace lapidary {
namespace {

// Section, key, list, source, path: nothing in the format needs more.
constexpr std::size_t kMostLevels = 16;

class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const std::string& text, const std::string& source, bool positions, ConfigProblems& problems)
      : text_(text), source_(source), positions_(positions), problems_(problems) {}

  YamlNode take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    check_plain(mark, "?", anchor);
    attach(node(YamlNode::Kind::null, mark));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    problems_.add(place(mark), path(), "aliases are not taken here; write the value out");
    if (!levels_.empty() && levels_.back().key) {
      levels_.back().key.reset();  // one complaint is enough
    } else {
      attach(node(YamlNode::Kind::null, mark));
    }
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    check_plain(mark, tag, anchor);
    YamlNode scalar = node(YamlNode::Kind::scalar, mark);
    scalar.text = value;
    scalar.quoted = tag == "!";
    if (scalar.quoted) check_quotes(mark);
    attach(std::move(scalar));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(YamlNode::Kind::sequence, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(YamlNode::Kind::map, mark, tag, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Level {
    YamlNode node;
    std::optional<YamlNode> key;                    // of a map: read, its value still to come
    std::unordered_map<std::string, int> key_line;  // of a map: where each key stood
  };

  ConfigPlace place(const YAML::Mark& mark) const {
    return positions_ ? ConfigPlace{source_, mark.line + 1, mark.column + 1} : ConfigPlace{source_};
  }

  YamlNode node(YamlNode::Kind kind, const YAML::Mark& mark) const {
    YamlNode made;
    made.kind = kind;
    made.place = place(mark);
    return made;
  }

  // The dotted keys that lead to where the scanner stands.
  std::string path() const {
    std::string joined;
    for (const auto& level : levels_) {
      if (level.key && level.key->kind == YamlNode::Kind::scalar)
        joined += (joined.empty() ? "" : ".") + level.key->text;
    }
    return joined;
  }

  void check_plain(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) problems_.add(place(mark), path(), "anchors are not taken here; write the value out");
    if (!tag.empty() && tag != "?" && tag != "!")
      problems_.add(place(mark), path(), fmt::format("the tag {} is not taken here", quote_found(tag)));
  }

  // The scanner takes the end of the file for a closing quote.
  void check_quotes(const YAML::Mark& mark) {
    auto at = static_cast<std::size_t>(mark.pos);
    const char quote = at < text_.size() ? text_[at] : '\0';
    if (quote != '"' && quote != '\'') return;  // a block
    while (++at < text_.size()) {
      if (quote == '"' && text_[at] == '\\') {
        ++at;
      } else if (text_[at] == quote) {
        if (quote == '"' || at + 1 >= text_.size() || text_[at + 1] != quote) return;
        ++at;  // two single quotes stand for one
      }
    }
    problems_.add(place(mark), path(), "the quote is not closed");
  }

  void open(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    check_plain(mark, tag, anchor);
    require(levels_.size() < kMostLevels, "{}: nested deeper than {} levels", place(mark).text(),
            kMostLevels);
    levels_.push_back({node(kind, mark), std::nullopt, {}});
  }

  void close() {
    YamlNode done = std::move(levels_.back().node);
    levels_.pop_back();
    attach(std::move(done));
  }

  void attach(YamlNode value) {
    if (levels_.empty()) {
      root_ = std::move(value);
    } else if (levels_.back().node.kind == YamlNode::Kind::sequence) {
      levels_.back().node.items.push_back(std::move(value));
    } else if (!levels_.back().key) {
      if (value.kind != YamlNode::Kind::scalar)
        problems_.add(value.place, path(), fmt::format("a key must be a word, found {}", value.describe()));
      levels_.back().key = std::move(value);
    } else {
      attach_entry(levels_.back(), std::move(value));
    }
  }

  void attach_entry(Level& map, YamlNode value) {
    if (value.kind == YamlNode::Kind::null)
      value.place = map.key->place;  // the scanner's is that of what follows
    if (map.key->kind == YamlNode::Kind::scalar) {
      const auto [first, is_new] = map.key_line.emplace(map.key->text, map.key->place.line);
      if (!is_new) {
        const auto where = positions_ ? fmt::format("; first in line {}", first->second) : "";
        problems_.add(map.key->place, path(), "given twice" + where);
      } else {
        map.node.entries.push_back({map.key->text, map.key->place, std::move(value)});
      }
    }
    map.key.reset();
  }

  const std::string& text_;
  std::string source_;
  bool positions_;
  ConfigProblems& problems_;
  std::vector<Level> levels_;
  YamlNode root_;
};

// yaml-cpp ends a document at byte 4 and guesses encodings from zero bytes: a binary file would read as a
// short one.
void refuse_control_characters(const std::string& text, const std::string& source) {
  int line = 1;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    require(byte >= 0x20 || c == '\n' || c == '\t' || c == '\r',
            "{}:{}: byte 0x{:02x}: this is not a text file in UTF-8", source, line, byte);
    line += c == '\n' ? 1 : 0;
  }
}

}  // namespace

std::string YamlNode::describe() const {
  switch (kind) {
    case Kind::null:
      return "nothing";
    case Kind::scalar:
      return quote_found(text);
    case Kind::sequence:
      return "a list";
    case Kind::map:
      return "keys and values";
  }
  return "";
}

YamlNode parse_yaml(const std::string& text, const std::string& source, bool positions,
                    ConfigProblems& problems) {
  refuse_control_characters(text, source);
  TreeBuilder builder(text, source, positions, problems);
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) return {YamlNode::Kind::null, {source}};
    YamlNode root = builder.take_root();
    TreeBuilder rest(text, source, positions, problems);
    if (parser.HandleNextDocument(rest))
      problems.add(rest.take_root().place, "", "a second document begins here");
    return root;
  } catch (const YAML::Exception& e) {
    const ConfigPlace place =
        positions ? ConfigPlace{source, e.mark.line + 1, e.mark.column + 1} : ConfigPlace{source};
    fail("{}: this is not YAML: {}", place.text(), e.msg);
  }
}

}  // namespace lapidary
