// How single values are written in a configuration: numbers, numbers with units, words, paths. Nothing is
// guessed: what YAML 1.1 and 1.2 read differently (010, yes) is refused, and so is a size without a unit.
// Nothing depends on the locale.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "trainer/yaml_tree.h"

namespace lapidary {

/// What is wrong with a value, for the user; empty: nothing.
using Complaint = std::string;

/// Decimal digits, perhaps with a minus.
Complaint parse_integer(const YamlNode& node, std::int64_t& value);
/// An integer, or a number with K, M, B or T: thousands, millions, billions, trillions ("10M", "1.5B").
Complaint parse_count(const YamlNode& node, std::int64_t& value);
/// A number with B, KiB, MiB, GiB, TiB, or the decimal kB, MB, GB, TB ("256MiB").
Complaint parse_bytes(const YamlNode& node, std::int64_t& value);
/// A number with ms, s, m, h or d, or 0 ("30s", "1.5h"); value in seconds.
Complaint parse_seconds(const YamlNode& node, double& value);
/// A finite number.
Complaint parse_real(const YamlNode& node, double& value);
/// true or false.
Complaint parse_boolean(const YamlNode& node, bool& value);
/// One of `words`; index is its place.
Complaint parse_word(const YamlNode& node, const std::vector<std::string>& words, int& index);
/// Any text; `what` is expected, for the message ("a path").
Complaint parse_path(const YamlNode& node, const std::string& what, std::string& value);

/// Written so that the parser above returns exactly the same value.
std::string write_count(std::int64_t value);
std::string write_bytes(std::int64_t value);
std::string write_seconds(double value);
std::string write_real(double value);
/// Text as a YAML scalar, in quotes where it needs some.
std::string write_text(const std::string& text);

}  // namespace lapidary
