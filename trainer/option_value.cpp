#include "trainer/option_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <span>
#include <string_view>

#include "kernels/check.h"
#include "trainer/nearest.h"

namespace lapidary {
namespace {

struct Unit {
  std::string_view name;
  std::int64_t factor;
};

constexpr std::array<Unit, 6> kCountUnits{
    {{"", 1}, {"K", 1'000}, {"k", 1'000}, {"M", 1'000'000}, {"B", 1'000'000'000}, {"T", 1'000'000'000'000}}};
// Largest first among the binary ones: write_bytes takes the first that divides.
constexpr std::array<Unit, 9> kByteUnits{{{"TiB", 1LL << 40},
                                          {"GiB", 1LL << 30},
                                          {"MiB", 1LL << 20},
                                          {"KiB", 1LL << 10},
                                          {"B", 1},
                                          {"kB", 1'000},
                                          {"MB", 1'000'000},
                                          {"GB", 1'000'000'000},
                                          {"TB", 1'000'000'000'000}}};
// In milliseconds.
constexpr std::array<Unit, 5> kTimeUnits{
    {{"ms", 1}, {"s", 1'000}, {"m", 60'000}, {"h", 3'600'000}, {"d", 86'400'000}}};

constexpr bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

Complaint expected(const YamlNode& node, const std::string& what) {
  if (node.kind == YamlNode::Kind::scalar && node.text.find("${") != std::string::npos)
    return fmt::format("found {}; ${{NAME}} is replaced in paths only, expected {}", node.describe(), what);
  return fmt::format("expected {}, found {}{}", what, node.describe(), node.quoted ? ", which is text" : "");
}

// 010 is 8 to YAML 1.1 and 10 to 1.2; 0x10 and 0o10 are numbers to some readers and text to others.
std::optional<Complaint> two_readings(const std::string& text) {
  const std::string_view digits = std::string_view(text).substr(text.starts_with('-') ? 1 : 0);
  if (digits.size() < 2 || digits[0] != '0') return std::nullopt;
  if (digits[1] == 'x' || digits[1] == 'o' || digits[1] == 'b')
    return fmt::format("found {}; write the number in decimal digits", text);
  if (!std::all_of(digits.begin(), digits.end(), is_digit)) return std::nullopt;
  const auto first = std::min(digits.find_first_not_of('0'), digits.size() - 1);
  return fmt::format("found {}, which some YAML readers take for octal; write {}", text,
                     digits.substr(first));
}

// A decimal number, perhaps with a fraction, and what follows it.
struct Quantity {
  std::int64_t digits = 0;  // without the point
  std::int64_t scale = 1;   // the number is digits / scale
  std::string_view unit;
};

std::optional<Quantity> split_quantity(std::string_view text) {
  Quantity q;
  const bool negative = text.starts_with('-');
  if (negative) text.remove_prefix(1);
  bool point = false;
  std::size_t i = 0, digits = 0;
  for (; i < text.size() && (is_digit(text[i]) || (text[i] == '.' && !point)); ++i) {
    if (text[i] == '.') {
      point = true;
      continue;
    }
    ++digits;
    if (__builtin_mul_overflow(q.digits, 10, &q.digits) ||
        __builtin_add_overflow(q.digits, text[i] - '0', &q.digits) ||
        (point && __builtin_mul_overflow(q.scale, 10, &q.scale)))
      return std::nullopt;
  }
  if (digits == 0) return std::nullopt;
  while (i < text.size() && text[i] == ' ') ++i;
  q.unit = text.substr(i);
  if (negative) q.digits = -q.digits;
  return q;
}

// The exact product of quantity and unit, if it is a whole number that fits.
std::optional<std::int64_t> scaled(const Quantity& q, std::int64_t factor) {
  std::int64_t product = 0;
  if (__builtin_mul_overflow(q.digits, factor, &product) || product % q.scale != 0) return std::nullopt;
  return product / q.scale;
}

Complaint parse_quantity(const YamlNode& node, std::span<const Unit> units, const std::string& what,
                         std::int64_t& value) {
  if (node.kind != YamlNode::Kind::scalar) return expected(node, what);
  if (auto complaint = two_readings(node.text)) return *complaint;
  const auto q = split_quantity(node.text);
  if (!q) return expected(node, what);
  if (q->digits == 0 && q->unit.empty()) {  // nothing is nothing in every unit
    value = 0;
    return "";
  }
  const auto unit =
      std::find_if(units.begin(), units.end(), [&](const Unit& u) { return u.name == q->unit; });
  if (unit == units.end()) return expected(node, what);
  const auto product = scaled(*q, unit->factor);
  if (!product) return expected(node, what + ", whole and below 2^63");
  value = *product;
  return "";
}

}  // namespace

Complaint parse_integer(const YamlNode& node, std::int64_t& value) {
  const std::string what = "a whole number such as 2";
  if (node.kind != YamlNode::Kind::scalar || node.quoted) return expected(node, what);
  if (auto complaint = two_readings(node.text)) return *complaint;
  const char* end = node.text.data() + node.text.size();
  const auto [rest, error] = std::from_chars(node.text.data(), end, value);
  if (error == std::errc::result_out_of_range) return fmt::format("{} is too large", node.text);
  return error == std::errc() && rest == end ? "" : expected(node, what);
}

Complaint parse_count(const YamlNode& node, std::int64_t& value) {
  return parse_quantity(node, kCountUnits, "a count such as 2000, 10K, 1.5M or 2B", value);
}

Complaint parse_bytes(const YamlNode& node, std::int64_t& value) {
  return parse_quantity(node, kByteUnits, "bytes with their unit, such as 256MiB or 4GiB", value);
}

Complaint parse_seconds(const YamlNode& node, double& value) {
  std::int64_t milliseconds = 0;
  auto complaint =
      parse_quantity(node, kTimeUnits, "a time with its unit, such as 30s, 5m or 2h", milliseconds);
  if (complaint.empty()) value = static_cast<double>(milliseconds) / 1000.0;
  return complaint;
}

Complaint parse_real(const YamlNode& node, double& value) {
  const std::string what = "a number such as 0.1 or 1e-5";
  if (node.kind != YamlNode::Kind::scalar || node.quoted) return expected(node, what);
  if (auto complaint = two_readings(node.text)) return *complaint;
  const char* end = node.text.data() + node.text.size();
  const auto [rest, error] = std::from_chars(node.text.data(), end, value);
  if (error == std::errc::result_out_of_range) return fmt::format("{} does not fit a float64", node.text);
  return error == std::errc() && rest == end && std::isfinite(value) ? "" : expected(node, what);
}

Complaint parse_boolean(const YamlNode& node, bool& value) {
  if (node.kind != YamlNode::Kind::scalar || node.quoted) return expected(node, "true or false");
  value = node.text == "true";
  if (value || node.text == "false") return "";
  for (const char* word : {"yes", "Yes", "YES", "no", "No", "NO", "on",   "On",   "ON",    "off",
                           "Off", "OFF", "y",   "Y",  "n",  "N",  "True", "TRUE", "False", "FALSE"}) {
    if (node.text == word)
      return fmt::format("found {}, which YAML readers do not agree on; write true or false", node.text);
  }
  return expected(node, "true or false");
}

Complaint parse_word(const YamlNode& node, const std::vector<std::string>& words, int& index) {
  const auto what = fmt::format("{}{}", words.size() > 1 ? "one of " : "", fmt::join(words, ", "));
  if (node.kind != YamlNode::Kind::scalar) return expected(node, what);
  const auto found = std::find(words.begin(), words.end(), node.text);
  if (found == words.end()) {
    const std::string near = nearest(node.text, words);
    return expected(node, what) + (near.empty() ? "" : "; did you mean " + near + "?");
  }
  index = static_cast<int>(found - words.begin());
  return "";
}

Complaint parse_path(const YamlNode& node, const std::string& what, std::string& value) {
  if (node.kind == YamlNode::Kind::null)
    return fmt::format("expected {}, found nothing (a plain ~ is nothing)", what);
  if (node.kind != YamlNode::Kind::scalar) return expected(node, what);
  if (node.text.empty()) return fmt::format("expected {}, found empty text", what);
  if (node.text.find('\0') != std::string::npos) return fmt::format("{} holds a zero byte", node.describe());
  value = node.text;
  return "";
}

std::string write_count(std::int64_t value) {
  std::string_view name;
  std::int64_t factor = 1;
  for (const auto& unit : kCountUnits) {
    if (value == 0 || value % unit.factor != 0 || unit.factor <= factor) continue;
    name = unit.name;
    factor = unit.factor;
  }
  return fmt::format("{}{}", value / factor, name);
}

std::string write_bytes(std::int64_t value) {
  const auto unit = std::find_if(kByteUnits.begin(), kByteUnits.end(),
                                 [&](const Unit& u) { return value != 0 && value % u.factor == 0; });
  return unit == kByteUnits.end() ? "0B" : fmt::format("{}{}", value / unit->factor, unit->name);
}

std::string write_seconds(double value) {
  const std::int64_t milliseconds = std::llround(value * 1000.0);
  if (milliseconds == 0) return "0s";
  // The largest unit that divides; milliseconds always do.
  const auto unit = std::find_if(kTimeUnits.rbegin(), kTimeUnits.rend(),
                                 [&](const Unit& u) { return milliseconds % u.factor == 0; });
  return fmt::format("{}{}", milliseconds / unit->factor, unit->name);
}

std::string write_real(double value) {
  return fmt::format("{}", value);
}

std::string write_text(const std::string& text) {
  const auto harmless = [](char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.' ||
           c == '/' || c == '-';
  };
  const bool plain = !text.empty() && text[0] != '-' && std::all_of(text.begin(), text.end(), harmless);
  if (plain && text != "null" && text != "Null" && text != "NULL") return text;
  std::string quoted = "\"";
  for (const char c : text) append_quoted(quoted, c);
  return quoted + '"';
}

}  // namespace lapidary
