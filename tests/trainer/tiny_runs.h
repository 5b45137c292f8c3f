// Whole training runs of a tiny model inside a test's process: data, configuration, and what metrics.jsonl
// says afterwards.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "data/bpe_tokenizer.h"
#include "data/build.h"
#include "kernels/check.h"
#include "trainer/config_reader.h"
#include "trainer/train.h"

namespace lapidary {

/// A number that the environment may raise for a long run by hand.
inline int count_from_environment(const char* name, int usual) {
  const char* asked = std::getenv(name);
  return asked != nullptr ? std::atoi(asked) : usual;
}

/// One logged step, as far as it must not depend on the day.
struct LoggedStep {
  double loss = 0, grad_norm = 0;
  std::string data_hash;
  std::int64_t total_tokens = 0;
  bool operator==(const LoggedStep&) const = default;
};

class TinyRuns {
 public:
  explicit TinyRuns(std::string folder) : folder_(std::move(folder)) {}

  /// Once, by one process, with one thread that has ended afterwards.
  void build_data() const {
    BuildOptions options;
    options.inputs = {std::string(LAPIDARY_SOURCE_DIR) + "/configs/sample/sample.jsonl"};
    options.output = folder_ + "/data";
    options.media.image.max_soft_tokens = 4;
    options.media.image.any_budget = true;
    options.validation = 0.08;
    options.threads = 1;
    build_dataset(options, *load_tokenizer("bytes", options.conversation.markup.tokens));
  }

  RunConfig config(const std::string& name, const std::vector<std::string>& settings) const {
    std::vector<std::string> all = {
        "run.directory=" + folder_of(name),
        "run.seed=3",
        "run.device=cpu",
        "run.precision=float32",
        std::string("model.config=") + LAPIDARY_SOURCE_DIR + "/tests/launch/tiny-model.json",
        "data.train=" + folder_ + "/data/train",
        "data.validation=" + folder_ + "/data/validation",
        "data.sequence_length=192",
        "data.read_ahead=1MiB",
        "loss.scratch=1MiB",
        "optimizer.lr=1e-3"};
    all.insert(all.end(), settings.begin(), settings.end());
    return load_config({{}, all});
  }

  std::string folder_of(const std::string& name) const { return folder_ + "/" + name; }
  std::string checkpoints_of(const std::string& name) const { return folder_of(name) + "/checkpoints"; }
  void remove(const std::string& name) const { std::filesystem::remove_all(folder_of(name)); }

  /// In this process alone; returns train()'s code, and what it printed in `console`.
  int run_alone(const std::string& name, const std::vector<std::string>& settings,
                std::string* console = nullptr) const {
    HostGroup alone;
    std::ostringstream out;
    const RunConfig configured = config(name, settings);
    const auto keep = [&] {
      if (console != nullptr) *console = out.str();
    };
    try {
      const int code = train(configured, alone, {}, out);
      keep();
      return code;
    } catch (...) {
      keep();
      throw;
    }
  }

  /// The last record of every step, which is the one that counts after restarts.
  std::map<std::int64_t, LoggedStep> steps(const std::string& name) const {
    std::map<std::int64_t, LoggedStep> steps;
    for (const nlohmann::json& line : lines(name, "step"))
      steps[line.at("step")] = {line.at("loss"), line.at("grad_norm"), line.at("data_hash"),
                                line.at("total_tokens")};
    return steps;
  }
  std::map<std::int64_t, double> validation_losses(const std::string& name) const {
    std::map<std::int64_t, double> losses;
    for (const nlohmann::json& line : lines(name, "validation"))
      losses[line.at("step")] = line.at("validation_loss");
    return losses;
  }
  /// The newest step that the run has reported as saved; 0: none.
  std::int64_t acknowledged(const std::string& name) const {
    std::int64_t step = 0;
    for (const nlohmann::json& line : lines(name, "checkpoint")) step = line.at("step");
    return step;
  }

 private:
  std::vector<nlohmann::json> lines(const std::string& name, const std::string& event) const {
    std::vector<nlohmann::json> found;
    std::ifstream in(folder_of(name) + "/metrics.jsonl");
    for (std::string line; std::getline(in, line);) {
      if (in.eof()) break;  // without its end: the run was killed while it wrote
      nlohmann::json value = nlohmann::json::parse(line);
      if (value.at("event") == event) found.push_back(std::move(value));
    }
    return found;
  }

  std::string folder_;
};

}  // namespace lapidary
