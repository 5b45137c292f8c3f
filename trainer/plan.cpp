#include "trainer/plan.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/number_text.h"

namespace lapidary {

namespace {

/// Every weight once, and for those that are trained what the optimizer keeps of each.
std::size_t checkpoint_bytes(const ParameterTable& table, Instance& instance) {
  std::size_t state = 0;
  if (instance.has_optimizer()) {
    const Optimizer::State& s = instance.optimizer().states().front();
    for (const Tensor& tensor : {s.master, s.remainder, s.m, s.v})
      if (tensor) state += size_of(tensor.dtype());
  }
  return static_cast<std::size_t>(table.stored_elements()) *
             size_of(instance.shards().front()->weight.dtype()) +
         static_cast<std::size_t>(table.trainable_elements()) * state;
}

}  // namespace

MemoryPlan make_plan(const RunSetup& setup, Device device) {
  Backend& backend = plan_backend(device);
  MemoryPlan plan;
  plan.mesh = setup.mesh;
  plan.sizes = plan_memory(setup.model, setup.table, setup.options, setup.mesh, device);
  plan.gathered = plan.sizes.transient;
  plan.activations = plan.sizes.activations;
  plan.workspace = plan.sizes.workspace;

  Mesh mesh = make_plan_mesh(setup.mesh, backend);
  plan.staging = mesh.staging_bytes(device);
  Instance instance(setup.model, setup.table, setup.options, mesh, backend, {});
  for (const ParameterShard* shard : instance.shards()) {
    plan.weights += shard->weight.bytes();
    plan.gradients += shard->gradient.bytes();
  }
  // What is left of the state arena is the optimizer's, alignment and the few scalars of a step included.
  plan.optimizer = plan.sizes.state - plan.weights - plan.gradients;
  plan.offloaded = plan.sizes.host;
  plan.checkpoint = checkpoint_bytes(setup.table, instance);
  plan.loss_chunk = setup.options.model.loss.scratch_bytes;
  return plan;
}

void check_fits(const MemoryPlan& plan, std::size_t available, Device device) {
  require(plan.total() <= available,
          "the run needs {} of {} memory on each rank and {} are available: weights {}, gradients {}, "
          "optimizer {}, gathered "
          "units {}, activations {}, workspace {}. More ranks, a smaller train.rows_per_rank, "
          "memory.activations: "
          "recompute_block or a leaner optimizer.state need less; `lapidary plan` shows how much.",
          format_bytes(plan.total()), name_of(device), format_bytes(available), format_bytes(plan.weights),
          format_bytes(plan.gradients), format_bytes(plan.optimizer), format_bytes(plan.gathered),
          format_bytes(plan.activations), format_bytes(plan.workspace));
}

void check_fits_host(const MemoryPlan& plan, std::size_t available) {
  require(plan.offloaded <= available,
          "optimizer.offload: {} of host memory are needed on each rank and {} are available; a leaner "
          "optimizer.state, more ranks or optimizer.offload: false need less",
          format_bytes(plan.offloaded), format_bytes(available));
}

}  // namespace lapidary
