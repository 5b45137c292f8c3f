#include "trainer/config_reader.h"

#include <cstdlib>
#include <map>
#include <string_view>

#include "kernels/check.h"
#include "kernels/file.h"
#include "trainer/config_problems.h"
#include "trainer/nearest.h"
#include "trainer/options.h"
#include "trainer/yaml_tree.h"

namespace lapidary {
namespace {

constexpr std::int64_t kMostBytes = 1'000'000;

bool faults_allowed() {
  const char* value = std::getenv("LAPIDARY_FAULTS");
  return value != nullptr && std::string_view(value) == "1";
}

class Reader {
 public:
  // `here`: the run is to start in this environment.
  explicit Reader(bool here) : here_(here) {}

  void read_text(const std::string& yaml, const std::string& source) {
    problems_.add_source(source);
    files_.push_back(source);
    read_tree(parse_yaml(yaml, source, true, problems_));
  }

  void read_setting(const std::string& setting);

  RunConfig finish();

 private:
  void read_tree(const YamlNode& root);
  void read_section(const YamlEntry& section);
  void read_key(const std::string& path, const YamlEntry& entry);
  void complain_about_section(const YamlEntry& entry);
  void complain_about_key(const std::string& path, const YamlEntry& entry);
  void check_environment(const Option& option, const ConfigPlace& place);
  ConfigPlace place_of(const std::string& key) const;

  bool here_;
  RunConfig config_;
  ConfigProblems problems_;
  std::vector<std::string> files_;
  std::map<std::string, ConfigPlace> given_;  // where each key got its value
};

void Reader::read_setting(const std::string& setting) {
  const std::string source = "--set " + setting;
  problems_.add_source(source);
  const auto equals = setting.find('=');
  if (equals == std::string::npos || equals == 0) {
    problems_.add({source}, "", "expected KEY=VALUE, such as optimizer.lr=1e-5");
    return;
  }
  // The same tree that a file would give, so that one path reads both.
  const std::string key = setting.substr(0, equals);
  const auto dot = key.find('.');
  YamlNode root{YamlNode::Kind::map, {source}};
  YamlNode value = parse_yaml(setting.substr(equals + 1), source, false, problems_);
  if (dot != std::string::npos) {
    YamlNode section{YamlNode::Kind::map, {source}};
    section.entries.push_back({key.substr(dot + 1), {source}, std::move(value)});
    value = std::move(section);
  }
  root.entries.push_back({key.substr(0, dot), {source}, std::move(value)});
  read_tree(root);
}

void Reader::read_tree(const YamlNode& root) {
  if (root.kind == YamlNode::Kind::null) return;
  if (root.kind != YamlNode::Kind::map) {
    problems_.add(
        root.place, "",
        fmt::format("expected sections such as \"train:\" with keys below them, found {}", root.describe()));
    return;
  }
  for (const auto& entry : root.entries) read_section(entry);
}

void Reader::read_section(const YamlEntry& section) {
  bool known = false;
  for (const auto& s : option_sections()) known = known || s.name == section.key;
  if (!known) return complain_about_section(section);
  if (section.value.kind == YamlNode::Kind::null) return;  // every key of it commented out
  if (section.value.kind != YamlNode::Kind::map) {
    problems_.add(section.value.place, section.key,
                  fmt::format("expected keys of this section, found {}", section.value.describe()));
    return;
  }
  for (const auto& entry : section.value.entries) read_key(section.key + "." + entry.key, entry);
}

void Reader::read_key(const std::string& path, const YamlEntry& entry) {
  const Option* option = find_option(path);
  if (option == nullptr) return complain_about_key(path, entry);
  if (option->section() == "fault" && here_ && !faults_allowed()) {
    problems_.add(entry.place, path, "faults are for tests and need LAPIDARY_FAULTS=1 in the environment");
    return;
  }
  given_[path] = entry.value.place;
  for (const auto& complaint : read_option(*option, entry.value, config_))
    problems_.add(complaint.place, path, complaint.text);
}

void Reader::complain_about_section(const YamlEntry& entry) {
  if (const Option* option = find_option(entry.key)) {
    problems_.add(entry.place, entry.key,
                  fmt::format("a dotted key is for --set; here write \"{}:\" and below it \"{}:\"",
                              option->section(), option->leaf()));
    return;
  }
  std::vector<std::string> sections;
  for (const auto& section : option_sections())
    if (section.name != "fault") sections.push_back(section.name);
  std::string meant = nearest(entry.key, sections);
  if (meant.empty()) meant = suggest_option(entry.key);
  const auto hint = meant.empty() ? fmt::format("the sections are {}", fmt::join(sections, ", "))
                                  : fmt::format("did you mean {}?", meant);
  problems_.add(entry.place, quote_found(entry.key), "unknown section; " + hint);
}

void Reader::complain_about_key(const std::string& path, const YamlEntry& entry) {
  const std::string meant = suggest_option(path);
  const std::string section = path.substr(0, path.find('.'));
  std::vector<std::string> leaves;
  for (const auto& option : option_table())
    if (option.section() == section) leaves.push_back(option.leaf());
  const auto hint = meant.empty() ? fmt::format("{} has {}", section, fmt::join(leaves, ", "))
                                  : fmt::format("did you mean {}?", meant);
  const std::string quoted = quote_found(path);
  problems_.add(entry.place, quoted.substr(1, quoted.size() - 2), "unknown key; " + hint);
}

void Reader::check_environment(const Option& option, const ConfigPlace& place) {
  std::vector<ConfigPath> paths;
  if (const auto* one = std::get_if<Member<ConfigPath>>(&option.member)) paths.push_back(one->get(config_));
  if (const auto* list = std::get_if<Member<std::vector<ConfiguredSource>>>(&option.member))
    for (const auto& source : list->get(config_)) paths.push_back(source.path);
  for (const auto& path : paths) {
    try {
      path.resolve();
    } catch (const Error& e) {
      problems_.add(place, option.path, e.what());
    }
  }
}

ConfigPlace Reader::place_of(const std::string& key) const {
  if (const auto found = given_.find(key); found != given_.end()) return found->second;
  return {files_.size() == 1 ? files_.front() : "configuration"};
}

RunConfig Reader::finish() {
  for (const auto& option : option_table()) {
    const auto given = given_.find(option.path);
    if (given == given_.end()) {
      if (option.required)
        problems_.add(place_of(option.path), option.path,
                      fmt::format("not given; expected {}: {}", describe_values(option), option.help));
    } else if (here_) {
      check_environment(option, given->second);
    }
  }
  if (problems_.empty()) {  // values that were refused would only give misleading conflicts
    for (const auto& conflict : find_conflicts(config_))
      problems_.add(place_of(conflict.key), conflict.key, conflict.message);
  }
  problems_.raise();
  return config_;
}

}  // namespace

RunConfig load_config(const ConfigSources& sources) {
  Reader reader(true);
  for (const auto& file : sources.files) reader.read_text(read_text_file(file, kMostBytes), file);
  for (const auto& setting : sources.settings) reader.read_setting(setting);
  return reader.finish();
}

RunConfig parse_saved_config(const std::string& yaml, const std::string& name) {
  Reader reader(false);
  reader.read_text(yaml, name);
  return reader.finish();
}

}  // namespace lapidary
