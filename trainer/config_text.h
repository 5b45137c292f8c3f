// A configuration written down: as YAML that reads back to the same values, as lines of --help, and as the
// reference page.
#pragma once
#include <string>
#include <vector>

#include "trainer/run_config.h"

namespace lapidary {

/// Every key of every section; hidden keys only where they differ from their default. parse_saved_config
/// returns an equal RunConfig. ${NAME} in paths stays as it was written.
std::string config_to_yaml(const RunConfig& config);

/// Only the required keys and those that differ from their default.
std::string changed_to_yaml(const RunConfig& config);

/// The keys whose values differ, as "optimizer.lr 0.001, was 0.0005" or "data.validation lists others".
std::vector<std::string> differing_keys(const RunConfig& now, const RunConfig& before);

/// Key, default, allowed values and help of every key that is not hidden, by sections, for a terminal.
std::string config_help();

/// The text of docs/configuration.md.
std::string config_reference();

}  // namespace lapidary
