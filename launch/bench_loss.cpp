// lapidary bench loss: the loss head against its own three matrix products, a vocabulary group against one
// GPU alone, and the head's errors.
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
constexpr int kStatisticsScratch = 1024;  // MiB that a loss without gradients may take; it takes far less
constexpr auto kDeadline = std::chrono::minutes(10);

/// What all timings share.
struct Setting {
  const BenchLossArguments& arguments;
  HostGroup& world;
  Backend& backend;
  Stream& stream;
  ModelConfig config;
  DType type;

  MeshShape shape(int ranks) const {
    return resolve_mesh(ranks, ranks == 1 ? 0 : world.rank(), 0, ranks, ranks);
  }
  ParameterSpec spec() const {
    return {.name = "table", .shape = {config.vocabulary, config.width}, .unit = -1};
  }
  void print(const std::string& text) const {
    if (world.rank() == 0) std::cout << text << std::flush;
  }
};

LossOptions options(std::int64_t scratch_mib) {
  LossOptions out;
  out.scratch_bytes = static_cast<std::size_t>(scratch_mib) << 20;
  return out;
}

/// What a call of the head takes of the workspace, found by making it without a device.
std::size_t workspace_of(const Setting& s, int ranks, std::int64_t scratch_mib, std::int64_t own,
                         bool gradients) {
  Backend& plan = plan_backend(s.backend.device());
  Mesh mesh = make_plan_mesh(s.shape(ranks), plan);
  Arena state(plan, "state", 0), workspace(plan, "workspace", 0);
  const auto stream = plan.make_stream("plan");
  stream->set_workspace(&workspace);
  VocabularyTable table(s.spec(), 0, 0, own, mesh, s.type, DType::f32, *stream, state);
  LossHead head(s.config, options(scratch_mib), table, s.type);
  const Tensor hidden(nullptr, s.type, {own, s.config.width}), targets(nullptr, DType::i32, {own});
  const Tensor totals(nullptr, DType::f64, {kLossTotals});
  head.run_chunks(*stream, hidden, targets, 1.0, totals, gradients ? hidden : Tensor());
  return workspace.peak();
}

/// The head over a group of `ranks`: all of them, or each rank alone with the whole vocabulary. `tokens` in
/// all.
class Head {
 public:
  Head(const Setting& s, Mesh& mesh, int ranks, std::int64_t tokens, Arena& state)
      : s_(s),
        ranks_(ranks),
        tokens_(tokens),
        table_(s.spec(), 0, 0, tokens / ranks, mesh, s.type, DType::f32, s.stream, state),
        problem_(make_random_loss(s.stream, state, table_.weight(), tokens / ranks, s.config.vocabulary,
                                  static_cast<std::uint64_t>(s.world.rank()), s.type)),
        totals_(state.allocate(DType::f64, {kLossTotals})),
        d_hidden_(state.allocate(s.type, {tokens / ranks, s.config.width})) {
    if (ranks == 1 && s.world.size() == 1)  // its hidden states are made of any of the table's rows
      peaked_ = make_peaked_loss(s.stream, state, table_.weight(), tokens, s.config.vocabulary, s.type);
  }

  static std::size_t state_bytes(const Setting& s, int ranks, std::int64_t tokens) {
    const std::int64_t rows = table_rows(s.config.vocabulary, 0, ranks).size();
    return static_cast<std::size_t>((rows + 2 * tokens / ranks) * s.config.width) * 8 +
           (std::size_t{1} << 20);
  }

  enum class Data : std::uint8_t { random, peaked };
  void run(std::int64_t scratch_mib, bool gradients, Data data) {
    LossHead head(s_.config, options(scratch_mib), table_, s_.type);
    const LossProblem& problem = data == Data::peaked ? peaked_ : problem_;
    head.run_chunks(s_.stream, problem.hidden, problem.targets, 1.0 / static_cast<double>(tokens_), totals_,
                    gradients ? d_hidden_ : Tensor());
  }
  std::size_t workspace(std::int64_t scratch_mib, bool gradients) const {
    return workspace_of(s_, ranks_, scratch_mib, tokens_ / ranks_, gradients);
  }
  const VocabularyTable& table() const { return table_; }

 private:
  const Setting& s_;
  int ranks_;
  std::int64_t tokens_;
  VocabularyTable table_;
  LossProblem problem_, peaked_;
  Tensor totals_, d_hidden_;
};

/// The group's products as one GPU sees them: all tokens, this rank's rows.
class WholeProducts {
 public:
  WholeProducts(const Setting& s, std::int64_t tokens, const VocabularyTable& table, Arena& state)
      : stream_(s.stream),
        table_(table),
        hidden_(state.allocate(s.type, {tokens, s.config.width})),
        d_hidden_(state.allocate(s.type, {tokens, s.config.width})),
        logits_(state.allocate(s.type, {tokens, table.range().size()})) {
    run(stream_, FillNormal{.out = hidden_.reshape({hidden_.numel()}), .seed = 7});
    // The fastest that the library has for each shape.
    s.backend.measure_products(true);
    three();
    s.backend.measure_products(false);
  }

  static std::size_t state_bytes(const Setting& s, std::int64_t tokens) {
    const std::int64_t rows = table_rows(s.config.vocabulary, 0, s.world.size()).size();
    return static_cast<std::size_t>(tokens * (rows + 2 * s.config.width)) * size_of(s.type) +
           (std::size_t{1} << 20);
  }

  void one() { run(stream_, MatMul{.a = hidden_, .b = table_.weight(), .c = logits_, .transpose_b = true}); }
  void three() {
    one();
    run(stream_, MatMul{.a = logits_, .b = table_.weight(), .c = d_hidden_});
    run(stream_, MatMul{.a = logits_, .b = hidden_, .c = table_.gradient(), .transpose_a = true});
  }

 private:
  Stream& stream_;
  const VocabularyTable& table_;
  Tensor hidden_, d_hidden_, logits_;
};

/// A line of the table.
struct Line {
  BenchCase timed;
  double operations = 0;
  std::size_t against = 0;  ///< the line that its time is divided by
  double share = 1;         ///< of that line's time that is the same work
  std::size_t scratch = 0;  ///< bytes
};

std::string table_of(std::int64_t tokens, const std::vector<Line>& lines,
                     const std::vector<BenchTime>& times) {
  std::string out = fmt::format("\n{} tokens\n{:<38}{:>10}{:>22}{:>10}{:>9}{:>14}\n", tokens, "", "ms",
                                "(fastest, slowest)", "TFLOP/s", "of", "scratch MiB");
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Line& line = lines[i];
    out += fmt::format("{:<38}{:>10.2f}{:>22}{:>10.1f}{:>8.3f}x{:>14.1f}\n", line.timed.name, times[i].median,
                       fmt::format("({:.2f}, {:.2f})", times[i].fastest, times[i].slowest),
                       line.operations / times[i].median * 1e-9,
                       times[i].median / (line.share * times[line.against].median),
                       static_cast<double>(line.scratch) / kMiB);
  }
  return out;
}

std::vector<BenchTime> time_lines(const Setting& s, const std::vector<Line>& lines) {
  std::vector<BenchCase> cases;
  cases.reserve(lines.size());
  for (const Line& line : lines) cases.push_back(line.timed);
  BenchOptions timing;
  timing.rounds = s.arguments.rounds;
  timing.align = [&] { s.world.barrier("bench: start of a case"); };
  timing.agree = [&](double ms) { return s.world.all_reduce(ms, HostGroup::Reduce::max, "bench: repeats"); };
  return time_in_turn(s.stream, cases, timing);
}

/// One number of tokens. A line's time is divided by that of as many whole products; where ranks share the
/// vocabulary, lines "alone" are one GPU's with all tokens and the whole vocabulary, and the group's stand
/// against their share of that.
void time_tokens(const Setting& s, Mesh& group, std::int64_t tokens) {
  const int ranks = s.world.size();
  require(tokens % ranks == 0, "{} tokens cannot be split over {} ranks", tokens, ranks);
  Mesh alone_mesh = make_plan_mesh(s.shape(1), s.backend);
  Arena state(s.backend, "state",
              Head::state_bytes(s, ranks, tokens) + WholeProducts::state_bytes(s, tokens) +
                  (ranks > 1 ? Head::state_bytes(s, 1, tokens) : 0));
  Head head(s, group, ranks, tokens, state);
  std::optional<Head> alone;
  if (ranks > 1) alone.emplace(s, alone_mesh, 1, tokens, state);
  WholeProducts products(s, tokens, head.table(), state);

  const double one = 2.0 * static_cast<double>(tokens) * static_cast<double>(s.config.width) *
                     static_cast<double>(head.table().range().size());
  std::vector<Line> lines{{{"one whole product", [&] { products.one(); }}, one, 0},
                          {{"three whole products", [&] { products.three(); }}, 3 * one, 1}};
  std::size_t most = 0;
  const auto add = [&](Head& which, const std::string& name, int mib, bool gradients, std::size_t against,
                       double share, Head::Data data) {
    const std::size_t scratch = which.workspace(mib, gradients);
    most = std::max(most, scratch);
    const double operations = (gradients ? 3 : 1) * one * (&which == &head ? 1 : ranks);
    lines.push_back({{name, [&which, mib, gradients, data] { which.run(mib, gradients, data); }},
                     operations,
                     against,
                     share,
                     scratch});
  };
  using enum Head::Data;
  add(head, "loss only", kStatisticsScratch, false, 0, 1, random);
  for (const int mib : s.arguments.scratch) {
    const std::string name = fmt::format("loss and gradients, {} MiB of scores", mib);
    add(head, name, mib, true, 1, 1, random);
    if (!alone) {
      add(head, "  the same on peaked data", mib, true, 1, 1, peaked);
      continue;
    }
    add(*alone, fmt::format("  one GPU alone, {} MiB", mib), mib, true, 1, ranks, random);
    lines[lines.size() - 2].against = lines.size() - 1;
    lines[lines.size() - 2].share = 1.0 / ranks;
  }
  Arena workspace(s.backend, "workspace", most);
  s.stream.set_workspace(&workspace);
  s.print(table_of(tokens, lines, time_lines(s, lines)));
}

}  // namespace

int run_bench_loss(const BenchLossArguments& arguments, const MpiSession& session) {
  HostGroup world(MPI_COMM_WORLD, kDeadline);
  const NodePlace place{session.local_rank(), session.ranks_per_node()};
  Backend& backend = open_backend(choose_device(arguments.device), place);
  const auto stream = backend.make_stream("bench");
  const ModelConfig config{
      .vocabulary = arguments.vocabulary, .width = arguments.width, .soft_cap = arguments.cap};
  const DType type = backend.device() == Device::cuda ? DType::bf16 : DType::f32;
  const Setting setting{arguments, world, backend, *stream, config, type};
  Mesh mesh = make_mesh(setting.shape(world.size()), backend, place);
  setting.print(fmt::format("{}\nvocabulary {} over {} rank{}, width {}, soft cap {}, {}\n",
                            backend.description(), config.vocabulary, world.size(),
                            world.size() > 1 ? "s" : "", config.width, config.soft_cap, name_of(type)));
  for (const int tokens : arguments.tokens) time_tokens(setting, mesh, tokens);
  if (!arguments.errors || world.size() > 1) return 0;
  for (const int tokens : arguments.error_tokens) setting.print(loss_errors(*stream, config, type, tokens));
  return 0;
}

}  // namespace lapidary
