#include "trainer/training_run.h"

#include "kernels/check.h"
#include "kernels/json.h"
#include "model/weights.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {

TokenLayout token_layout(const ModelConfig& c) {
  TokenLayout out;
  out.vocabulary = static_cast<std::int32_t>(c.vocabulary);
  out.pad = c.pad_id;
  out.eos = c.eos_id;
  out.bos = c.bos_id;
  out.begin_image = c.begin_image_id;
  out.image = c.image_id;
  out.end_image = c.end_image_id;
  out.begin_audio = c.begin_audio_id;
  out.audio = c.audio_id;
  out.end_audio = c.end_audio_id;
  out.video = c.video_id;
  out.patch_width = static_cast<std::int32_t>(c.vision.patch_width());
  out.frame_width = static_cast<std::int32_t>(c.audio.frame_width);
  return out;
}

LoaderOptions loader_options(const RunConfig& config, const ModelConfig& model,
                             const std::vector<ConfiguredSource>& sources, bool one_pass, int rank,
                             int ranks) {
  LoaderOptions out;
  for (const ConfiguredSource& s : sources) out.sources.push_back({s.path.resolve(), s.weight});
  out.layout = token_layout(model);
  out.sequence_length = config.data.sequence_length;
  out.rows_per_step = config.train.rows_per_step;
  out.rows_per_micro = config.train.rows_per_rank;
  out.seed = static_cast<std::uint64_t>(config.run.seed);
  out.shuffle = !one_pass;
  out.one_pass = one_pass;
  out.skip_too_long = config.data.overlong == Overlong::skip;
  out.window = static_cast<std::int32_t>(model.window);
  out.image_attention = config.model.image_attention;
  out.rank = rank;
  out.ranks = ranks;
  out.read_ahead_bytes = config.data.read_ahead;
  return out;
}

TrainingRun::TrainingRun(const RunConfig& config, HostGroup& world, const NodePlace& place, bool training)
    : config_(&config),
      world_(&world),
      ranks_per_node_(place.ranks_per_node),
      device_(choose_device(config.run.device)),
      setup_(make_run_setup(config, world.size(), world.rank(), place.ranks_per_node, training)),
      plan_(make_plan(setup_, device_)),
      backend_(&open_backend(device_, place)),
      mesh_(make_mesh(setup_.mesh, *backend_, place)) {
  // A node's ranks share its memory; each GPU has its own.
  const std::size_t sharers = device_ == Device::cuda ? 1 : static_cast<std::size_t>(place.ranks_per_node);
  check_fits(plan_, backend_->memory().free / sharers, device_);
  check_fits_host(plan_, cpu_backend().memory().free / static_cast<std::size_t>(place.ranks_per_node));
  world.all_or_error("opening the training data", [&] {
    if (training) data_ = open_data(config.data.train, false);
  });
  instance_ =
      std::make_unique<Instance>(setup_.model, setup_.table, setup_.options, mesh_, *backend_, plan_.sizes);
  checkpoints_ = std::make_unique<RunCheckpoints>(directory() + "/checkpoints", config.checkpoint, *instance_,
                                                  mesh_, world);
  if (training) checkpoints_->prepare_folder();
}

std::unique_ptr<Loader> TrainingRun::open_data(const std::vector<ConfiguredSource>& sources,
                                               bool one_pass) const {
  return std::make_unique<Loader>(
      loader_options(*config_, setup_.model, sources, one_pass, world_->rank(), world_->size()));
}

void TrainingRun::start_weights(std::ostream& notes) {
  Stream& stream = instance_->stream();
  if (config_->model.weights.is("random")) {
    initialize_weights(stream, setup_.model, setup_.table, instance_->shards(),
                       static_cast<std::uint64_t>(config_->run.seed));
    return instance_->weights_loaded();
  }
  const std::string path = config_->model.weights.resolve();
  std::int64_t is_checkpoint = 0;
  world_->all_or_error("looking at the weights", [&] {
    if (world_->rank() == 0) is_checkpoint = holds_checkpoint(path) ? 1 : 0;
  });
  if (world_->all_reduce(is_checkpoint, HostGroup::Reduce::max, "looking at the weights") != 0) {
    checkpoints_->load_weights_only(path, notes);
    return;
  }
  world_->all_or_error("loading the weights",
                       [&] { load_weights(stream, setup_.table, instance_->shards(), path); });
  instance_->weights_loaded();
}

void TrainingRun::prepare_saving(const std::string& config_yaml) {
  constexpr std::int64_t kLargestConfig = 16 << 20;
  nlohmann::json model;
  world_->all_or_error("reading the model's shape",
                       [&] { model = read_json_file(config_->model.config.resolve(), kLargestConfig); });
  checkpoints_->prepare_saving(ranks_per_node_, config_yaml, model);
}

EvaluationResult TrainingRun::validate() {
  std::unique_ptr<Loader> loader;
  world_->all_or_error("opening the validation data",
                       [&] { loader = open_data(config_->data.validation, true); });
  return evaluate(*instance_, *loader, config_->validation.rows, *world_);
}

}  // namespace lapidary
