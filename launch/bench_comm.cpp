// lapidary bench comm: the all-gather and reduce-scatter of the configuration's units on the ranks that run
// it, and the copies that take their place inside a node, beside one large message.
#include <algorithm>
#include <iostream>
#include <map>

#include "kernels/check.h"
#include "kernels/number_text.h"
#include "kernels/ops.h"
#include "launch/bench.h"
#include "launch/commands.h"
#include "parallel/host_group.h"
#include "parallel/mpi_session.h"
#include "parallel/unit_table.h"
#include "trainer/plan.h"
#include "trainer/rates.h"

namespace lapidary {

namespace {

constexpr auto kDeadline = std::chrono::minutes(10);

/// Units of one size.
struct Units {
  std::string name;        ///< of the first of them
  std::int64_t count = 0;  ///< 0: not a unit, but the large message
  std::int64_t shard = 0;  ///< elements of a rank
};

class CommBench {
 public:
  CommBench(const BenchCommArguments& arguments, const RunConfig& config, const MpiSession& session,
            HostGroup& world)
      : arguments_(arguments),
        world_(world),
        place_{session.local_rank(), session.ranks_per_node()},
        backend_(open_backend(choose_device(config.run.device), place_)),
        setup_(make_run_setup(config, world.size(), world.rank(), place_.ranks_per_node, true)),
        mesh_(make_mesh(setup_.mesh, backend_, place_)),
        stream_(backend_.make_stream("bench")) {
    find_units();
  }

  void run() {
    print(fmt::format("{}\n{} rank{}, {} a node, {} x {}; gathers of {}, reductions of {}\n",
                      backend_.description(), world_.size(), world_.size() > 1 ? "s" : "",
                      place_.ranks_per_node, mesh_.shape.replicate(), mesh_.shape.shard, name_of(weights()),
                      name_of(gradients())));
    if (mesh_.shape.shard == 1 && mesh_.shape.replicate() == 1) {
      for (const Units& u : units_)
        print(fmt::format("{}: {}\n", label(u), format_bytes(whole(u, weights()))));
      print("One rank holds everything: nothing is communicated. mpirun -n N measures N ranks.\n");
      return;
    }
    add_large_message();
    allocate();
    time();
  }

 private:
  DType weights() const { return setup_.options.sharding.weights; }
  DType gradients() const { return setup_.options.sharding.gradients; }
  std::size_t whole(const Units& u, DType type) const {
    return static_cast<std::size_t>(u.shard * mesh_.shape.shard) * size_of(type);
  }
  static std::string label(const Units& u) {
    return u.count > 1 ? fmt::format("{} and {} more", u.name, u.count - 1) : u.name;
  }
  void print(const std::string& text) const {
    if (world_.rank() == 0) std::cout << text << std::flush;
  }

  void find_units() {
    const UnitTable table(setup_.table.specs, setup_.table.unit_names);
    for (int unit = 0; unit < table.units(); ++unit) {
      const std::int64_t shard = table.layout(unit).shard(mesh_.shape.shard);
      const auto same = std::ranges::find(units_, shard, &Units::shard);
      if (same == units_.end()) {
        units_.push_back({table.name(unit), 1, shard});
      } else {
        ++same->count;
      }
    }
    std::ranges::stable_sort(units_, std::greater{}, &Units::shard);
  }

  void add_large_message() {
    const std::int64_t elements =
        (std::int64_t{1} << (backend_.device() == Device::cuda ? 30 : 26)) / mesh_.shape.shard / 4;
    units_.push_back({"large message", 0, std::max(elements, units_.front().shard)});
  }

  void allocate() {
    std::size_t most = 0;
    for (const Units& u : units_) most = std::max({most, whole(u, weights()), whole(u, gradients())});
    const bool copies = mesh_.gather->copies();
    memory_ = std::make_unique<Arena>(backend_, "messages", (copies ? 3 : 2) * (most + Arena::kAlignment));
    whole_ = memory_->allocate_bytes(most);
    part_ = memory_->allocate_bytes(most);
    if (!copies) return;
    shared_ = memory_->allocate_bytes(most);
    for (auto* group : {mesh_.gather.get(), mesh_.reduce.get()}) group->share(shared_);
  }

  /// A collective of the step; `bytes` are what a rank sends of it, and receives.
  struct Collective {
    const Units* units = nullptr;
    const char* name = "";
    double bytes = 0;
    const char* rate = name;  ///< what it stands for in a file of rates; empty: a run uses something else
  };

  void add(std::vector<BenchCase>& cases, const Units& u) {
    const auto tensor = [](const Tensor& memory, DType type, std::int64_t n) {
      return Tensor(memory.data(), type, {n});
    };
    const std::int64_t ranks = mesh_.shape.shard;
    const double others = static_cast<double>(ranks - 1) / static_cast<double>(ranks);
    const bool copies = mesh_.gather->copies();
    const auto gather = [&](const char* name, const char* rate, const Tensor& memory, const Tensor& from) {
      const Tensor all = tensor(memory, weights(), u.shard * ranks), mine = tensor(from, weights(), u.shard);
      collectives_.push_back({&u, name, others * static_cast<double>(all.bytes()), rate});
      cases.push_back({"", [this, all, mine] {
                         Ticket ticket = mesh_.gather->all_gather(*stream_, mine, all);
                         mesh_.gather->wait(*stream_, ticket);
                       }});
    };
    if (ranks > 1) {
      const std::int64_t place = u.shard * mesh_.gather->rank();
      const Tensor mine = tensor(whole_, weights(), u.shard * ranks).flat_range(place, u.shard);
      gather("all-gather", copies ? "" : "all-gather", whole_, mine);
      const Tensor sum = tensor(whole_, gradients(), u.shard * ranks);
      const Tensor to = tensor(part_, gradients(), u.shard);
      const double sent = others * static_cast<double>(sum.bytes());
      collectives_.push_back({&u, "reduce-scatter", sent, copies ? "" : "reduce-scatter"});
      cases.push_back({"", [this, sum, to] {
                         Ticket ticket = mesh_.reduce->reduce_scatter(*stream_, sum, to);
                         mesh_.reduce->wait(*stream_, ticket);
                       }});
      if (copies) {
        gather("all-gather by copies", "all-gather", whole_, shared_);
        const Tensor from = tensor(shared_, gradients(), u.shard * ranks);
        const Tensor parts(part_.data(), gradients(), {ranks - 1, u.shard});
        collectives_.push_back({&u, "exchange by copies", sent, "reduce-scatter"});
        cases.push_back({"", [this, from, parts] {
                           Ticket ticket = mesh_.reduce->exchange(*stream_, from, parts);
                           mesh_.reduce->wait(*stream_, ticket);
                         }});
      }
    }
    const int replicas = mesh_.shape.replicate();
    if (replicas == 1) return;
    const Tensor shard = tensor(part_, gradients(), u.shard);
    collectives_.push_back(
        {&u, "all-reduce", 2.0 * (replicas - 1) / replicas * static_cast<double>(shard.bytes())});
    cases.push_back({"", [this, shard] {
                       Ticket ticket = mesh_.replicas->all_reduce(*stream_, shard, Reduction::sum);
                       mesh_.replicas->wait(*stream_, ticket);
                     }});
  }

  void time() {
    std::vector<BenchCase> cases;
    for (const Units& u : units_) add(cases, u);
    BenchOptions options;
    options.rounds = arguments_.rounds;
    const auto slowest = [&](double ms) {
      return world_.all_reduce(ms, HostGroup::Reduce::max, "bench: times");
    };
    options.agree = slowest;
    const std::vector<BenchTime> times = time_in_turn(*stream_, cases, options);
    std::map<std::string, double> link, pass;  // by collective: rate of the large message, ms of all units
    std::vector<double> ms;
    for (std::size_t i = 0; i < times.size(); ++i) {
      ms.push_back(slowest(times[i].median));
      const Collective& c = collectives_[i];
      if (c.units->count == 0) link[c.name] = c.bytes / ms[i];
      pass[c.name] += ms[i] * static_cast<double>(c.units->count);
    }
    print(fmt::format("{:<26}{:<28}{:>14}{:>12}{:>10}{:>11}\n", "collective", "unit", "bytes a rank", "ms",
                      "GB/s", "of large"));
    for (std::size_t i = 0; i < times.size(); ++i) {
      const Collective& c = collectives_[i];
      print(fmt::format("{:<26}{:<28}{:>14}{:>12.3f}{:>10.3f}{:>10.1f}%\n", c.name, label(*c.units),
                        format_bytes(static_cast<std::size_t>(c.bytes)), ms[i], c.bytes / ms[i] * 1e-6,
                        100 * c.bytes / ms[i] / link[c.name]));
    }
    for (const auto& [name, sum] : pass) print(fmt::format("all units, {}: {:.3f} ms\n", name, sum));
    if (!arguments_.rates.empty()) world_.all_or_error("saving rates", [&] { save(ms); });
  }

  /// The first rank adds the units' rates to the file.
  void save(const std::vector<double>& ms) const {
    if (world_.rank() != 0) return;
    RateSet out{.device = device_name(backend_.description()),
                .type = name_of(weights()),
                .ranks = world_.size(),
                .source = fmt::format("bench comm, {} ranks", world_.size())};
    std::map<std::string, std::pair<double, double>> sums;  // bytes, seconds
    for (std::size_t i = 0; i < ms.size(); ++i) {
      const auto count = static_cast<double>(collectives_[i].units->count);
      if (*collectives_[i].rate == 0) continue;
      auto& [bytes, seconds] = sums[collectives_[i].rate];
      bytes += count * collectives_[i].bytes;
      seconds += count * ms[i] * 1e-3;
    }
    for (const auto& [name, sum] : sums) out.rates[name] = sum.first / sum.second;
    save_rates(arguments_.rates, out);
  }

  const BenchCommArguments& arguments_;
  HostGroup& world_;
  NodePlace place_;
  Backend& backend_;
  RunSetup setup_;
  Mesh mesh_;
  std::unique_ptr<Stream> stream_;
  std::vector<Units> units_;
  std::unique_ptr<Arena> memory_;
  Tensor whole_, part_, shared_;  ///< shared_: that the other ranks read by copies
  std::vector<Collective> collectives_;
};

}  // namespace

int run_bench_comm(const BenchCommArguments& arguments, const MpiSession& session) {
  const RunConfig config = load_config(arguments.config.sources);
  HostGroup world(MPI_COMM_WORLD, kDeadline);
  CommBench(arguments, config, session, world).run();
  return 0;
}

}  // namespace lapidary
