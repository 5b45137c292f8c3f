// lapidary bench loss: the loss head against its own three matrix products, and its errors.
#include <iostream>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "launch/bench.h"
#include "launch/bench_loss_data.h"
#include "launch/commands.h"
#include "model/loss_head.h"
#include "parallel/host_group.h"
#include "parallel/mpi_session.h"
#include "trainer/run_setup.h"

namespace lapidary {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;
constexpr auto kDeadline = std::chrono::minutes(10);

/// One rank of the vocabulary group: its shard of the table, its part of the tokens, and the whole products
/// of the same shapes for comparison.
class Bench {
 public:
  Bench(const BenchLossArguments& arguments, const MpiSession& session, HostGroup& world)
      : arguments_(arguments),
        world_(world),
        place_{session.local_rank(), session.ranks_per_node()},
        backend_(open_backend(choose_device(arguments.device), place_)),
        mesh_(make_mesh(shape(), backend_, place_)),
        config_{.vocabulary = arguments.vocabulary, .width = arguments.width, .soft_cap = arguments.cap},
        type_(backend_.device() == Device::cuda ? DType::bf16 : DType::f32),
        stream_(backend_.make_stream("bench")) {}

  void run() {
    print(fmt::format("{}\nvocabulary {} over {} rank{}, width {}, soft cap {}, {}\n", backend_.description(),
                      config_.vocabulary, world_.size(), world_.size() > 1 ? "s" : "", config_.width,
                      config_.soft_cap, name_of(type_)));
    for (const int tokens : arguments_.tokens) time_tokens(tokens);
    if (arguments_.errors && world_.size() == 1)
      print(loss_errors(backend_, *stream_, config_, type_, arguments_.error_tokens));
  }

 private:
  MeshShape shape() const {
    return resolve_mesh(world_.size(), world_.rank(), 0, world_.size(), world_.size());
  }
  void print(const std::string& text) const {
    if (world_.rank() == 0) std::cout << text << std::flush;
  }

  LossOptions options(std::int64_t scratch_mib) const {
    LossOptions out;
    out.scratch_bytes = static_cast<std::size_t>(scratch_mib) << 20;
    return out;
  }

  /// What a call of the head takes of the workspace, found by making it without a device.
  std::size_t workspace_of(std::int64_t scratch_mib, std::int64_t own, bool gradients) const {
    Backend& plan = plan_backend(backend_.device());
    Mesh mesh = make_plan_mesh(shape(), plan);
    Arena state(plan, "state", 0), workspace(plan, "workspace", 0);
    const auto stream = plan.make_stream("plan");
    stream->set_workspace(&workspace);
    VocabularyTable table(spec(), 0, 0, own, mesh, type_, DType::f32, *stream, state);
    LossHead head(config_, options(scratch_mib), table, type_);
    const Tensor hidden(nullptr, type_, {own, config_.width}), targets(nullptr, DType::i32, {own});
    const Tensor totals(nullptr, DType::f64, {kLossTotals});
    head.run_chunks(*stream, hidden, targets, 1.0, totals, gradients ? hidden : Tensor(), {}, {});
    return workspace.peak();
  }

  ParameterSpec spec() const {
    return {.name = "table", .shape = {config_.vocabulary, config_.width}, .unit = -1};
  }

  void time_tokens(std::int64_t tokens);

  const BenchLossArguments& arguments_;
  HostGroup& world_;
  NodePlace place_;
  Backend& backend_;
  Mesh mesh_;
  ModelConfig config_;
  DType type_;
  std::unique_ptr<Stream> stream_;
};

void Bench::time_tokens(std::int64_t tokens) {
  const std::int64_t own = tokens / world_.size();
  require(own * world_.size() == tokens, "{} tokens cannot be split over {} ranks", tokens, world_.size());
  std::size_t most = workspace_of(1024, own, false);
  for (const int mib : arguments_.scratch) most = std::max(most, workspace_of(mib, own, true));
  Arena workspace(backend_, "workspace", most);
  stream_->set_workspace(&workspace);
  const RowRange range = table_rows(config_.vocabulary, world_.rank(), world_.size());
  const auto bytes = static_cast<std::size_t>(range.size()) * static_cast<std::size_t>(config_.width);
  const auto token_bytes = static_cast<std::size_t>(tokens * (range.size() + 8 * config_.width)) * 4;
  Arena state(backend_, "state", bytes * 8 + token_bytes + (std::size_t{1} << 20));
  VocabularyTable table(spec(), 0, 0, own, mesh_, type_, DType::f32, *stream_, state);
  const LossProblem problem = make_random_loss(*stream_, state, table.weight(), own, config_.vocabulary,
                                               static_cast<std::uint64_t>(world_.rank()), type_);
  const Tensor totals = state.allocate(DType::f64, {kLossTotals});
  const Tensor d_hidden = state.allocate(type_, {own, config_.width});
  // The group's products as one GPU sees them: all tokens, this rank's rows.
  const Tensor all = state.allocate(type_, {tokens, config_.width});
  const Tensor d_all = state.allocate(type_, {tokens, config_.width});
  const Tensor logits = state.allocate(type_, {tokens, range.size()});
  lapidary::run(*stream_, FillNormal{.out = all.reshape({all.numel()}), .seed = 7});
  const auto forward = [&] {
    lapidary::run(*stream_, MatMul{.a = all, .b = table.weight(), .c = logits, .transpose_b = true});
  };
  std::vector<BenchCase> cases{
      {"one whole product", forward},
      {"three whole products", [&] {
         forward();
         lapidary::run(*stream_, MatMul{.a = logits, .b = table.weight(), .c = d_all});
         lapidary::run(*stream_, MatMul{.a = logits, .b = all, .c = table.gradient(), .transpose_a = true});
       }}};
  const auto run_head = [&](std::int64_t mib, bool gradients) {
    LossHead head(config_, options(mib), table, type_);
    head.run_chunks(*stream_, problem.hidden, problem.targets, 1.0 / static_cast<double>(tokens), totals,
                    gradients ? d_hidden : Tensor(), {}, {});
  };
  cases.push_back({"loss only", [&] { run_head(1024, false); }});
  for (const int mib : arguments_.scratch)
    cases.push_back(
        {fmt::format("loss and gradients, {} MiB of scores", mib), [&, mib] { run_head(mib, true); }});
  BenchOptions timing;
  timing.rounds = arguments_.rounds;
  timing.agree = [&](double ms) { return world_.all_reduce(ms, HostGroup::Reduce::max, "bench: repeats"); };
  const std::vector<BenchTime> times = time_in_turn(*stream_, cases, timing);
  const double operations = 2.0 * static_cast<double>(tokens) * static_cast<double>(config_.width) *
                            static_cast<double>(range.size());
  print(fmt::format("\n{} tokens\n{:<38}{:>10}{:>22}{:>10}{:>9}{:>14}\n", tokens, "", "ms",
                    "(fastest, slowest)", "TFLOP/s", "of", "scratch MiB"));
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const bool one = i == 0 || i == 2;
    const double share = times[i].median / times[one ? 0 : 1].median;
    const std::size_t scratch =
        i < 2 ? 0 : workspace_of(i == 2 ? 1024 : arguments_.scratch[i - 3], own, !one);
    print(fmt::format("{:<38}{:>10.2f}{:>22}{:>10.1f}{:>8.3f}x{:>14}\n", cases[i].name, times[i].median,
                      fmt::format("({:.2f}, {:.2f})", times[i].fastest, times[i].slowest),
                      (one ? 1 : 3) * operations / times[i].median * 1e-9, share,
                      i < 2 ? "-" : fmt::format("{:.1f}", static_cast<double>(scratch) / kMiB)));
  }
}

}  // namespace

int run_bench_loss(const BenchLossArguments& arguments, const MpiSession& session) {
  HostGroup world(MPI_COMM_WORLD, kDeadline);
  Bench(arguments, session, world).run();
  return 0;
}

}  // namespace lapidary
