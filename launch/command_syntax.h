// What one subcommand understands: options and arguments that write into a struct, from which its --help is
// made. Parsing is Boost.Program_options, without its guessing of abbreviations; values are read like those
// of the configuration.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace lapidary {

class CommandSyntax {
 public:
  /// `name` as typed: "lapidary data show".
  CommandSyntax(std::string name, std::string summary);

  // All targets must outlive parse(); what they hold is the default, and shown where it says something.
  // `names` is "long" or "long,s"; `value` stands for the value in the help.
  void flag(const std::string& names, bool& target, const std::string& help);
  void text(const std::string& names, const std::string& value, std::string& target, const std::string& help);
  void texts(const std::string& names, const std::string& value, std::vector<std::string>& target,
             const std::string& help);  ///< may be given several times
  /// Digits or a count such as 10K, from low to high.
  void number(const std::string& names, std::int64_t& target, std::int64_t low, std::int64_t high,
              const std::string& help);
  void number(const std::string& names, int& target, int low, int high, const std::string& help);
  void numbers(const std::string& names, std::vector<int>& target, int low, int high,
               const std::string& help);  ///< separated by commas
  void real(const std::string& names, double& target, double low, double high, const std::string& help);
  void bytes(const std::string& names, std::int64_t& target, const std::string& help);
  /// One of `words`, in the order of the enumerators.
  template <class Enum>
  void word(const std::string& names, Enum& target, const std::vector<std::string>& words,
            const std::string& help) {
    word_index(names, static_cast<int>(target), words, help,
               [&target](int i) { target = static_cast<Enum>(i); });
  }

  /// Arguments without a name; at most one of these, all of them for `text`s.
  void positional(const std::string& value, std::string& target, const std::string& help);
  void positionals(const std::string& value, std::vector<std::string>& target, const std::string& help);

  /// The value of this option or argument has to be given.
  void require_one(const std::string& name);
  /// Paragraphs after the options.
  void epilogue(const std::string& text) { epilogue_ += "\n" + text; }

  /// False if --help was asked for and nothing was parsed. Throws Error: unknown options with the nearest
  /// known one, missing and wrong values.
  bool parse(const std::vector<std::string>& words);
  std::string help() const;

 private:
  enum class Kind { flag, one, many };
  struct Argument {
    std::string long_name, short_name, value, help, initial;
    Kind kind = Kind::one;
    bool positional = false, required = false;
    std::function<void(const std::vector<std::string>&)> set;
  };

  void add(const std::string& names, Kind kind, const std::string& value, const std::string& initial,
           const std::string& help, std::function<void(const std::vector<std::string>&)> set);
  void add_checked(const std::string& names, const std::string& value, const std::string& initial,
                   const std::string& help, std::function<std::string(const std::string&)> read);
  void word_index(const std::string& names, int initial, const std::vector<std::string>& words,
                  const std::string& help, std::function<void(int)> set);

  std::string describe_surplus(const std::vector<std::string>& words) const;

  std::string name_, summary_, epilogue_;
  std::vector<Argument> arguments_;
};

}  // namespace lapidary
