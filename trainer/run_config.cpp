#include "trainer/run_config.h"

#include <cstdlib>
#include <set>

#include "kernels/check.h"

namespace lapidary {
namespace {

using Conflicts = std::vector<ConfigConflict>;

void check_data(const RunConfig& c, Conflicts& found) {
  if (c.data.train.empty())
    found.push_back({"data.train", "the list is empty, expected at least one folder"});
  std::set<std::string> train, validation;
  for (const auto& source : c.data.train) {
    if (!train.insert(source.path.text).second)
      found.push_back(
          {"data.train", fmt::format("{} is listed twice; give it a weight instead", source.path.text)});
  }
  for (const auto& source : c.data.validation) {
    if (!validation.insert(source.path.text).second)
      found.push_back({"data.validation", fmt::format("{} is listed twice", source.path.text)});
    if (train.contains(source.path.text))
      found.push_back(
          {"data.validation", fmt::format("{} is in data.train too: nothing is held out", source.path.text)});
  }
  if (c.validation.every > 0 && c.data.validation.empty())
    found.push_back(
        {"validation.every", fmt::format("is {}, but data.validation lists nothing", c.validation.every)});
}

void check_steps(const RunConfig& c, Conflicts& found) {
  if (c.schedule.warmup_steps > c.train.steps)
    found.push_back({"schedule.warmup_steps",
                     fmt::format("{} is more than train.steps, {}", c.schedule.warmup_steps, c.train.steps)});
  if (c.train.rows_per_rank > c.train.rows_per_step)
    found.push_back({"train.rows_per_rank", fmt::format("{} is more than train.rows_per_step, {}",
                                                        c.train.rows_per_rank, c.train.rows_per_step)});
  const auto& k = c.checkpoint;
  if (k.keep_every > 0 && (k.every == 0 || k.keep_every % k.every != 0))
    found.push_back(
        {"checkpoint.keep_every", fmt::format("{} is no multiple of checkpoint.every, {}: there would be no "
                                              "such checkpoints to keep",
                                              k.keep_every, k.every)});
  if (c.fault.kind != FaultKind::none && c.fault.step > c.train.steps)
    found.push_back({"fault.step", fmt::format("{} is after train.steps, {}", c.fault.step, c.train.steps)});
}

void check_precision(const RunConfig& c, Conflicts& found) {
  if (c.run.precision != Precision::float32) return;
  if (c.optimizer.state != OptimizerState::float32)
    found.push_back(
        {"optimizer.state", "with run.precision float32 the weights are float32, expected float32 here too"});
  if (c.parallel.gradient_dtype != Precision::float32)
    found.push_back({"parallel.gradient_dtype", "is bf16, but run.precision is float32"});
}

void check_groups(const RunConfig& c, Conflicts& found) {
  const auto& p = c.parallel;
  if (p.shard > 0 && p.vocabulary > 0 && p.shard % p.vocabulary != 0)
    found.push_back(
        {"parallel.vocabulary",
         fmt::format("{} does not divide parallel.shard, {}: a vocabulary group is part of a shard group",
                     p.vocabulary, p.shard)});
}

}  // namespace

std::string ConfigPath::resolve() const {
  std::string resolved;
  std::size_t at = 0;
  for (auto open = text.find("${"); open != std::string::npos; open = text.find("${", at)) {
    const auto close = text.find('}', open);
    require(close != std::string::npos, "{}: ${{ without }}", text);
    const std::string name = text.substr(open + 2, close - open - 2);
    const char* value = std::getenv(name.c_str());
    require(value != nullptr, "{}: the environment variable {} is not set", text, name);
    resolved += text.substr(at, open - at) + value;
    at = close + 1;
  }
  return resolved + text.substr(at);
}

std::vector<ConfigConflict> find_conflicts(const RunConfig& config) {
  Conflicts found;
  check_data(config, found);
  check_steps(config, found);
  check_precision(config, found);
  check_groups(config, found);
  return found;
}

}  // namespace lapidary
