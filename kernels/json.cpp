#include "kernels/json.h"

#include <fmt/ranges.h>

#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {

using nlohmann::json;

json parse_json(std::string_view text, const std::string& where, int max_depth) {
  std::vector<std::set<std::string>> keys;  // of every object that is open
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    switch (event) {
      case json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        require(depth < max_depth, "{}: nested deeper than {} levels", where, max_depth);
        break;
      case json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case json::parse_event_t::key: {
        const auto& key = value.get_ref<const std::string&>();
        require(keys.back().insert(key).second, "{}: key \"{}\" appears twice in one object", where, key);
        break;
      }
      default:
        break;
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& e) {
    fail("{}: not valid JSON: {:.300}", where, e.what());  // the message quotes what was read, however long
  }
}

json read_json_file(const std::string& path, std::int64_t limit) {
  return parse_json(read_text_file(path, limit), path);
}

const json& json_member(const json& object, const std::string& key, json::value_t type,
                        const std::string& where) {
  require(object.is_object(), "{}: expected an object, found {}", where, object.type_name());
  const auto found = object.find(key);
  require(found != object.end(), "{}: \"{}\" is missing", where, key);
  require(found->type() == type, "{}: \"{}\" is {}, expected {}", where, key, found->type_name(),
          json(type).type_name());
  return *found;
}

std::int64_t as_count(const json& value, const std::string& where) {
  require(value.is_number_unsigned(), "{}: found {}, expected a non-negative integer", where,
          value.is_number() ? value.dump() : value.type_name());
  const auto number = value.get<std::uint64_t>();
  require(number <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()),
          "{}: {} is too large", where, number);
  return static_cast<std::int64_t>(number);
}

std::vector<std::int64_t> as_counts(const json& value, const std::string& where) {
  require(value.is_array(), "{}: found {}, expected an array", where, value.type_name());
  std::vector<std::int64_t> counts;
  counts.reserve(value.size());
  for (const json& item : value) counts.push_back(as_count(item, where));
  return counts;
}

std::int64_t checked_product(const std::vector<std::int64_t>& counts, const std::string& where) {
  std::int64_t product = 1;
  for (const std::int64_t count : counts)
    require(!__builtin_mul_overflow(product, count, &product), "{}: the product of [{}] does not fit 64 bits",
            where, fmt::join(counts, ", "));
  return product;
}

std::int64_t json_count(const json& object, const std::string& key, const std::string& where) {
  return as_count(json_member(object, key, json::value_t::number_unsigned, where), where + ": " + key);
}

std::string json_string(const json& object, const std::string& key, const std::string& where) {
  return json_member(object, key, json::value_t::string, where).get<std::string>();
}

}  // namespace lapidary
