// The one table of configuration keys. Reading YAML, --set, defaults, --help, the saved configuration and
// docs/configuration.md are all made from it; a new key is one row here and one member of RunConfig.
#pragma once
#include <functional>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "trainer/option_value.h"
#include "trainer/run_config.h"

namespace lapidary {

enum class OptionType { integer, count, bytes, seconds, real, boolean, word, path, sources };

/// Allowed numbers, in the value's base unit (bytes, seconds).
struct Range {
  double low = 0, high = std::numeric_limits<double>::infinity();
  bool low_open = false, high_open = false;  ///< the bound itself is not allowed

  bool contains(double value) const {
    return (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
  }
};

/// Where a value of type T lives in a RunConfig. An enumeration is its place in Option::words.
template <class T>
struct Member {
  std::function<T(const RunConfig&)> get;
  std::function<void(RunConfig&, T)> set;
};
using AnyMember = std::variant<Member<std::int64_t>, Member<double>, Member<bool>, Member<int>,
                               Member<ConfigPath>, Member<std::vector<ConfiguredSource>>>;

struct Option {
  std::string path;  ///< "optimizer.lr"
  OptionType type = OptionType::integer;
  AnyMember member;
  std::string help;                 ///< one sentence, without the full stop
  Range range;                      ///< of numbers
  std::string unit;                 ///< what a plain number counts ("steps"); empty where the value says it
  std::vector<std::string> words;   ///< of words: those allowed; of paths: words with a meaning of their own
  std::vector<std::string> others;  ///< what other programs call it; for suggestions only
  bool required = false;
  bool hidden = false;  ///< for tests; not in help or documents

  std::string section() const { return path.substr(0, path.find('.')); }
  std::string leaf() const { return path.substr(path.find('.') + 1); }
};

struct OptionSection {
  std::string name, help;
};

const std::vector<OptionSection>& option_sections();
/// In the order of the sections.
const std::vector<Option>& option_table();
const Option* find_option(const std::string& path);

/// The value into its member, or what is wrong with it: type, words, range. Every complaint names a place,
/// which in a list is that of the item.
struct PlacedComplaint {
  ConfigPlace place;
  Complaint text;
};
std::vector<PlacedComplaint> read_option(const Option& option, const YamlNode& node, RunConfig& config);

/// The value as YAML that read_option takes: a scalar, "[]", or lines "- ..." for a list that is not empty.
std::string write_option(const Option& option, const RunConfig& config);

/// "bytes, from 1MiB to 1TiB", "one of bf16, float32": what a value may be.
std::string describe_values(const Option& option);

/// For a key that does not exist: the path of the one that was probably meant, or empty.
std::string suggest_option(const std::string& path);

}  // namespace lapidary
