// Values of the table's rows: from YAML nodes, to YAML, and in words.
#include <cmath>

#include "kernels/check.h"
#include "trainer/options.h"

namespace lapidary {
namespace {

std::string format_number(const Option& option, double value) {
  switch (option.type) {
    case OptionType::count:
      return write_count(static_cast<std::int64_t>(value));
    case OptionType::bytes:
      return write_bytes(static_cast<std::int64_t>(value));
    case OptionType::seconds:
      return write_seconds(value);
    case OptionType::real:
      return write_real(value);
    default:
      return fmt::format("{}", static_cast<std::int64_t>(value));
  }
}

std::string describe_range(const Option& option) {
  const Range& range = option.range;
  const std::string low = format_number(option, range.low);
  if (std::isinf(range.high)) return fmt::format("{} {}", range.low_open ? "above" : "at least", low);
  return fmt::format("{} {} {} {}", range.low_open ? "above" : "from", low,
                     range.high_open ? "to below" : "to", format_number(option, range.high));
}

Complaint check_range(const Option& option, double value) {
  if (option.range.contains(value)) return "";
  return fmt::format("{} is out of range, expected {}", format_number(option, value), describe_range(option));
}

// Environment variables are looked up later; how they are written is checked at once.
Complaint check_path_text(const std::string& text) {
  if (text.starts_with("~"))
    return fmt::format("{}: ~ is not replaced here; write ${{HOME}}", quote_found(text));
  for (auto at = text.find('$'); at != std::string::npos; at = text.find('$', at + 1)) {
    const auto close = text.find('}', at);
    if (at + 1 >= text.size() || text[at + 1] != '{' || close == std::string::npos || close == at + 2)
      return fmt::format("{}: a variable is written ${{NAME}}", quote_found(text));
  }
  return "";
}

Complaint read_path(const Option& option, const YamlNode& node, ConfigPath& path) {
  std::string what = "a path";
  if (!option.words.empty()) what = fmt::format("{}, or a path", fmt::join(option.words, ", "));
  if (auto complaint = parse_path(node, what, path.text); !complaint.empty()) return complaint;
  return check_path_text(path.text);
}

// "path" or {path: ..., weight: ...}.
std::vector<PlacedComplaint> read_source(const Option& option, const YamlNode& node,
                                         ConfiguredSource& source) {
  if (node.kind == YamlNode::Kind::scalar) {
    auto complaint = read_path(option, node, source.path);
    if (complaint.empty()) return {};
    return {{node.place, complaint}};
  }
  if (node.kind != YamlNode::Kind::map)
    return {{node.place,
             fmt::format("expected a path or {{path: ..., weight: ...}}, found {}", node.describe())}};
  std::vector<PlacedComplaint> complaints;
  for (const auto& entry : node.entries) {
    Complaint complaint;
    if (entry.key == "path") {
      complaint = read_path(option, entry.value, source.path);
    } else if (entry.key == "weight") {
      complaint = parse_real(entry.value, source.weight);
      if (complaint.empty() && !(source.weight > 0 && source.weight <= 1e6))
        complaint = fmt::format("weight {} is out of range, expected above 0 to 1000000", source.weight);
    } else {
      complaint = fmt::format("unknown key {}; a source has path and weight", quote_found(entry.key));
    }
    if (!complaint.empty()) complaints.push_back({entry.value.place, complaint});
  }
  if (complaints.empty() && source.path.empty())
    complaints.push_back({node.place, "a source needs its path"});
  return complaints;
}

std::vector<PlacedComplaint> read_sources(const Option& option, const YamlNode& node,
                                          std::vector<ConfiguredSource>& sources) {
  if (node.kind == YamlNode::Kind::scalar) return read_source(option, node, sources.emplace_back());
  if (node.kind != YamlNode::Kind::sequence)
    return {{node.place,
             fmt::format("expected a path or a list such as [folder, {{path: other, weight: 2}}], found {}",
                         node.describe())}};
  std::vector<PlacedComplaint> complaints;
  for (const auto& item : node.items) {
    const auto more = read_source(option, item, sources.emplace_back());
    complaints.insert(complaints.end(), more.begin(), more.end());
  }
  return complaints;
}

Complaint parse_whole(const Option& option, const YamlNode& node, std::int64_t& value) {
  switch (option.type) {
    case OptionType::bytes:
      return parse_bytes(node, value);
    case OptionType::count:
      return parse_count(node, value);
    default:
      return parse_integer(node, value);
  }
}

// One overload for each type that a member may have.
struct Reader {
  const Option& option;
  const YamlNode& node;
  RunConfig& config;

  using Result = std::vector<PlacedComplaint>;

  Result one(const Complaint& complaint) const {
    if (complaint.empty()) return {};
    return {{node.place, complaint}};
  }

  template <class T>
  Result store(const Member<T>& member, const Complaint& complaint, const T& value) const {
    if (complaint.empty()) member.set(config, value);
    return one(complaint);
  }

  Result operator()(const Member<std::int64_t>& member) const {
    std::int64_t value = 0;
    auto complaint = parse_whole(option, node, value);
    if (complaint.empty()) complaint = check_range(option, static_cast<double>(value));
    return store(member, complaint, value);
  }
  Result operator()(const Member<double>& member) const {
    double value = 0;
    auto complaint =
        option.type == OptionType::seconds ? parse_seconds(node, value) : parse_real(node, value);
    if (complaint.empty()) complaint = check_range(option, value);
    return store(member, complaint, value);
  }
  Result operator()(const Member<bool>& member) const {
    bool value = false;
    const auto complaint = parse_boolean(node, value);
    return store(member, complaint, value);
  }
  Result operator()(const Member<int>& member) const {
    int value = 0;
    const auto complaint = parse_word(node, option.words, value);
    return store(member, complaint, value);
  }
  Result operator()(const Member<ConfigPath>& member) const {
    ConfigPath value;
    const auto complaint = read_path(option, node, value);
    return store(member, complaint, value);
  }
  Result operator()(const Member<std::vector<ConfiguredSource>>& member) const {
    std::vector<ConfiguredSource> value;
    auto complaints = read_sources(option, node, value);
    if (complaints.empty()) member.set(config, value);
    return complaints;
  }
};

struct Writer {
  const Option& option;
  const RunConfig& config;

  std::string operator()(const Member<std::int64_t>& member) const {
    const std::int64_t value = member.get(config);
    return option.type == OptionType::bytes ? write_bytes(value) : fmt::format("{}", value);
  }
  std::string operator()(const Member<double>& member) const {
    return format_number(option, member.get(config));
  }
  std::string operator()(const Member<bool>& member) const { return member.get(config) ? "true" : "false"; }
  std::string operator()(const Member<int>& member) const {
    return option.words.at(static_cast<std::size_t>(member.get(config)));
  }
  std::string operator()(const Member<ConfigPath>& member) const {
    return write_text(member.get(config).text);
  }
  std::string operator()(const Member<std::vector<ConfiguredSource>>& member) const {
    std::string lines;
    for (const auto& source : member.get(config)) {
      lines += lines.empty() ? "- " : "\n- ";
      if (source.weight == 1.0) {
        lines += write_text(source.path.text);
      } else {
        lines +=
            fmt::format("path: {}\n  weight: {}", write_text(source.path.text), write_real(source.weight));
      }
    }
    return lines.empty() ? "[]" : lines;
  }
};

}  // namespace

std::vector<PlacedComplaint> read_option(const Option& option, const YamlNode& node, RunConfig& config) {
  return std::visit(Reader{option, node, config}, option.member);
}

std::string write_option(const Option& option, const RunConfig& config) {
  return std::visit(Writer{option, config}, option.member);
}

std::string describe_values(const Option& option) {
  const std::string unit = option.unit.empty() ? "" : " of " + option.unit;
  switch (option.type) {
    case OptionType::integer:
      return fmt::format("whole number{}, {}", unit, describe_range(option));
    case OptionType::count:
      return fmt::format("count{}, {}", unit, describe_range(option));
    case OptionType::bytes:
      return "bytes, " + describe_range(option);
    case OptionType::seconds:
      return "time, " + describe_range(option);
    case OptionType::real:
      return "number, " + describe_range(option);
    case OptionType::boolean:
      return "true or false";
    case OptionType::word:
      return fmt::format("one of {}", fmt::join(option.words, ", "));
    case OptionType::path:
      return option.words.empty() ? "path" : fmt::format("{} or a path", fmt::join(option.words, ", "));
    case OptionType::sources:
      return "path, or list of paths and {path, weight}";
  }
  return "";
}

}  // namespace lapidary
