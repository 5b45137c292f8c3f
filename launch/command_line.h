// From the command line to a subcommand and from its end to an exit code.
#pragma once
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "launch/command_syntax.h"
#include "launch/commands.h"

namespace lapidary {

struct Command {
  std::string name;  ///< "train", "data build"
  std::string summary;
  std::function<int(const std::vector<std::string>&)> run;  ///< with the words after the name
  bool hidden = false;                                      ///< not listed
};

/// Prints the configuration and returns true if that was asked for.
bool dump_if_asked(const ConfigArguments& config, std::ostream& out);

/// A command whose words fill an Arguments, as its describe() says. --help and --dump-config never reach
/// `run`.
template <class Arguments>
Command make_command(const std::string& name, const std::string& summary,
                     const std::function<int(const Arguments&)>& run) {
  return {name, summary, [=](const std::vector<std::string>& words) {
            Arguments arguments;
            CommandSyntax syntax("lapidary " + name, summary);
            describe(arguments, syntax);
            if (!syntax.parse(words)) {
              std::cout << syntax.help();
              return 0;
            }
            if constexpr (requires { arguments.config.dump; }) {
              if (dump_if_asked(arguments.config, std::cout)) return 0;
            }
            return run(arguments);
          }};
}

template <class Arguments>
Command make_command(const std::string& name, const std::string& summary, int (*run)(const Arguments&)) {
  return make_command<Arguments>(name, summary, std::function<int(const Arguments&)>(run));
}

/// A command of all ranks. It may be listed without a session, but not run.
template <class Arguments>
Command make_command(const std::string& name, const std::string& summary,
                     int (*run)(const Arguments&, const MpiSession&), const MpiSession* session) {
  return make_command<Arguments>(
      name, summary,
      std::function<int(const Arguments&)>([run, session](const Arguments& a) { return run(a, *session); }));
}

/// A command of one process or of ranks, which gets a session where mpirun or srun started it.
template <class Arguments>
Command make_command(const std::string& name, const std::string& summary,
                     int (*run)(const Arguments&, const MpiSession*), const MpiSession* session) {
  return make_command<Arguments>(
      name, summary,
      std::function<int(const Arguments&)>([run, session](const Arguments& a) { return run(a, session); }));
}

/// Finds the command that the words begin with and runs it with the rest; --help and --version by itself.
/// Throws Error for an unknown command, with the nearest known one.
int dispatch(const std::vector<Command>& commands, const std::vector<std::string>& words, std::ostream& out);

/// Runs the body and turns what it throws into one line "lapidary: ..." (or "lapidary COMMAND: ...") and an
/// exit code.
int main_guarded(const std::function<int()>& body, std::ostream& errors);

/// What `lapidary --version` prints: the program, how it was built, and the libraries it runs with.
std::string version_text();

}  // namespace lapidary
