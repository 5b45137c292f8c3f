// From a Hugging Face folder to a checkpoint.
#include <filesystem>

#include "kernels/check.h"
#include "kernels/json.h"
#include "model/config.h"
#include "model/weights.h"
#include "trainer/checkpoint_files.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {

namespace {

DType type_in_checkpoint(const StoredTensor& tensor, const std::string& where) {
  switch (tensor.type) {
    case StoredType::bf16:
      return DType::bf16;
    case StoredType::f16:
    case StoredType::f32:
      return DType::f32;
    default:
      fail("{}: {}: type {}, expected BF16, F16 or F32", where, tensor.name, name_of(tensor.type));
  }
}

/// Values straight from the files.
class FileValues : public ShardValues {
 public:
  FileValues(const Safetensors& files, std::vector<const StoredTensor*> stored)
      : files_(&files), stored_(std::move(stored)) {}

  const void* next(const ShardPiece& piece) override {
    const StoredTensor& from = *stored_[piece.tensor];
    const std::int64_t begin = piece.slice->begin + piece.first;
    buffer_.resize(static_cast<std::size_t>(piece.bytes));
    if (from.type == StoredType::f16)
      files_->read(from, begin, piece.count, reinterpret_cast<float*>(buffer_.data()));
    else
      files_->read_bytes(from, begin, piece.count, buffer_.data());
    return buffer_.data();
  }

 private:
  const Safetensors* files_;
  std::vector<const StoredTensor*> stored_;
  std::vector<std::byte> buffer_;
};

}  // namespace

std::string import_checkpoint(const std::string& folder, const std::string& directory, HostGroup& group) {
  std::unique_ptr<Safetensors> files;
  std::vector<const StoredTensor*> stored;
  ShardPlan plan;
  nlohmann::json state;
  group.all_or_error("import: the folder", [&] {
    const std::string config = folder + "/config.json";
    const ParameterTable table = make_parameter_table(read_model_config(config));
    files = std::make_unique<Safetensors>(folder);
    stored = match_tensors(table, *files);
    state = {{"step", 0},
             {"source", std::filesystem::canonical(folder).string()},
             {"model", read_json_file(config, 16 << 20)}};
    std::vector<CheckpointTensor> tensors;
    for (std::size_t i = 0; i < stored.size(); ++i) {
      const ParameterSpec& spec = table.specs[i];
      CheckpointTensor tensor{spec.name, "weight", type_in_checkpoint(*stored[i], folder), spec.shape, {}};
      const std::int64_t begin = spec.numel() * group.rank() / group.size(),
                         end = spec.numel() * (group.rank() + 1) / group.size();
      if (begin < end) tensor.slices.push_back({begin, end - begin, nullptr});
      tensors.push_back(std::move(tensor));
    }
    plan = plan_shard(group.rank(), tensors);
  });
  FileValues values(*files, std::move(stored));
  return write_checkpoint(directory, 0, {&plan, 1}, values, state.dump(), group);
}

}  // namespace lapidary
