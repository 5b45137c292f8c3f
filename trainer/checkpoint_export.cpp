// From a checkpoint to a Hugging Face folder.
#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <ostream>
#include <system_error>

#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/json.h"
#include "model/parameter_table.h"
#include "model/safetensors.h"
#include "trainer/checkpoint_export.h"
#include "trainer/checkpoint_reader.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;  // a config.json keeps the order of its keys

constexpr std::int64_t kDefaultFile = 5'000'000'000;  // bytes, what Hugging Face libraries used for years
constexpr std::int64_t kLargestCopy = 256 << 20;      // bytes of a file that is carried over
constexpr const char* kIndexName = "model.safetensors.index.json";

struct ExportPlan {
  std::string source;  ///< folder, or empty
  std::vector<ExportedFile> files;
  bool as_source = false;  ///< cut into the source's files
};

StoredType stored_type(ExportType type, DType in_checkpoint, const std::string& name) {
  switch (type) {
    case ExportType::bf16:
      return StoredType::bf16;
    case ExportType::f16:
      return StoredType::f16;
    case ExportType::f32:
      return StoredType::f32;
    case ExportType::stored:
      break;
  }
  require(in_checkpoint == DType::bf16 || in_checkpoint == DType::f32,
          "{}: weights of type {} cannot be exported", name, name_of(in_checkpoint));
  return in_checkpoint == DType::bf16 ? StoredType::bf16 : StoredType::f32;
}

std::vector<StoredTensor> tensors_of(const Checkpoint& checkpoint, ExportType type) {
  std::vector<StoredTensor> out;
  for (const CheckpointManifest::Tensor& t : checkpoint.manifest.tensors) {
    if (t.part != "weight") continue;
    StoredTensor tensor;
    tensor.name = on_disk_name(t.name);
    tensor.type = stored_type(type, t.dtype, t.name);
    tensor.shape = t.shape;
    tensor.elements = t.elements();
    out.push_back(std::move(tensor));
  }
  require(!out.empty(), "{}: holds no weights", checkpoint.path);
  return out;
}

/// Files of at most so many bytes, in the checkpoint's order of tensors.
std::vector<ExportedFile> cut_by_size(const std::vector<StoredTensor>& tensors, std::int64_t most) {
  std::vector<ExportedFile> files(1);
  std::int64_t bytes = 0;
  for (const StoredTensor& tensor : tensors) {
    if (bytes > 0 && bytes + tensor.bytes() > most) {
      files.emplace_back();
      bytes = 0;
    }
    files.back().tensors.push_back(tensor);
    bytes += tensor.bytes();
  }
  for (std::size_t i = 0; i < files.size(); ++i) {
    files[i].name = files.size() == 1 ? "model.safetensors"
                                      : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
    sort_as_safetensors(files[i].tensors);
  }
  return files;
}

/// The source's files, in the order of their tensors, under the names on disk; nothing where its tensors are
/// others.
std::optional<std::vector<ExportedFile>> cut_as_source(const std::vector<StoredTensor>& tensors,
                                                       const Safetensors& source, bool with_types) {
  std::map<std::string, const StoredTensor*> by_name;
  for (const StoredTensor& tensor : tensors) by_name[tensor.name] = &tensor;
  std::vector<ExportedFile> files;
  for (const std::string& path : source.files()) {
    files.emplace_back().name = fs::path(path).filename().string();
    files.back().metadata = read_safetensors_header(path).metadata;
  }
  for (const StoredTensor& from : source.tensors()) {
    const auto found = by_name.find(on_disk_name(from.name));
    if (found == by_name.end() || found->second->shape != from.shape) return std::nullopt;
    StoredTensor tensor = *found->second;
    if (with_types) tensor.type = from.type;
    files[static_cast<std::size_t>(from.file)].tensors.push_back(std::move(tensor));
    by_name.erase(found);  // each once
  }
  if (!by_name.empty()) return std::nullopt;
  return files;
}

std::string find_source(const Checkpoint& checkpoint, const ExportOptions& options) {
  if (!options.source.empty()) {
    require(fs::is_directory(options.source), "{}: no such folder, expected a Hugging Face folder",
            options.source);
    return options.source;
  }
  const auto recorded = checkpoint.manifest.state.find("source");
  if (recorded == checkpoint.manifest.state.end() || !recorded->is_string()) return "";
  const auto folder = recorded->get<std::string>();
  return fs::is_directory(folder) ? folder : "";
}

ExportPlan make_plan(const Checkpoint& checkpoint, const ExportOptions& options) {
  ExportPlan plan;
  plan.source = find_source(checkpoint, options);
  const std::vector<StoredTensor> tensors = tensors_of(checkpoint, options.type);
  const bool has_files = !plan.source.empty() && (fs::exists(plan.source + "/model.safetensors") ||
                                                  fs::exists(fmt::format("{}/{}", plan.source, kIndexName)));
  if (has_files && options.max_file_bytes == 0) {
    const bool with_types = options.type == ExportType::stored;
    if (auto files = cut_as_source(tensors, Safetensors(plan.source), with_types)) {
      plan.files = std::move(*files);
      plan.as_source = true;
      return plan;
    }
  }
  plan.files = cut_by_size(tensors, options.max_file_bytes > 0 ? options.max_file_bytes : kDefaultFile);
  return plan;
}

/// Sets "dtype" (or its older name) wherever the file has it; false: nothing had to change.
bool set_dtype(Json& object, const std::string& dtype) {
  bool changed = false;
  for (auto& [key, value] : object.items()) {
    if (value.is_object()) changed |= set_dtype(value, dtype);
    if ((key != "dtype" && key != "torch_dtype") || !value.is_string() || value == dtype) continue;
    value = dtype;
    changed = true;
  }
  return changed;
}

/// The one type of all tensors, as config.json names it; empty: there are several.
std::string common_dtype(const ExportPlan& plan) {
  const StoredType first = plan.files.front().tensors.front().type;
  for (const ExportedFile& file : plan.files)
    for (const StoredTensor& tensor : file.tensors)
      if (tensor.type != first) return "";
  switch (first) {
    case StoredType::bf16:
      return "bfloat16";
    case StoredType::f16:
      return "float16";
    default:
      return "float32";
  }
}

void write_config(const Checkpoint& checkpoint, const ExportPlan& plan, const std::string& folder) {
  const std::string in_source = plan.source.empty() ? "" : plan.source + "/config.json";
  std::string text;
  Json config;
  if (!in_source.empty() && fs::exists(in_source)) {
    text = read_text_file(in_source, kLargestCopy);
    parse_json(text, in_source);
    config = Json::parse(text);
  } else {
    const auto model = checkpoint.manifest.state.find("model");
    require(model != checkpoint.manifest.state.end() && model->is_object(),
            "{}: holds no config.json: give the folder of the model's with --source", checkpoint.path);
    config = Json::parse(model->dump());
    text = config.dump(2) + "\n";
  }
  const std::string dtype = common_dtype(plan);
  if (!dtype.empty() && set_dtype(config, dtype)) text = config.dump(2) + "\n";
  write_new_text_file(folder + "/config.json", text);
}

/// The source's own index where it says the same; its bytes are kept then.
bool source_index_fits(const std::string& path, const std::map<std::string, std::string>& file_of,
                       std::int64_t bytes) {
  if (!fs::exists(path) || read_safetensors_index(path) != file_of) return false;
  const nlohmann::json index = read_json_file(path, kLargestSafetensorsHeader);
  const auto metadata = index.find("metadata");
  return metadata == index.end() || metadata->value("total_size", bytes) == bytes;
}

void write_index(const ExportPlan& plan, const std::string& folder) {
  if (plan.files.size() == 1 && plan.files.front().name == "model.safetensors") return;
  std::int64_t bytes = 0, elements = 0;
  std::map<std::string, std::string> file_of;
  for (const ExportedFile& file : plan.files) {
    bytes += file.bytes();
    for (const StoredTensor& tensor : file.tensors) {
      elements += tensor.elements;
      file_of[tensor.name] = file.name;
    }
  }
  const std::string to = fmt::format("{}/{}", folder, kIndexName);
  const std::string in_source = fmt::format("{}/{}", plan.source, kIndexName);
  if (plan.as_source && source_index_fits(in_source, file_of, bytes))
    return write_new_text_file(to, read_text_file(in_source, kLargestSafetensorsHeader));
  const Json index = {{"metadata", {{"total_parameters", elements}, {"total_size", bytes}}},
                      {"weight_map", file_of}};
  write_new_text_file(to, index.dump(2) + "\n");
}

/// Tokenizer, processor, licence and so on: everything beside the weights and what is written anew.
std::vector<std::string> carry_over(const std::string& source, const std::string& folder) {
  std::vector<std::string> names;
  if (source.empty()) return names;
  for (const auto& entry : fs::directory_iterator(source)) {
    const std::string name = entry.path().filename().string();
    const auto ends = [&](const char* with) { return name.ends_with(with); };
    const bool is_weights = ends(".safetensors") || ends(".safetensors.index.json") || ends(".bin") ||
                            ends(".bin.index.json") || ends(".pt") || ends(".pth") || ends(".gguf") ||
                            ends(".h5") || ends(".msgpack");
    if (name.starts_with('.') || is_weights || name == "config.json" || !fs::is_regular_file(entry.path()))
      continue;
    write_new_text_file(fmt::format("{}/{}", folder, name), read_text_file(entry.path(), kLargestCopy));
    names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void print_plan(const ExportPlan& plan, const std::vector<std::string>& carried, std::ostream& notes) {
  std::int64_t bytes = 0;
  std::size_t tensors = 0;
  for (const ExportedFile& file : plan.files) {
    bytes += file.bytes();
    tensors += file.tensors.size();
  }
  notes << fmt::format("{} tensors, {} bytes in {} file{}{}\n", tensors, bytes, plan.files.size(),
                       plan.files.size() == 1 ? "" : "s", plan.as_source ? ", cut as the source" : "");
  if (plan.source.empty())
    notes << "no source folder: config.json is the checkpoint's, there is no tokenizer (see --source)\n";
  else
    notes << fmt::format(
        "from {}: {}\n", plan.source,
        carried.empty() ? "config.json" : "config.json, " + fmt::format("{}", fmt::join(carried, ", ")));
}

}  // namespace

void export_checkpoint(const std::string& path, const std::string& folder, const ExportOptions& options,
                       HostGroup& group, std::ostream& notes) {
  const Checkpoint checkpoint = open_manifest(path, group);
  fs::path target = fs::absolute(folder).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();  // written with a slash at its end
  const std::string hidden = target.parent_path() / fmt::format(".{}.partial", target.filename().string());
  const bool first = group.rank() == 0;
  ExportPlan plan;
  group.all_or_error("export: plan", [&] {
    plan = make_plan(checkpoint, options);
    if (!first) return;
    require(!fs::exists(fs::symlink_status(target)), "{} exists already; nothing is overwritten", folder);
    create_directories(target.parent_path());
    fs::remove_all(hidden);  // of an export that was killed
    std::int64_t bytes = 0;
    for (const ExportedFile& file : plan.files) bytes += file.bytes();
    const auto free = static_cast<std::int64_t>(fs::space(target.parent_path()).available);
    require(bytes < free, "{}: the export takes {} bytes, {} are free", folder, bytes, free);
    create_directories(hidden);
  });
  try {
    export_weights(checkpoint, hidden, plan.files, group);
    group.all_or_error("export: publication", [&] {
      if (!first) return;
      write_index(plan, hidden);
      write_config(checkpoint, plan, hidden);
      const std::vector<std::string> carried = carry_over(plan.source, hidden);
      sync_directory(hidden);
      publish_new(hidden, target.string());
      print_plan(plan, carried, notes);
    });
  } catch (...) {
    std::error_code ignored;
    if (first) fs::remove_all(hidden, ignored);
    throw;
  }
}

}  // namespace lapidary
