#include "trainer/run_checkpoints.h"

#include <filesystem>
#include <map>

#include "kernels/check.h"
#include "kernels/json.h"

namespace lapidary {

namespace {

using Json = nlohmann::json;

std::string to_state(const RunProgress& p, const std::string& config_yaml) {
  return Json{{"step", p.step},
              {"tokens", p.tokens},
              {"seed", p.seed},
              {"data",
               {{"row", p.data.row},
                {"epoch", p.data.epoch},
                {"epoch_first_row", p.data.epoch_first_row},
                {"data", p.data.data},
                {"order", p.data.order}}},
              {"config", config_yaml}}
      .dump();
}

RunProgress from_state(const Json& state, const std::string& where) {
  RunProgress out;
  out.step = json_count(state, "step", where);
  out.tokens = json_count(state, "tokens", where);
  out.seed = json_member(state, "seed", Json::value_t::number_unsigned, where).get<std::int64_t>();
  const Json& data = json_member(state, "data", Json::value_t::object, where);
  out.data.row = json_count(data, "row", where);
  out.data.epoch = json_count(data, "epoch", where);
  out.data.epoch_first_row = json_count(data, "epoch_first_row", where);
  out.data.data = json_string(data, "data", where);
  out.data.order = json_string(data, "order", where);
  return out;
}

}  // namespace

/// Host copies of tensors that live on a GPU, for the time of a save or a load.
struct RunCheckpoints::Staged {
  explicit Staged(Instance& i) : instance(&i), backend(&i.stream().backend()) {}
  ~Staged() {
    for (const auto& [device, host] : copies) backend->release_host(host.first);
  }
  Staged(const Staged&) = delete;
  Staged& operator=(const Staged&) = delete;

  /// The tensor's first byte on the host; with `fill` the copy is started.
  std::byte* host_of(const Tensor& t, bool fill) {
    if (backend->device() == Device::cpu) return static_cast<std::byte*>(t.data());
    auto& [host, bytes] = copies[t.data()];
    if (!host) {
      host = backend->allocate_host(t.bytes());
      bytes = t.bytes();
      if (fill) backend->copy_to_host(instance->stream(), host, t.data(), bytes);
    }
    return static_cast<std::byte*>(host);
  }
  void write_back() {
    for (const auto& [device, host] : copies)
      backend->copy_to_device(instance->stream(), device, host.first, host.second);
    backend->synchronize(instance->stream());
  }

  Instance* instance;
  Backend* backend;
  std::map<void*, std::pair<void*, std::size_t>> copies;
};

RunCheckpoints::RunCheckpoints(std::string directory, const RunConfig::Checkpoint& options,
                               Instance& instance, const Mesh& mesh, HostGroup& world)
    : directory_(std::move(directory)),
      fallback_(options.fallback),
      instance_(&instance),
      mesh_(&mesh),
      world_(&world) {
  retention_.keep_last = static_cast<int>(options.keep_last);
  retention_.keep_every = options.keep_every;
  world.all_or_error("preparing the checkpoint folder", [&] {
    if (world.rank() != 0) return;
    std::error_code error;
    std::filesystem::create_directories(directory_, error);
    require(!error, "{}: the checkpoint folder cannot be created: {}", directory_, error.message());
    sweep_leftovers(directory_);
  });
}

std::vector<CheckpointTensor> RunCheckpoints::tensors(bool saving, bool weights_only, Staged& staged) const {
  std::vector<CheckpointTensor> out;
  std::map<std::pair<std::string, std::string>, std::size_t> index;
  const ParameterTable& table = instance_->table();
  const std::vector<ParameterShard*>& shards = instance_->shards();
  // Every rank brings the same list of tensors; what it does not hold has no slices.
  const auto entry = [&](const ParameterSpec& spec, const char* part, DType type) -> CheckpointTensor& {
    const auto [it, is_new] = index.try_emplace({spec.name, part}, out.size());
    if (is_new) out.push_back({spec.name, part, type, spec.shape, {}});
    return out[it->second];
  };
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const ParameterShard& shard = *shards[s];
    const bool is_table = s + 1 == shards.size();
    // Where several ranks hold the same piece, the first of them saves it.
    const bool writes = !saving || (is_table ? mesh_->table_replicas->rank() : mesh_->replicas->rank()) == 0;
    std::vector<std::pair<const char*, Tensor>> parts = {{"weight", shard.weight}};
    if (!weights_only) {
      const Optimizer::State& state = instance_->optimizer().states()[s];
      parts.insert(parts.end(), {{"master", state.master},
                                 {"remainder", state.remainder},
                                 {"exp_avg", state.m},
                                 {"exp_avg_sq", state.v}});
    }
    for (const auto& [part, tensor] : parts) {
      if (!tensor) continue;
      std::byte* host = staged.host_of(tensor, saving);
      const auto add = [&](int parameter, std::int64_t begin, std::int64_t count, std::int64_t offset) {
        const ParameterSpec& spec = table.specs[static_cast<std::size_t>(parameter)];
        if (!spec.trainable && std::string_view(part) != "weight") return;
        CheckpointTensor& t = entry(spec, part, tensor.dtype());
        if (writes && count > 0)
          t.slices.push_back(
              {begin, count, host + static_cast<std::size_t>(offset) * size_of(tensor.dtype())});
      };
      for (const ParameterSpec& spec : table.specs) {  // the entries first, in one order on all ranks
        const int unit_of_shard = is_table ? -1 : static_cast<int>(s);
        if (spec.unit == unit_of_shard) add(static_cast<int>(&spec - table.specs.data()), 0, 0, 0);
      }
      for (const ShardSlice& slice : shard.slices)
        add(slice.parameter, slice.parameter_begin, slice.count, slice.offset);
    }
  }
  if (saving) staged.backend->synchronize(instance_->stream());
  return out;
}

std::string RunCheckpoints::save(const RunProgress& progress, const std::string& config_yaml,
                                 std::optional<double> validation_loss) {
  Staged staged(*instance_);
  CheckpointWriteOptions options;
  options.metric = validation_loss;
  const std::string path = write_checkpoint(directory_, progress.step, tensors(true, false, staged),
                                            to_state(progress, config_yaml), *world_, options);
  world_->all_or_error("deleting old checkpoints", [&] {
    if (world_->rank() == 0) delete_old_checkpoints(directory_, retention_);
  });
  return path;
}

void RunCheckpoints::restore(const Checkpoint& checkpoint, bool weights_only) {
  Staged staged(*instance_);
  CheckpointReadOptions options;
  options.convert = weights_only;
  read_checkpoint(checkpoint, tensors(false, weights_only, staged), *world_, options);
  staged.write_back();
}

std::optional<RunProgress> RunCheckpoints::resume(const ConfigPath& resume, std::ostream& notes) {
  if (resume.is("none")) return std::nullopt;
  const std::optional<Checkpoint> found = resume.is("auto")
                                              ? find_newest_checkpoint(directory_, fallback_, *world_)
                                              : open_checkpoint(resume.resolve(), *world_);
  if (!found) return std::nullopt;
  if (world_->rank() == 0) {
    for (const std::string& message : found->passed_over) notes << message << '\n';
    notes << fmt::format("Resuming from {} (step {}, written by {} ranks)\n", found->path,
                         found->manifest.step, found->manifest.ranks);
  }
  restore(*found, false);
  instance_->weights_resumed();
  return from_state(found->manifest.state, found->path);
}

std::int64_t RunCheckpoints::load_weights_only(const std::string& path) {
  const bool one = std::filesystem::exists(std::filesystem::path(path) / CheckpointManifest::kFileName);
  const std::optional<Checkpoint> found =
      one ? open_checkpoint(path, *world_) : find_newest_checkpoint(path, fallback_, *world_);
  require(found.has_value(), "{}: no checkpoint there", path);
  restore(*found, true);
  instance_->weights_resumed();
  return found->manifest.step;
}

}  // namespace lapidary
