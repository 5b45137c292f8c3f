#include "trainer/named_files.h"

#include <functional>
#include <optional>

#include "kernels/check.h"
#include "kernels/number_text.h"
#include "model/parameter_table.h"
#include "model/safetensors.h"
#include "model/weights.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/training_run.h"

namespace lapidary {
namespace {

std::string describe_checkpoint(const std::string& path) {
  const std::string found = find_checkpoint(path);
  return fmt::format("{}, step {}", found, read_manifest(found).step);
}

std::string describe_weights(const ConfigPath& weights, const ParameterTable& table) {
  if (weights.is("random")) return "random";
  const std::string path = weights.resolve();
  if (holds_checkpoint(path)) return describe_checkpoint(path);
  const Safetensors files(path);
  return fmt::format("{} tensors in {}", match_tensors(table, files).size(), path);
}

std::string describe_data(const LoaderOptions& options) {
  const Loader loader(options);
  return fmt::format("{} documents, {} tokens", with_thousands(loader.documents()),
                     with_thousands(loader.tokens()));
}

}  // namespace

std::vector<std::string> open_named_files(const RunConfig& config) {
  std::vector<std::string> lines, problems;
  const auto look = [&](const char* key, const std::function<std::string()>& describe) {
    try {
      lines.push_back(fmt::format("{}: {}", key, describe()));
    } catch (const Error& e) {
      problems.push_back(fmt::format("{}: {}", key, e.what()));
    }
  };
  std::optional<ModelConfig> model;
  look("model.config", [&] {
    model = read_model_config(config.model.config.resolve());
    return fmt::format("{} parameters, {} layers",
                       with_thousands(make_parameter_table(*model).trainable_elements()),
                       model->layers.size());
  });
  if (model) {  // without its shape nothing can be said to fit
    look("model.weights",
         [&] { return describe_weights(config.model.weights, make_parameter_table(*model)); });
    look("data.train",
         [&] { return describe_data(loader_options(config, *model, config.data.train, false)); });
    if (!config.data.validation.empty())
      look("data.validation",
           [&] { return describe_data(loader_options(config, *model, config.data.validation, true)); });
  }
  const ConfigPath& resume = config.checkpoint.resume;
  if (!resume.is("auto") && !resume.is("none") && !resume.is("weights-only"))
    look("checkpoint.resume", [&] { return describe_checkpoint(resume.resolve()); });
  const auto count = static_cast<std::int64_t>(problems.size());
  require_none(std::move(problems), counted(count, "error") + " in what the configuration names");
  return lines;
}

}  // namespace lapidary
