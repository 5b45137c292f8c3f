#include "trainer/config_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "trainer/options.h"

namespace lapidary {
namespace {

const RunConfig& defaults() {
  static const RunConfig config;
  return config;
}

bool is_default(const Option& option, const RunConfig& config) {
  return write_option(option, config) == write_option(option, defaults());
}

std::string indent(const std::string& lines, const std::string& by) {
  std::string indented = by;
  for (const char c : lines) indented += c == '\n' ? "\n" + by : std::string(1, c);
  return indented;
}

std::string to_yaml(const RunConfig& config, const std::function<bool(const Option&)>& wanted) {
  std::string yaml;
  for (const auto& section : option_sections()) {
    std::string keys;
    for (const auto& option : option_table()) {
      if (option.section() != section.name || !wanted(option)) continue;
      const std::string value = write_option(option, config);
      const bool block = value.starts_with("- ");
      keys += fmt::format("  {}:{}{}\n", option.leaf(), block ? "\n" : " ",
                          block ? indent(value, "    ") : value);
    }
    if (!keys.empty()) yaml += fmt::format("{}:\n{}", section.name, keys);
  }
  return yaml;
}

// What a user gets who does not give the key.
std::string default_text(const Option& option) {
  return option.required ? "required" : write_option(option, defaults());
}

// A word of Markdown inside a table cell.
std::string in_cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) escaped += c == '|' ? "\\|" : std::string(1, c);
  return escaped;
}

constexpr const char* kReferenceHead = R"(# Configuration

This page is made from the option table by `build/lapidary config reference`; a test compares the two.

A run is described by YAML: sections, and keys below them. Several files may be given (`-c base.yaml -c site.yaml`);
where two give the same key the later wins. `--set optimizer.lr=2e-5` comes last; its value is YAML too
(`--set 'data.train=[shards/a, shards/b]'`). Paths are relative to the working directory.
`build/lapidary config check` reports everything that is wrong at once, each with file, line, column and key, and with
`--files` also what the model, the weights and the data that it names have against it, before a job waits in a queue for it;
`build/lapidary config show` prints what files and options resolve to. The run's folder and each checkpoint hold that
text.

How values are written:

- **count**: `2000`, `10K`, `1.5M`, `2B`, `1T` (decimal thousands). **whole number**: digits only.
- **bytes**: with their unit, `256MiB`, `4GiB`, or decimal `4GB`. **time**: `30s`, `5m`, `2h`, `1d`, `500ms`.
- **number**: `0.1`, `1e-5`. **true or false**: these two words.
- **path**: text; `${NAME}` is an environment variable, looked up when the path is used, saved as it was written.

What YAML readers do not agree on is refused: `010`, `0x10`, `yes`, `on`. So are repeated keys, anchors and tags, and
files over 1 MB.
)";

}  // namespace

std::string config_to_yaml(const RunConfig& config) {
  return to_yaml(config, [&](const Option& option) { return !option.hidden || !is_default(option, config); });
}

std::string changed_to_yaml(const RunConfig& config) {
  return to_yaml(config,
                 [&](const Option& option) { return option.required || !is_default(option, config); });
}

std::vector<std::string> differing_keys(const RunConfig& now, const RunConfig& before) {
  std::vector<std::string> keys;
  for (const auto& option : option_table()) {
    const std::string a = write_option(option, now), b = write_option(option, before);
    if (a == b) continue;
    const bool lists = a.starts_with("- ") || b.starts_with("- ");
    keys.push_back(lists ? option.path + " lists others" : fmt::format("{} {}, was {}", option.path, a, b));
  }
  return keys;
}

std::string config_help() {
  std::string help;
  for (const auto& section : option_sections()) {
    std::string keys;
    for (const auto& option : option_table()) {
      if (option.section() != section.name || option.hidden) continue;
      keys += fmt::format("  {} [{}]\n      {} ({})\n", option.path, default_text(option), option.help,
                          describe_values(option));
    }
    if (!keys.empty()) help += fmt::format("{}:\n{}", section.help, keys);
  }
  return help;
}

std::string config_reference() {
  std::string page = kReferenceHead;
  for (const auto& section : option_sections()) {
    std::string rows;
    for (const auto& option : option_table()) {
      if (option.section() != section.name || option.hidden) continue;
      const std::string value = option.required ? "required" : fmt::format("`{}`", default_text(option));
      rows += fmt::format("| `{}` | {} | {} | {} |\n", option.path, in_cell(describe_values(option)), value,
                          in_cell(option.help));
    }
    if (rows.empty()) continue;
    page += fmt::format("\n## {}\n\n{}.\n\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n{}",
                        section.name, section.help, rows);
  }
  return page;
}

}  // namespace lapidary
