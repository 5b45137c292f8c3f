// lapidary config show, check, reference.
#include <fmt/format.h>

#include <iostream>

#include "launch/commands.h"
#include "trainer/config_text.h"
#include "trainer/named_files.h"

namespace lapidary {

int run_config_show(const ConfigShowArguments& arguments) {
  const RunConfig config = load_config(arguments.config.sources);
  std::cout << (arguments.changed ? changed_to_yaml(config) : config_to_yaml(config));
  return 0;
}

int run_config_check(const ConfigCheckArguments& arguments) {
  const RunConfig config = load_config(arguments.config.sources);
  if (arguments.files)
    for (const std::string& line : open_named_files(config)) std::cout << line << '\n';
  std::cout << fmt::format("{}: correct\n",
                           arguments.config.sources.files.empty()
                               ? "configuration"
                               : fmt::format("{}", fmt::join(arguments.config.sources.files, ", ")));
  return 0;
}

int run_config_reference(const ConfigReferenceArguments&) {
  std::cout << config_reference();
  return 0;
}

}  // namespace lapidary
