#include "trainer/metrics_history.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

using Points = std::vector<MetricsHistory::Point>;

void drop_after(Points& points, std::int64_t step) {
  while (!points.empty() && points.back().step > step) points.pop_back();
}

double number_or_nan(const nlohmann::json& record, const char* key) {
  const auto found = record.find(key);
  if (found == record.end() || !found->is_number()) return std::numeric_limits<double>::quiet_NaN();
  return found->get<double>();
}

// False if the line is no record.
bool take_line(const std::string& line, MetricsHistory& history) {
  const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) return false;
  const auto event = record.find("event"), step = record.find("step");
  if (event == record.end() || !event->is_string() || step == record.end() || !step->is_number_integer())
    return false;
  const auto at = step->get<std::int64_t>();
  if (*event == "start") {
    std::int64_t last = at;
    for (const Points* points : {&history.train, &history.validation})
      if (!points->empty()) last = std::max(last, points->back().step);
    history.starts.push_back({at, last - at});
    drop_after(history.train, at);
    drop_after(history.validation, at);
  } else if (*event == "step" || *event == "validation") {
    const bool train = *event == "step";
    Points& points = train ? history.train : history.validation;
    drop_after(points, at - 1);
    points.push_back({at, number_or_nan(record, train ? "loss" : "validation_loss")});
  }
  return true;
}

}  // namespace

MetricsHistory read_metrics(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_with_errno("cannot open", path, errno);
  MetricsHistory history;
  std::string line;
  while (std::getline(file, line)) {
    if (file.eof()) break;  // without its end
    if (!take_line(line, history)) ++history.damaged_lines;
  }
  require(!file.bad(), "{}: cannot be read", path);
  return history;
}

}  // namespace lapidary
