#include "trainer/rates.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {

namespace {

constexpr std::int64_t kLargestFile = std::int64_t{16} << 20;

bool same_situation(const RateSet& a, const RateSet& b) {
  return a.device == b.device && a.type == b.type && a.ranks == b.ranks && a.tokens == b.tokens;
}

}  // namespace

std::string device_name(std::string_view description) {
  const std::size_t comma = description.find(',');
  std::string_view name = description.substr(0, comma);
  if (name.starts_with("GPU")) {
    const std::size_t colon = name.find(": ");
    if (colon != std::string_view::npos) name.remove_prefix(colon + 2);
  } else if (comma != std::string_view::npos) {  // a CPU: its number of threads tells it from others
    name = description.substr(0, description.find(',', comma + 1));
  }
  return std::string(name);
}

RateSet parse_rate_set(std::string_view text, const std::string& where) {
  const nlohmann::json line = parse_json(text, where);
  RateSet out;
  out.device = json_string(line, "device", where);
  out.type = json_string(line, "type", where);
  out.ranks = static_cast<int>(json_count(line, "ranks", where));
  out.tokens = json_count(line, "tokens", where);
  out.source = json_string(line, "source", where);
  for (const auto& [kind, rate] :
       json_member(line, "rates", nlohmann::json::value_t::object, where).items()) {
    require(rate.is_number() && std::isfinite(rate.get<double>()) && rate.get<double>() > 0,
            "{}: the rate of \"{}\" is {}, expected a number above 0", where, kind, rate.dump());
    out.rates[kind] = rate.get<double>();
  }
  return out;
}

std::vector<RateSet> read_rates(const std::string& path) {
  const std::string text = read_text_file(path, kLargestFile);
  std::vector<RateSet> out;
  std::size_t begin = 0;
  for (int number = 1; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    out.push_back(parse_rate_set(std::string_view(text).substr(begin, end - begin),
                                 fmt::format("{}:{}", path, number)));
    begin = end + 1;
  }
  return out;
}

void save_rates(const std::string& path, const RateSet& measured) {
  std::vector<RateSet> sets;
  if (std::filesystem::exists(path)) sets = read_rates(path);
  const auto known =
      std::ranges::find_if(sets, [&](const RateSet& set) { return same_situation(set, measured); });
  if (known == sets.end()) {
    sets.push_back(measured);
  } else {
    known->source = measured.source;
    for (const auto& [kind, rate] : measured.rates) known->rates[kind] = rate;
  }
  std::string text;
  for (const RateSet& set : sets) {
    text += nlohmann::json{{"device", set.device}, {"type", set.type},     {"ranks", set.ranks},
                           {"tokens", set.tokens}, {"source", set.source}, {"rates", set.rates}}
                .dump() +
            '\n';
  }
  const std::string fresh = fmt::format("{}.{}", path, getpid());
  std::filesystem::remove(fresh);
  write_new_text_file(fresh, text);
  publish(fresh, path);
}

}  // namespace lapidary
