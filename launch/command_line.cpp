#include "launch/command_line.h"

#include <algorithm>
#include <exception>
#include <new>

#include "kernels/check.h"
#include "trainer/config_text.h"
#include "trainer/nearest.h"

namespace lapidary {
namespace {

std::string first_word(const std::string& name) {
  return name.substr(0, name.find(' '));
}

std::vector<std::string> words_of(const std::string& name) {
  const auto space = name.find(' ');
  if (space == std::string::npos) return {name};
  return {name.substr(0, space), name.substr(space + 1)};
}

// Of all commands, or of those in one group ("data").
std::string list(const std::vector<Command>& commands, const std::string& group) {
  std::string text =
      fmt::format("usage: lapidary {} [options]\n\n", group.empty() ? "COMMAND" : group + " COMMAND");
  for (const auto& command : commands) {
    if (command.hidden || (!group.empty() && first_word(command.name) != group)) continue;
    text += fmt::format("  {:<20}{}\n", command.name, command.summary);
  }
  return text + "\nlapidary COMMAND --help explains a command, lapidary --version the program.\n";
}

[[noreturn]] void fail_unknown(const std::vector<Command>& commands, const std::vector<std::string>& words) {
  const bool is_group = std::any_of(commands.begin(), commands.end(), [&](const Command& command) {
    return words_of(command.name).size() > 1 && first_word(command.name) == words[0];
  });
  std::vector<std::string> known;
  for (const auto& command : commands) {
    if (command.hidden) continue;
    if (!is_group) known.push_back(first_word(command.name));
    if (is_group && first_word(command.name) == words[0]) known.push_back(words_of(command.name)[1]);
  }
  known.erase(std::unique(known.begin(), known.end()), known.end());
  const std::size_t at = is_group ? 1 : 0;
  require(words.size() > at, "{} needs one of: {}", words[0], fmt::join(known, ", "));
  const std::string near = nearest(words[at], known);
  const auto hint =
      near.empty() ? fmt::format("known are {}", fmt::join(known, ", ")) : "did you mean " + near + "?";
  fail("unknown command {}{}; {}", is_group ? words[0] + " " : "", words[at], hint);
}

}  // namespace

bool dump_if_asked(const ConfigArguments& config, std::ostream& out) {
  if (config.dump) out << config_to_yaml(load_config(config.sources));
  return config.dump;
}

int dispatch(const std::vector<Command>& commands, const std::vector<std::string>& words, std::ostream& out) {
  const auto is_help = [](const std::string& word) {
    return word == "--help" || word == "-h" || word == "help";
  };
  require(!words.empty(), "no command; lapidary --help lists them");
  if (is_help(words[0])) {
    out << list(commands, "");
    return 0;
  }
  if (words[0] == "--version") {
    out << version_text();
    return 0;
  }
  for (const auto& command : commands) {
    const auto name = words_of(command.name);
    if (name.size() > words.size() || !std::equal(name.begin(), name.end(), words.begin())) continue;
    return command.run({words.begin() + static_cast<std::ptrdiff_t>(name.size()), words.end()});
  }
  const bool is_group = std::any_of(commands.begin(), commands.end(), [&](const Command& command) {
    return first_word(command.name) == words[0];
  });
  if (is_group && words.size() == 2 && is_help(words[1])) {
    out << list(commands, words[0]);
    return 0;
  }
  fail_unknown(commands, words);
}

int main_guarded(const std::function<int()>& body, std::ostream& errors) {
  try {
    return body();
  } catch (const Error& e) {
    const std::string message = e.what();  // of a command's own words it begins with their names
    errors << (message.starts_with("lapidary ") ? "" : "lapidary: ") << message << std::endl;
    return static_cast<int>(e.code());
  } catch (const std::bad_alloc&) {
    errors << "lapidary: the host's memory is exhausted" << std::endl;
  } catch (const std::exception& e) {
    errors << "lapidary: unexpected: " << e.what() << std::endl;
  }
  return static_cast<int>(ExitCode::bad_input);
}

}  // namespace lapidary
