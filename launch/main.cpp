// The program `lapidary`.
#include <iostream>

#include "launch/command_line.h"

namespace {

std::vector<lapidary::Command> commands() {
  using namespace lapidary;
  std::vector<Command> list{
      make_command("config show", "prints the configuration that files, defaults and --set result in",
                   run_config_show),
      make_command("config check", "reports everything that is wrong with a configuration", run_config_check),
      make_command("config reference", "prints docs/configuration.md", run_config_reference),
  };
  list.back().hidden = true;
  return list;
}

}  // namespace

int main(int argc, char** argv) {
  return lapidary::main_guarded(
      [&] {
        return lapidary::dispatch(commands(), {argv + 1, argv + argc}, std::cout);
      },
      std::cerr);
}
