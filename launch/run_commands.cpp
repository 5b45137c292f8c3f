// lapidary train, eval, plan, parity: what runs on all ranks, and the plan of it.
#include <iostream>
#include <utility>

#include "kernels/check.h"
#include "launch/commands.h"
#include "parallel/mpi_session.h"
#include "trainer/parity.h"
#include "trainer/plan.h"
#include "trainer/train.h"

namespace lapidary {

namespace {

// Longest that a rank waits for the others on the host: a step of the slowest, a save to a slow file system.
constexpr auto kHostDeadline = std::chrono::minutes(30);

NodePlace place_of(const MpiSession& session) {
  return {session.local_rank(), session.ranks_per_node()};
}

/// The device to plan for. Where none was named and rates of the one at hand are known, a forecast uses them.
Device choose_plan(const RunConfig& config, PlanOptions& options) {
  if (!options.card.empty()) return options.card.starts_with("CPU") ? Device::cpu : Device::cuda;
  const Device device =
      config.run.device == DeviceChoice::cuda ? Device::cuda : choose_device(config.run.device);
  if (device == Device::cuda && cuda_device_count() == 0) return device;
  const std::string name = device_name(open_backend(device, NodePlace{}).description());
  for (const std::vector<RateSet>* sets : {&std::as_const(options.rates), &built_in_rates()})
    for (const RateSet& set : *sets)
      if (set.device == name) options.card = name;
  return device;
}

}  // namespace

int run_train(const TrainArguments& arguments, const MpiSession& session) {
  ConfigSources sources = arguments.config.sources;
  if (!arguments.resume.empty()) sources.settings.push_back("checkpoint.resume=" + arguments.resume);
  const RunConfig config = load_config(sources);
  HostGroup world(MPI_COMM_WORLD, kHostDeadline);
  return train(config, world, place_of(session), std::cout);
}

int run_eval(const EvalArguments& arguments, const MpiSession& session) {
  const RunConfig config = load_config(arguments.config.sources);
  HostGroup world(MPI_COMM_WORLD, kHostDeadline);
  return evaluate_run(config, arguments.checkpoint, world, place_of(session), std::cout);
}

int run_plan(const PlanArguments& arguments) {
  const RunConfig config = load_config(arguments.config.sources);
  PlanOptions options = arguments.options;
  options.memory = static_cast<std::size_t>(arguments.memory);
  if (!arguments.rates.empty()) options.rates = read_rates(arguments.rates);
  print_plan(config, options, choose_plan(config, options), std::cout);
  return 0;
}

int run_parity_command(const ParityArguments& arguments, const MpiSession& session) {
  const Device device = choose_device(arguments.device);
  require(!arguments.float64 || device == Device::cpu,
          "--float64 is computed on the CPU only: use --device cpu");
  ParityOptions options;
  options.reference = arguments.reference;
  options.type = arguments.float64 ? DType::f64 : DType::f32;
  options.tolerance = arguments.tolerance;
  options.trajectory = arguments.trajectory;
  options.activations = arguments.activations;
  options.zero = arguments.zero;
  HostGroup world(MPI_COMM_WORLD, kHostDeadline);
  const NodePlace place = place_of(session);
  Backend& backend = open_backend(device, place);
  Mesh mesh = make_mesh(resolve_mesh(world.size(), world.rank(), 0, 0, place.ranks_per_node), backend, place);
  return run_parity(options, world, mesh, backend, std::cout) ? 0 : static_cast<int>(ExitCode::bad_input);
}

int run_bench_step(const BenchStepArguments& arguments, const MpiSession& session) {
  const RunConfig config = load_config(arguments.config.sources);
  StepBenchOptions options = arguments.options;
  options.profile = !arguments.no_profile;
  HostGroup world(MPI_COMM_WORLD, kHostDeadline);
  bench_step(config, options, world, place_of(session), std::cout);
  return 0;
}

}  // namespace lapidary
