#include "launch/command_syntax.h"

#include <algorithm>
#include <boost/program_options.hpp>
#include <sstream>

#include "kernels/check.h"
#include "trainer/nearest.h"
#include "trainer/option_value.h"

namespace lapidary {
namespace {

namespace po = boost::program_options;
using Values = std::vector<std::string>;

// A word of the command line as the parsers of configuration values take it.
YamlNode as_node(const std::string& text) {
  YamlNode node;
  node.kind = YamlNode::Kind::scalar;
  node.text = text;
  return node;
}

Complaint in_range(double value, double low, double high) {
  if (value >= low && value <= high) return "";
  return fmt::format("{} is out of range, expected from {} to {}", value, low, high);
}

Complaint read_whole(const std::string& text, std::int64_t low, std::int64_t high, std::int64_t& value) {
  auto complaint = parse_count(as_node(text), value);
  if (complaint.empty() && (value < low || value > high))
    complaint = fmt::format("{} is out of range, expected from {} to {}", value, low, high);
  return complaint;
}

}  // namespace

CommandSyntax::CommandSyntax(std::string name, std::string summary)
    : name_(std::move(name)), summary_(std::move(summary)) {}

void CommandSyntax::add(const std::string& names, Kind kind, const std::string& value,
                        const std::string& initial, const std::string& help,
                        std::function<void(const Values&)> set) {
  const auto comma = names.find(',');
  Argument argument;
  argument.long_name = names.substr(0, comma);
  if (comma != std::string::npos) argument.short_name = names.substr(comma + 1);
  argument.value = value;
  argument.help = help;
  argument.initial = initial;
  argument.kind = kind;
  argument.set = std::move(set);
  arguments_.push_back(std::move(argument));
}

// `read` returns what is wrong with the text.
void CommandSyntax::add_checked(const std::string& names, const std::string& value,
                                const std::string& initial, const std::string& help,
                                std::function<Complaint(const std::string&)> read) {
  const std::string option = "--" + names.substr(0, names.find(','));
  add(names, Kind::one, value, initial, help,
      [name = name_, option, read = std::move(read)](const Values& given) {
        const auto complaint = read(given.back());
        require(complaint.empty(), "{}: {}: {}", name, option, complaint);
      });
}

void CommandSyntax::flag(const std::string& names, bool& target, const std::string& help) {
  add(names, Kind::flag, "", "", help, [&target](const Values&) { target = true; });
}

void CommandSyntax::text(const std::string& names, const std::string& value, std::string& target,
                         const std::string& help) {
  add_checked(names, value, target, help, [&target](const std::string& given) -> Complaint {
    if (given.empty()) return "expected a value, found empty text";
    target = given;
    return "";
  });
}

void CommandSyntax::texts(const std::string& names, const std::string& value, Values& target,
                          const std::string& help) {
  add(names, Kind::many, value, "", help,
      [&target](const Values& given) { target.insert(target.end(), given.begin(), given.end()); });
}

void CommandSyntax::number(const std::string& names, std::int64_t& target, std::int64_t low,
                           std::int64_t high, const std::string& help) {
  add_checked(names, "N", fmt::format("{}", target), help, [&target, low, high](const std::string& given) {
    return read_whole(given, low, high, target);
  });
}

void CommandSyntax::number(const std::string& names, int& target, int low, int high,
                           const std::string& help) {
  add_checked(names, "N", fmt::format("{}", target), help, [&target, low, high](const std::string& given) {
    std::int64_t value = 0;
    auto complaint = read_whole(given, low, high, value);
    if (complaint.empty()) target = static_cast<int>(value);
    return complaint;
  });
}

void CommandSyntax::numbers(const std::string& names, std::vector<int>& target, int low, int high,
                            const std::string& help) {
  add_checked(names, "N,...", fmt::format("{}", fmt::join(target, ",")), help,
              [&target, low, high](const std::string& given) -> Complaint {
                std::vector<int> values;
                std::istringstream parts(given + ",");
                for (std::string part; std::getline(parts, part, ',');) {
                  std::int64_t value = 0;
                  if (auto complaint = read_whole(part, low, high, value); !complaint.empty())
                    return complaint;
                  values.push_back(static_cast<int>(value));
                }
                target = values;
                return "";
              });
}

void CommandSyntax::real(const std::string& names, double& target, double low, double high,
                         const std::string& help) {
  add_checked(names, "X", write_real(target), help, [&target, low, high](const std::string& given) {
    double value = 0;
    auto complaint = parse_real(as_node(given), value);
    if (complaint.empty()) complaint = in_range(value, low, high);
    if (complaint.empty()) target = value;
    return complaint;
  });
}

void CommandSyntax::bytes(const std::string& names, std::int64_t& target, const std::string& help) {
  add_checked(names, "BYTES", target > 0 ? write_bytes(target) : "", help,
              [&target](const std::string& given) {
                auto complaint = parse_bytes(as_node(given), target);
                if (complaint.empty() && target < 0)
                  complaint = fmt::format("{} is out of range, expected at least 0", given);
                return complaint;
              });
}

void CommandSyntax::word_index(const std::string& names, int initial, const std::vector<std::string>& words,
                               const std::string& help, std::function<void(int)> set) {
  add_checked(names, fmt::format("{}", fmt::join(words, "|")), words.at(static_cast<std::size_t>(initial)),
              help, [words, set = std::move(set)](const std::string& given) {
                int index = 0;
                auto complaint = parse_word(as_node(given), words, index);
                if (complaint.empty()) set(index);
                return complaint;
              });
}

void CommandSyntax::positional(const std::string& value, std::string& target, const std::string& help) {
  add(value, Kind::one, value, "", help, [&target](const Values& given) { target = given.back(); });
  arguments_.back().positional = true;
}

void CommandSyntax::positionals(const std::string& value, Values& target, const std::string& help) {
  add(value, Kind::many, value, "", help,
      [&target](const Values& given) { target.insert(target.end(), given.begin(), given.end()); });
  arguments_.back().positional = true;
}

void CommandSyntax::require_one(const std::string& name) {
  const auto found = std::find_if(arguments_.begin(), arguments_.end(),
                                  [&](const Argument& a) { return a.long_name == name; });
  found->required = true;
}

bool CommandSyntax::parse(const Values& words) {
  po::options_description options;
  po::positional_options_description positional;
  std::vector<std::string> known{"help"};
  options.add_options()("help,h", "");
  for (const auto& argument : arguments_) {
    const std::string names =
        argument.long_name + (argument.short_name.empty() ? "" : "," + argument.short_name);
    if (argument.kind == Kind::flag) {
      options.add_options()(names.c_str(), "");
    } else {
      options.add_options()(names.c_str(), po::value<Values>()->composing());
    }
    if (argument.positional) {
      positional.add(argument.long_name.c_str(), argument.kind == Kind::many ? -1 : 1);
    } else {
      known.push_back(argument.long_name);
    }
  }
  po::variables_map given;
  try {
    const int style = po::command_line_style::default_style & ~po::command_line_style::allow_guessing;
    po::store(po::command_line_parser(words).options(options).positional(positional).style(style).run(),
              given);
  } catch (const po::unknown_option& e) {
    const std::string typed = e.get_option_name();
    const std::string near =
        nearest(typed.substr(std::min(typed.find_first_not_of('-'), typed.size())), known);
    fail("{}: unknown option {}{}", name_, typed, near.empty() ? "" : "; did you mean --" + near + "?");
  } catch (const po::too_many_positional_options_error&) {
    fail("{}: {}", name_, describe_surplus(words));
  } catch (const po::error& e) {
    fail("{}: {}", name_, e.what());
  }
  if (given.contains("help")) return false;
  for (const auto& argument : arguments_) {
    const auto& value = given[argument.long_name];
    const std::string shown = argument.positional ? argument.value : "--" + argument.long_name;
    require(!argument.required || !value.empty(), "{}: {} is missing: {}", name_, shown, argument.help);
    if (value.empty()) continue;
    const Values values = argument.kind == Kind::flag ? Values() : value.as<Values>();
    require(argument.kind != Kind::one || values.size() == 1, "{}: {} is given twice", name_, shown);
    argument.set(values);
  }
  return true;
}

std::string CommandSyntax::describe_surplus(const Values& words) const {
  const bool wants_config = std::any_of(arguments_.begin(), arguments_.end(),
                                        [](const Argument& a) { return a.long_name == "config"; });
  // The likeliest slip: a configuration without its -c.
  const auto yaml = std::find_if(words.begin(), words.end(), [](const std::string& word) {
    return word.ends_with(".yaml") || word.ends_with(".yml");
  });
  if (wants_config && yaml != words.end()) return fmt::format("a configuration is given as -c {}", *yaml);
  return fmt::format("more arguments than it takes; see {} --help", name_);
}

std::string CommandSyntax::help() const {
  std::string usage = name_, positionals;
  std::vector<std::pair<std::string, std::string>> lines;
  for (const auto& argument : arguments_) {
    if (argument.positional) {
      usage += " " + argument.value + (argument.kind == Kind::many ? "..." : "");
      lines.emplace_back(argument.value, argument.help);
      continue;
    }
    std::string left =
        (argument.short_name.empty() ? "    " : "-" + argument.short_name + ", ") + "--" + argument.long_name;
    if (!argument.value.empty()) left += " " + argument.value;
    std::string right = argument.help;
    if (argument.kind == Kind::many) right += "; may be repeated";
    if (!argument.initial.empty()) right += fmt::format(" [{}]", argument.initial);
    if (argument.required && argument.kind != Kind::many)
      usage += fmt::format(" --{} {}", argument.long_name, argument.value);
    lines.emplace_back(left, right);
  }
  lines.emplace_back("-h, --help", "this text");
  std::string text = fmt::format("usage: {} [options]\n\n{}.\n\n", usage, summary_);
  for (const auto& [left, right] : lines) {
    text += left.size() <= 26 ? fmt::format("  {:<28}{}\n", left, right)
                              : fmt::format("  {}\n{:30}{}\n", left, "", right);
  }
  return text + epilogue_;
}

}  // namespace lapidary
