#include "trainer/run_checkpoints.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/json.h"
#include "kernels/number_text.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {

namespace {

using Json = nlohmann::json;

std::string to_state(const RunProgress& p, const std::string& config_yaml, const Json& model) {
  Json data = {{"row", p.data.row}, {"epoch", p.data.epoch}, {"epoch_first_row", p.data.epoch_first_row}};
  data["data"] = p.data.data;
  data["order"] = p.data.order;
  Json state = {{"step", p.step}, {"tokens", p.tokens}, {"seed", p.seed}};
  state["data"] = std::move(data);
  state["config"] = config_yaml;
  state["model"] = model;
  return state.dump();
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

/// Tensors of a checkpoint in the order in which they were first asked for.
class TensorList {
 public:
  CheckpointTensor& entry(const ParameterSpec& spec, const std::string& part, DType type) {
    const auto [it, is_new] = index_.try_emplace({spec.name, part}, tensors_.size());
    if (is_new) tensors_.push_back({spec.name, part, type, spec.shape, {}});
    return tensors_[it->second];
  }
  std::vector<CheckpointTensor> tensors() && { return std::move(tensors_); }

 private:
  std::vector<CheckpointTensor> tensors_;
  std::map<std::pair<std::string, std::string>, std::size_t> index_;
};

}  // namespace

RunCheckpoints::RunCheckpoints(std::string directory, const RunConfig::Checkpoint& options,
                               Instance& instance, const Mesh& mesh, HostGroup& world)
    : directory_(std::move(directory)),
      staging_(static_cast<std::size_t>(options.staging)),
      fallback_(options.fallback),
      instance_(&instance),
      mesh_(&mesh),
      world_(&world) {
  retention_.keep_last = static_cast<int>(options.keep_last);
  retention_.keep_every = options.keep_every;
  retention_.keep_best = static_cast<int>(options.keep_best);
}

void RunCheckpoints::prepare_folder() {
  world_->all_or_error("preparing the checkpoint folder", [&] {
    if (world_->rank() != 0) return;
    create_directories(directory_);
    sweep_leftovers(directory_);
  });
}

std::vector<RunCheckpoints::Part> RunCheckpoints::parts_of(std::size_t shard, What what) const {
  std::vector<Part> parts{{"weight", instance_->shards()[shard]->weight}};
  if (instance_->has_optimizer()) {
    const Optimizer::State& state = instance_->optimizer().states()[shard];
    parts.push_back({"master", state.master});
    parts.push_back({"remainder", state.remainder});
    if (what == What::all) {
      parts.push_back({"exp_avg", state.m});
      parts.push_back({"exp_avg_sq", state.v});
    }
  }
  std::erase_if(parts, [](const Part& part) { return !part.tensor; });
  return parts;
}

std::vector<CheckpointTensor> RunCheckpoints::tensors(What what, bool saving) const {
  TensorList list;
  const ParameterTable& table = instance_->table();
  const std::vector<ParameterShard*>& shards = instance_->shards();
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const bool is_table = s + 1 == shards.size();
    const int unit = is_table ? -1 : static_cast<int>(s);
    // Where several ranks hold the same piece, the first of them saves it.
    const bool writes = !saving || (is_table ? mesh_->table_replicas->rank() : mesh_->replicas->rank()) == 0;
    for (const Part& part : parts_of(s, what)) {
      const DType type = part.tensor.dtype();
      const auto has = [&](const ParameterSpec& spec) { return spec.trainable || part.name == "weight"; };
      // Every rank brings the same list of tensors; what it does not hold has no slices.
      for (const ParameterSpec& spec : table.specs)
        if (spec.unit == unit && has(spec)) list.entry(spec, part.name, type);
      if (!writes) continue;
      for (const ShardSlice& slice : shards[s]->slices) {
        const ParameterSpec& spec = table.specs[static_cast<std::size_t>(slice.parameter)];
        if (slice.count == 0 || !has(spec)) continue;
        auto* const data = static_cast<std::byte*>(part.tensor.data()) +
                           static_cast<std::size_t>(slice.offset) * size_of(type);
        list.entry(spec, part.name, type).slices.push_back({slice.parameter_begin, slice.count, data});
      }
    }
  }
  return std::move(list).tensors();
}

void RunCheckpoints::prepare_saving(int ranks_per_node, const std::string& config_yaml, const Json& model) {
  config_yaml_ = config_yaml;
  model_ = model;
  const std::size_t share = cpu_backend().memory().free / 2 / static_cast<std::size_t>(ranks_per_node);
  HostGroup group = world_->duplicate();
  world_->all_or_error("preparing to save", [&] {
    saver_.emplace(directory_, retention_, tensors(What::all, true), instance_->stream().backend(),
                   std::min(staging_, share), std::move(group));
  });
}

void RunCheckpoints::start_save(const RunProgress& progress, std::optional<double> validation_loss) {
  instance_->hold_state_until(saver_->start(progress.step, to_state(progress, config_yaml_, model_),
                                            validation_loss, instance_->stream()));
}

CheckpointReadOptions RunCheckpoints::read_options() const {
  Stream& stream = instance_->stream();
  Backend& backend = stream.backend();
  CheckpointReadOptions options;
  options.convert = true;
  if (backend.device() != Device::cpu) {
    options.store = [&](void* to, const void* host, std::size_t bytes) {
      backend.copy_to_device(stream, to, host, bytes);
      backend.synchronize(stream);
    };
  }
  return options;
}

void RunCheckpoints::set_aside(const Checkpoint& found, std::ostream& notes) {
  for (const Checkpoint::Damaged& damaged : found.passed_over) {
    std::string path;
    world_->all_or_error("setting a damaged checkpoint aside", [&] {
      if (world_->rank() == 0) path = set_aside_damaged(directory_, damaged.step);
    });
    if (world_->rank() == 0)
      notes << fmt::format("DAMAGED: {}\n  passed over, and set aside as {}\n", damaged.message, path);
  }
}

void RunCheckpoints::refuse_newer_than(std::int64_t step) {
  world_->all_or_error("looking for newer checkpoints", [&] {
    if (world_->rank() != 0) return;
    const std::vector<std::int64_t> steps = published_steps(directory_);
    require(steps.empty() || steps.front() <= step,
            "checkpoint.resume: {}/{} is newer than step {}, where this run would begin: its own saves would "
            "meet the ones that are there; use auto, another run.directory, or move that one away",
            directory_, checkpoint_name(steps.empty() ? 0 : steps.front()), step);
  });
}

std::string RunCheckpoints::agree_on(const std::function<std::string()>& find) {
  std::string found;
  world_->all_or_error("looking for a checkpoint", [&] {
    if (world_->rank() == 0) found = find();
  });
  return world_->broadcast(std::move(found), 0, "looking for a checkpoint");
}

std::optional<ResumedRun> RunCheckpoints::resume(const ConfigPath& resume, std::ostream& notes) {
  if (resume.is("none")) {
    refuse_newer_than(0);
    return std::nullopt;
  }
  const bool weights_only = resume.is("weights-only");
  const bool newest = resume.is("auto") || weights_only;
  const auto wanted = tensors(weights_only ? What::weights : What::all, false);
  std::optional<Checkpoint> found;
  if (newest) {
    found = restore_newest_checkpoint(directory_, fallback_, wanted, *world_, read_options());
  } else {
    const std::string named = agree_on([&] { return find_checkpoint(resume.resolve()); });
    found = restore_checkpoint(named, wanted, *world_, read_options());
  }
  if (!found) return std::nullopt;
  set_aside(*found, notes);
  if (world_->rank() == 0)
    notes << fmt::format("Resuming from {} (step {}, written by {}){}\n", found->path, found->manifest.step,
                         counted(found->manifest.ranks, "rank"),
                         weights_only ? ": weights only, the moments begin at zero" : "");
  instance_->weights_resumed();
  if (!newest) refuse_newer_than(found->manifest.step);
  const auto folder = std::filesystem::path(found->path).parent_path();
  return ResumedRun{
      from_state(found->manifest.state, found->path),
      newest || std::filesystem::weakly_canonical(folder) == std::filesystem::weakly_canonical(directory_),
      json_string(found->manifest.state, "config", found->path)};
}

std::int64_t RunCheckpoints::load_weights_only(const std::string& path, std::ostream& notes) {
  // One itself is read or refused; of a folder of them the newest sound one is.
  const std::string one = agree_on([&] {
    (void)find_checkpoint(path);  // an Error where there is none
    return is_checkpoint(path) ? path : std::string();
  });
  const auto wanted = tensors(What::weights, false);
  const std::optional<Checkpoint> found =
      one.empty() ? restore_newest_checkpoint(agree_on([&] { return folder_of_checkpoints(path); }),
                                              fallback_, wanted, *world_, read_options())
                  : restore_checkpoint(one, wanted, *world_, read_options());
  require(found.has_value(), "{}: no checkpoint is left there", path);
  for (const Checkpoint::Damaged& damaged : found->passed_over)
    if (world_->rank() == 0) notes << fmt::format("DAMAGED: {}\n  passed over\n", damaged.message);
  instance_->weights_resumed();
  return found->manifest.step;
}

}  // namespace lapidary
