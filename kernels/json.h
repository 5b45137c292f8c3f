// JSON from files that others wrote: parsed with the limits and the strictness that a hostile or damaged file
// calls for. Duplicate keys are an error (nlohmann keeps the last one), and so is nesting deeper than any of
// our formats.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

/// `where` starts every message (file, or file and line). Errors name the place (line, column) or the
/// repeated key.
nlohmann::json parse_json(std::string_view text, const std::string& where, int max_depth = 64);

/// A whole file of at most `limit` bytes.
nlohmann::json read_json_file(const std::string& path, std::int64_t limit);

/// object[key], or an Error naming `where`, the key and, if the type differs, what was found and expected.
const nlohmann::json& json_member(const nlohmann::json& object, const std::string& key,
                                  nlohmann::json::value_t type, const std::string& where);
/// A non-negative integer that fits an int64 under `key`.
std::int64_t json_count(const nlohmann::json& object, const std::string& key, const std::string& where);
std::string json_string(const nlohmann::json& object, const std::string& key, const std::string& where);
/// The value itself as a non-negative integer that fits an int64.
std::int64_t as_count(const nlohmann::json& value, const std::string& where);
/// An array of such integers.
std::vector<std::int64_t> as_counts(const nlohmann::json& value, const std::string& where);
/// The product, 1 of nothing; Error if it does not fit an int64.
std::int64_t checked_product(const std::vector<std::int64_t>& counts, const std::string& where);

}  // namespace lapidary
