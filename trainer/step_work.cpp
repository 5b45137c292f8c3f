#include "trainer/step_work.h"

#include <algorithm>

#include "trainer/random_text.h"

namespace lapidary {

std::int64_t micro_batches(const RunConfig& config, int world) {
  return std::max<std::int64_t>(1, config.train.rows_per_step / (config.train.rows_per_rank * world));
}

void run_step(Instance& instance, const Batch& batch, std::int64_t micro, double targets, double lr,
              std::int64_t number) {
  instance.begin_step();
  for (std::int64_t i = 0; i < micro; ++i) instance.run_training(batch, 1.0 / targets, i + 1 == micro);
  instance.finish_step(lr, number);
}

void run_dry_step(const RunConfig& config, const RunSetup& setup, Device device, OpTimer& timer) {
  Backend& backend = plan_backend(device);
  Mesh mesh = make_plan_mesh(setup.mesh, backend);
  Instance instance(setup.model, setup.table, setup.options, mesh, backend, {});
  const Batch batch = random_text(setup.model, config.train.rows_per_rank, config.data.sequence_length, 1,
                                  config.model.image_attention);
  instance.stream().set_timer(&timer);
  run_step(instance, batch, micro_batches(config, setup.mesh.world), 1.0, 0.0, 1);
}

std::vector<OpTimer::Line> step_operations(const RunConfig& config, const RunSetup& setup, Device device) {
  OpTimer timer;
  run_dry_step(config, setup, device, timer);
  return timer.collect(*plan_backend(device).make_stream("plan"));
}

}  // namespace lapidary
