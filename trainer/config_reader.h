// From files and --set options to a RunConfig, or to one Error that lists everything that is wrong with them.
#pragma once
#include <string>
#include <vector>

#include "trainer/run_config.h"

namespace lapidary {

struct ConfigSources {
  std::vector<std::string> files;     ///< YAML; where two give the same key the later wins, lists included
  std::vector<std::string> settings;  ///< "optimizer.lr=1e-5", after all files; the value is YAML
};

/// Defaults, then files, then settings; every value checked alone and against the others, and the environment
/// variables in paths looked up. Throws Error with lines "file:line:column: key: what is wrong".
RunConfig load_config(const ConfigSources& sources);

/// A configuration that config_to_yaml wrote, perhaps on another machine: as load_config, but this machine's
/// environment does not matter. `name` stands for the file in messages.
RunConfig parse_saved_config(const std::string& yaml, const std::string& name);

}  // namespace lapidary
