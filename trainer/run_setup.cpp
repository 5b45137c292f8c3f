#include "trainer/run_setup.h"

#include "kernels/check.h"
#include "kernels/number_text.h"
#include "parallel/nccl_communicator.h"

namespace lapidary {

Device choose_device(DeviceChoice choice) {
  if (choice == DeviceChoice::cpu) return Device::cpu;
  std::string why;
  if (cuda_device_count(&why) > 0) return Device::cuda;
  require(choice == DeviceChoice::automatic, "run.device: cuda was asked for, but {}", why);
  return Device::cpu;
}

Backend& open_backend(Device device, const NodePlace& place) {
  if (device == Device::cpu) return cpu_backend();
  return cuda_backend(place.local_rank % cuda_device_count());
}

Mesh make_mesh(const MeshShape& shape, Backend& backend, const NodePlace& place) {
  const bool own_gpu = backend.device() == Device::cuda && place.ranks_per_node <= cuda_device_count();
  return own_gpu && nccl_built() ? make_nccl_mesh(shape, backend) : make_mpi_mesh(shape, backend);
}

namespace {

DType to_dtype(Precision precision) {
  return precision == Precision::bf16 ? DType::bf16 : DType::f32;
}

OptimizerOptions optimizer_options(const RunConfig& config) {
  OptimizerOptions out;
  out.beta1 = config.optimizer.beta1;
  out.beta2 = config.optimizer.beta2;
  out.eps = config.optimizer.epsilon;
  out.weight_decay = config.optimizer.weight_decay;
  out.clip_norm = config.optimizer.clip_norm;
  out.seed = static_cast<std::uint64_t>(config.run.seed);
  out.offload = config.optimizer.offload;
  switch (config.optimizer.state) {
    case OptimizerState::float32:
      out.layout = OptimizerLayout::float32;
      break;
    case OptimizerState::split:
      out.layout = OptimizerLayout::split;
      break;
    case OptimizerState::bf16:
      out.layout = OptimizerLayout::bf16;
      break;
    case OptimizerState::float8:
      out.layout = OptimizerLayout::float8;
      break;
  }
  require(out.layout == OptimizerLayout::float32 || config.run.precision == Precision::bf16,
          "optimizer.state: this layout is made for run.precision: bf16");
  return out;
}

}  // namespace

std::string describe(const RunSetup& setup, const Backend& backend) {
  const MeshShape& mesh = setup.mesh;
  return fmt::format("{} parameters, {} ({} x {}, vocabulary over {}), {} on {}",
                     setup.table.trainable_elements(), counted(mesh.world, "rank"), mesh.replicate(),
                     mesh.shard, mesh.vocabulary, name_of(setup.options.model.type), backend.description());
}

RunSetup make_run_setup(const RunConfig& config, int world, int rank, int ranks_per_node, bool training) {
  RunSetup out;
  out.model = read_model_config(config.model.config.resolve());
  out.table = make_parameter_table(out.model);
  out.mesh = resolve_mesh(world, rank, static_cast<int>(config.parallel.shard),
                          static_cast<int>(config.parallel.vocabulary), ranks_per_node);
  out.mesh.copies = out.mesh.copies && config.parallel.copies;
  ModelOptions& model = out.options.model;
  model.type = to_dtype(config.run.precision);
  model.activations = config.memory.activations;
  model.richer_layers = config.memory.richer_layers;
  require(model.richer_layers <= static_cast<std::int64_t>(out.model.layers.size()),
          "memory.richer_layers is {}, the model has {} layers", model.richer_layers,
          out.model.layers.size());
  model.loss.label_smoothing = config.loss.label_smoothing;
  model.loss.z_loss = config.loss.z_loss;
  model.loss.scratch_bytes = static_cast<std::size_t>(config.loss.scratch);
  model.capacity = config.train.rows_per_rank * config.data.sequence_length;
  ShardingOptions& sharding = out.options.sharding;
  sharding.zero = static_cast<int>(config.parallel.zero);
  sharding.prefetch = static_cast<int>(config.parallel.prefetch);
  sharding.weights = model.type;
  sharding.gradients = to_dtype(config.parallel.gradient_dtype);
  if (training) out.options.optimizer = optimizer_options(config);
  return out;
}

}  // namespace lapidary
