#include "trainer/parity.h"

#include <cmath>
#include <map>
#include <ostream>
#include <sstream>

#include "kernels/check.h"
#include "kernels/number_text.h"
#include "model/weights.h"
#include "trainer/instance.h"
#include "trainer/parity_case.h"

namespace lapidary {

double Difference::relative() const {
  return reference > 0 ? difference / reference : difference;
}
bool Difference::passed() const {
  return relative() <= limit;
}

namespace {

/// Sums of squares and the worst element of each name on this rank; combined over ranks at the end.
class Comparison {
 public:
  void add(const std::string& name, const std::vector<double>& ours, const std::vector<double>& theirs,
           double limit) {
    Difference& d = entry(name, limit);
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const double off = std::abs(ours[i] - theirs[i]);
      d.difference += off * off;
      d.reference += theirs[i] * theirs[i];
      if (!(off <= d.worst)) {  // NaN counts as worst
        d.worst = off;
        d.ours_at_worst = ours[i];
        d.theirs_at_worst = theirs[i];
      }
    }
  }
  /// A rank that holds nothing of a tensor still has its line, so that all ranks combine the same list.
  Difference& entry(const std::string& name, double limit) {
    const auto [it, is_new] = index_.try_emplace(name, list_.size());
    if (is_new) list_.push_back({name, 0, 0, 0, 0, 0, limit});
    return list_[it->second];
  }
  std::vector<Difference> combine(HostGroup& world) {
    for (Difference& d : list_) {
      d.difference = std::sqrt(world.all_reduce(d.difference, HostGroup::Reduce::sum, "parity"));
      d.reference = std::sqrt(world.all_reduce(d.reference, HostGroup::Reduce::sum, "parity"));
      const double worst =
          world.all_reduce(std::isnan(d.worst) ? INFINITY : d.worst, HostGroup::Reduce::max, "parity");
      const bool mine = d.worst == worst || std::isnan(d.worst);
      // The lowest rank that has the worst element reports it.
      const auto owner = world.all_reduce(std::int64_t{mine ? world.rank() : world.size()},
                                          HostGroup::Reduce::min, "parity");
      const bool reports = owner == world.rank();
      d.ours_at_worst = world.all_reduce(reports ? d.ours_at_worst : 0.0, HostGroup::Reduce::sum, "parity");
      d.theirs_at_worst =
          world.all_reduce(reports ? d.theirs_at_worst : 0.0, HostGroup::Reduce::sum, "parity");
      d.worst = worst;
    }
    return list_;
  }

 private:
  std::vector<Difference> list_;
  std::map<std::string, std::size_t> index_;
};

std::vector<double> to_host(Instance& instance, const Tensor& tensor) {
  const Tensor flat = tensor.reshape({tensor.numel()});
  std::vector<double> out(static_cast<std::size_t>(flat.numel()));
  const auto copy = [&]<class T>(T) {
    std::vector<T> raw(out.size());
    Backend& backend = instance.stream().backend();
    backend.copy_to_host(instance.stream(), raw.data(), flat.data(), flat.bytes());
    backend.synchronize(instance.stream());
    for (std::size_t i = 0; i < raw.size(); ++i) {
      if constexpr (std::is_same_v<T, bf16>)
        out[i] = static_cast<double>(static_cast<float>(raw[i]));
      else
        out[i] = static_cast<double>(raw[i]);
    }
  };
  switch (flat.dtype()) {
    case DType::f64:
      copy(double{});
      break;
    case DType::bf16:
      copy(bf16{});
      break;
    default:
      copy(float{});
      break;
  }
  return out;
}

std::vector<double> read_range(const Safetensors& files, const std::string& name, std::int64_t first,
                               std::int64_t count) {
  std::vector<double> out(static_cast<std::size_t>(count));
  files.read(files.at(name), first, count, out.data());
  return out;
}

/// One case on this rank: its rows, the model, and what is compared.
class ParityRun {
 public:
  ParityRun(const ParityOptions& options, const ParityCase& reference, HostGroup& world, Mesh& mesh,
            Backend& backend)
      : options_(options),
        case_(reference),
        world_(world),
        table_(make_parameter_table(reference.config())),
        instance_options_(make_options(mesh)),
        instance_(reference.config(), table_, instance_options_, mesh, backend, measure(mesh, backend)) {
    for (std::int64_t row = world.rank(); row < reference.rows(); row += world.size()) rows_.push_back(row);
    batch_ = reference.batch(rows_);
    targets_ = world.all_reduce(batch_.target_tokens(), HostGroup::Reduce::sum, "parity");
    require(targets_ > 0, "{}: no position has a label", reference.folder());
    load_weights(instance_.stream(), table_, instance_.shards(), reference.folder());
    instance_.weights_loaded();
  }

  std::vector<Difference> compare_pass() {
    Comparison comparison;
    compare_token_losses(comparison);
    compare_training(comparison);
    compare_gradients(comparison);
    return comparison.combine(world_);
  }

  /// The losses of the reference's AdamW steps, before each update.
  std::vector<double> train(const ReferenceTrajectory& trajectory) {
    std::vector<double> losses;
    for (std::size_t i = 0; i < trajectory.losses.size(); ++i) {
      losses.push_back(training_pass());
      instance_.finish_step(trajectory.lr, static_cast<std::int64_t>(i) + 1);
    }
    return losses;
  }

 private:
  InstanceOptions make_options(const Mesh& mesh) const {
    const std::int64_t most_rows = (case_.rows() + mesh.shape.world - 1) / mesh.shape.world;
    InstanceOptions out;
    out.model.type = options_.type;
    out.model.activations = options_.activations;
    out.model.capacity = most_rows * case_.row_tokens();
    out.model.features = {DType::f32, DType::f32};
    out.sharding.zero = options_.zero;
    out.sharding.weights = out.sharding.gradients = options_.type;
    OptimizerOptions optimizer;
    if (options_.trajectory) {
      const ReferenceTrajectory t = case_.trajectory();
      optimizer = {t.beta1, t.beta2, t.eps, t.weight_decay, t.clip_norm, OptimizerLayout::float32, 0};
    }
    out.optimizer = optimizer;
    return out;
  }
  MemorySizes measure(const Mesh& mesh, const Backend& backend) const {
    MemorySizes sizes = plan_memory(case_.config(), table_, instance_options_, mesh.shape, backend.device());
    // Cases carry their pixels and samples as floats where a plan counts stored bytes, and ask for losses by
    // token.
    const std::int64_t capacity = instance_options_.model.capacity;
    sizes.activations +=
        static_cast<std::size_t>(capacity) * sizeof(float) *
            static_cast<std::size_t>(case_.config().vision.patch_width() + case_.config().audio.frame_width) +
        static_cast<std::size_t>(capacity) * sizeof(double) + 4 * Arena::kAlignment;
    return sizes;
  }

  double training_pass() {
    instance_.begin_step();
    instance_.run_training(batch_, 1.0 / static_cast<double>(targets_), true);
    return world_.all_reduce(instance_.read_totals()[kTotalLoss], HostGroup::Reduce::sum, "parity") /
           static_cast<double>(targets_);
  }

  void compare_rows(Comparison& comparison, const std::string& name, const std::string& reference,
                    const Tensor& ours, std::int64_t columns, double limit) {
    const std::vector<double> values = to_host(instance_, ours);
    const auto row_size = static_cast<std::size_t>(case_.row_tokens() * columns);
    comparison.entry(name, limit);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const std::vector<double> mine(values.begin() + static_cast<std::ptrdiff_t>(i * row_size),
                                     values.begin() + static_cast<std::ptrdiff_t>((i + 1) * row_size));
      comparison.add(name, mine,
                     read_range(case_.outputs(), reference, rows_[i] * static_cast<std::int64_t>(row_size),
                                static_cast<std::int64_t>(row_size)),
                     limit);
    }
  }

  void compare_token_losses(Comparison& comparison) {
    Arena losses(instance_.stream().backend(), "token losses",
                 static_cast<std::size_t>(batch_.tokens() + 1) * sizeof(double) + Arena::kAlignment);
    const DType type = options_.type == DType::f64 ? DType::f64 : DType::f32;
    const Tensor nll = losses.allocate(type, {batch_.tokens()});
    instance_.begin_evaluation();
    instance_.run_evaluation(batch_, {.nll = nll});
    compare_rows(comparison, "token_nll", "token_nll", nll, 1, options_.tolerance / 10);
  }

  void compare_training(Comparison& comparison) {
    instance_.model().observe([&](const std::string& name, const Tensor& tensor) {
      compare_rows(comparison, name, name, tensor, case_.config().width, options_.tolerance);
    });
    const double loss = training_pass();
    instance_.model().observe({});
    comparison.entry("loss", options_.tolerance / 50);
    if (world_.rank() == 0) {
      comparison.add("loss", {loss}, case_.outputs().read_all<double>("loss"), options_.tolerance / 50);
    }
  }

  void compare_gradients(Comparison& comparison) {
    for (const ParameterSpec& spec : table_.specs) {
      if (spec.trainable) comparison.entry("grad." + in_memory_name(spec.name), options_.tolerance);
    }
    for (const ParameterShard* shard : instance_.shards()) {
      const Tensor flat = shard->gradient.reshape({shard->gradient.numel()});
      for (const ShardSlice& slice : shard->slices) {
        const ParameterSpec& spec = table_.specs[static_cast<std::size_t>(slice.parameter)];
        if (!spec.trainable) continue;
        const std::string name = "grad." + in_memory_name(spec.name);
        // A parameter that the case does not use has no gradient there: ours must be zero.
        const std::vector<double> theirs =
            case_.outputs().find(name) ? read_range(case_.outputs(), name, slice.parameter_begin, slice.count)
                                       : std::vector<double>(static_cast<std::size_t>(slice.count), 0.0);
        comparison.add(name, to_host(instance_, flat.flat_range(slice.offset, slice.count)), theirs,
                       options_.tolerance);
      }
    }
  }

  const ParityOptions& options_;
  const ParityCase& case_;
  HostGroup& world_;
  ParameterTable table_;
  InstanceOptions instance_options_;
  Instance instance_;
  std::vector<std::int64_t> rows_;
  Batch batch_;
  std::int64_t targets_ = 0;
};

bool print_table(const std::vector<Difference>& differences, std::ostream& out) {
  out << fmt::format("{:<76} {:>11} {:>9}  {:>23}\n", "", "relative L2", "limit", "worst: ours / theirs");
  bool passed = true;
  for (const Difference& d : differences) {
    out << fmt::format("{:<76} {:>11.2e} {:>9.0e}  {:>11.4e} / {:>11.4e}{}\n", d.name, d.relative(), d.limit,
                       d.ours_at_worst, d.theirs_at_worst, d.passed() ? "" : "  FAILED");
    passed = passed && d.passed();
  }
  return passed;
}

bool print_trajectory(const ReferenceTrajectory& reference, const std::vector<double>& losses,
                      std::ostream& out) {
  const double limit = std::max(1e-5, 10 * reference.rounding);
  out << fmt::format("{:<8} {:>14} {:>14} {:>11} {:>9}\n", "step", "loss", "reference", "relative", "limit");
  bool passed = true;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    const double relative = std::abs(losses[i] - reference.losses[i]) / std::abs(reference.losses[i]);
    const bool ok = relative <= limit;
    out << fmt::format("{:<8} {:>14.8f} {:>14.8f} {:>11.2e} {:>9.0e}{}\n", i + 1, losses[i],
                       reference.losses[i], relative, limit, ok ? "" : "  FAILED");
    passed = passed && ok;
  }
  return passed;
}

}  // namespace

bool run_parity(const ParityOptions& options, HostGroup& world, Mesh& mesh, Backend& backend,
                std::ostream& out) {
  const ParityCase reference(options.reference);
  ParityRun parity(options, reference, world, mesh, backend);
  std::ostringstream text;
  bool passed = print_table(parity.compare_pass(), text);
  if (options.trajectory) {
    const ReferenceTrajectory trajectory = reference.trajectory();
    passed = print_trajectory(trajectory, parity.train(trajectory), text) && passed;
  }
  if (world.rank() == 0) {
    out << fmt::format("{}: {}, {}\n{}{}\n", options.reference, counted(world.size(), "rank"),
                       name_of(options.type), text.str(), passed ? "passed" : "FAILED");
  }
  return passed;
}

}  // namespace lapidary
