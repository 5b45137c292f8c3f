// Everything wrong with a configuration is reported at once, in the order of the files, each complaint with
// its place.
#pragma once
#include <string>
#include <vector>

namespace lapidary {

/// Where something was written: a file with line and column (counted from 1), or, with line 0, a whole
/// source: "run.yaml", "--set optimizer.lr=1e-5".
struct ConfigPlace {
  std::string source;
  int line = 0, column = 0;

  std::string text() const;  ///< "run.yaml:17:3" or the source alone
};

class ConfigProblems {
 public:
  /// Sources are reported in the order of these calls.
  void add_source(const std::string& source) { sources_.push_back(source); }
  /// `key` is the dotted path that the message is about; may be empty. Raises when there are too many to
  /// read.
  void add(const ConfigPlace& place, const std::string& key, const std::string& message);

  bool empty() const { return problems_.empty(); }
  /// Throws Error with all of them; returns if there are none.
  void raise() const;

 private:
  struct Problem {
    ConfigPlace place;
    std::string text;
  };
  std::vector<std::string> sources_;
  std::vector<Problem> problems_;
};

/// The character as it stands between double quotes, in messages and in YAML.
void append_quoted(std::string& text, char c);

/// What a user wrote, for a message: control characters escaped, cut where it gets long.
std::string quote_found(const std::string& text);

}  // namespace lapidary
