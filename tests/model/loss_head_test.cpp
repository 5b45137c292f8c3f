// The loss head over a vocabulary group against cross-entropy of the whole vocabulary written down directly,
// which every rank computes for the whole world in double. On the CPU; on a GPU too where there is one (all
// ranks may share it: their communicators then go through the host).
#include "model/loss_head.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>

#include "kernels/check.h"
#include "tests/parallel/collectives.h"

namespace lapidary {
namespace {

struct Case {
  std::int64_t vocabulary = 29, width = 8, capacity = 11;
  double cap = 30, smoothing = 0, z_loss = 0;
  std::int64_t scratch_tokens = 3;  ///< of one rank that a chunk's scores have room for
  int group = 0;                    ///< ranks that share the table; 0: all
  bool uneven = false;              ///< ranks bring different numbers of tokens, rank 1 none
  double trained = 0.7;             ///< share of the tokens that have a target
  int passes = 1;                   ///< micro-batches, all alike, that add to the table's gradient
  bool peaked = false;              ///< hidden states point at the target's row and nearly as much at another
  Device device = Device::cpu;
  DType type = DType::f64, gradients = DType::f64;
};

constexpr double kGradScale = 0.25, kStart = 0.5;  // what the table's gradient holds before

std::int64_t tokens_of(const Case& c, int rank) {
  if (!c.uneven) return c.capacity;
  return rank == 1 ? 0 : std::max<std::int64_t>(c.capacity - 2 * rank - 1, 0);
}

/// In [0, 1).
double share(std::uint64_t seed, int rank, std::int64_t t) {
  return noise(seed, static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(t)) / 2 + 0.5;
}

std::int32_t target_of(const Case& c, int rank, std::int64_t t) {
  const double x = share(21, rank, t);
  return x >= c.trained ? -1 : static_cast<std::int32_t>(x / c.trained * static_cast<double>(c.vocabulary));
}

/// Rounded to bf16, so that every type holds it.
double in_bf16(double x) {
  return static_cast<double>(static_cast<float>(bf16(static_cast<float>(x))));
}
double value(std::uint64_t seed, std::int64_t row, std::int64_t column, double scale) {
  return in_bf16(noise(seed, static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(column)) * scale);
}
double table_value(std::int64_t row, std::int64_t d) {
  return value(22, row, d, 1.5);
}
double hidden_value(const Case& c, int rank, std::int64_t t, std::int64_t d) {
  if (!c.peaked) return value(31 + static_cast<std::uint64_t>(rank), t, d, 2.0);
  const double strength =
      0.3 + 0.5 * share(41, rank, t);  // logits from 16 to beyond the cap at a width of 72
  const auto rival = static_cast<std::int64_t>(share(42, rank, t) * static_cast<double>(c.vocabulary));
  return in_bf16(strength * (table_value(std::max(target_of(c, rank, t), 0), d) +
                             (0.97 + 0.05 * share(43, rank, t)) * table_value(rival, d)));
}

struct Expected {
  std::vector<std::array<double, kLossTotals>> totals;  // by rank
  std::vector<double> token_nll, entropy;               // of each rank's tokens in turn
  std::vector<std::vector<double>> d_hidden;            // by rank
  std::vector<double> d_table;
};

/// Adds one token of one rank.
void add_token(const Case& c, int rank, std::int64_t t, Expected& out) {
  const auto width = static_cast<std::size_t>(c.width);
  std::vector<double> hidden, l, slope;
  for (std::int64_t d = 0; d < c.width; ++d) hidden.push_back(hidden_value(c, rank, t, d));
  double sum = 0, mean = 0;
  std::size_t best = 0;
  for (std::int64_t v = 0; v < c.vocabulary; ++v) {
    double z = 0;
    for (std::int64_t d = 0; d < c.width; ++d) z += hidden[static_cast<std::size_t>(d)] * table_value(v, d);
    const double tanh = c.cap > 0 ? std::tanh(z / c.cap) : 0;
    l.push_back(c.cap > 0 ? c.cap * tanh : z);
    slope.push_back(1 - tanh * tanh);
    sum += std::exp(l.back());
    mean += l.back() / static_cast<double>(c.vocabulary);
    if (l.back() > l[best]) best = l.size() - 1;
  }
  const double lse = std::log(sum);
  double entropy = 0;
  for (const double x : l) entropy -= std::exp(x - lse) * (x - lse);
  const std::int32_t target = target_of(c, rank, t);
  out.entropy.push_back(entropy);
  out.token_nll.push_back(target < 0 ? -1 : lse - l[static_cast<std::size_t>(target)]);
  std::vector<double>& d_hidden = out.d_hidden[static_cast<std::size_t>(rank)];
  d_hidden.resize(d_hidden.size() + width, 0.0);
  if (target < 0) return;
  const double nll = out.token_nll.back();
  auto& totals = out.totals[static_cast<std::size_t>(rank)];
  totals[kTotalLoss] +=
      c.passes * ((1 - c.smoothing) * nll + c.smoothing * (lse - mean) + c.z_loss * lse * lse);
  totals[kTotalNll] += c.passes * nll;
  totals[kTotalCorrect] += best == static_cast<std::size_t>(target) ? c.passes : 0;
  totals[kTotalTokens] += c.passes;
  totals[kTotalEntropy] += c.passes * entropy;
  for (std::int64_t v = 0; v < c.vocabulary; ++v) {
    const auto at = static_cast<std::size_t>(v);
    double dl =
        std::exp(l[at] - lse) * (1 + 2 * c.z_loss * lse) - c.smoothing / static_cast<double>(c.vocabulary);
    if (v == target) dl -= 1 - c.smoothing;
    const double dz = kGradScale * dl * slope[at];
    for (std::size_t d = 0; d < width; ++d) {
      const auto column = static_cast<std::int64_t>(d);
      d_hidden[d_hidden.size() - width + d] += dz * table_value(v, column);
      out.d_table[at * width + d] += c.passes * dz * hidden[d];
    }
  }
}

/// Of ranks [first, last), which share a table. The gradient of the table is the group's part.
Expected expect(const Case& c, int first, int last) {
  Expected out;
  out.d_hidden.resize(static_cast<std::size_t>(last));
  out.totals.resize(static_cast<std::size_t>(last));
  out.d_table.assign(static_cast<std::size_t>(c.vocabulary * c.width), kStart);
  for (int rank = first; rank < last; ++rank) {
    for (std::int64_t t = 0; t < tokens_of(c, rank); ++t) add_token(c, rank, t, out);
  }
  return out;
}

/// A tensor on the case's device, filled and read from the host.
class Copied {
 public:
  Copied(Backend& backend, Stream& stream, DType dtype, std::initializer_list<std::int64_t> shape)
      : backend_(backend), stream_(stream), host_(dtype, shape) {
    std::memset(host_.view().data(), 0, host_.view().bytes());
    device_ = Tensor(backend.allocate(host_.view().bytes()), dtype, shape);
  }
  ~Copied() { backend_.release(device_.data()); }
  Copied(const Copied&) = delete;
  Copied& operator=(const Copied&) = delete;

  const Tensor& host() { return host_.view(); }
  const Tensor& device() {
    backend_.copy_to_device(stream_, device_.data(), host().data(), host().bytes());
    return device_;
  }
  double read(std::int64_t i) {
    if (!read_) {
      backend_.copy_to_host(stream_, host().data(), device_.data(), host().bytes());
      backend_.synchronize(stream_);
      read_ = true;
    }
    switch (host().dtype()) {
      case DType::bf16:
        return static_cast<double>(static_cast<float>(host().as<bf16>()[i]));
      case DType::f32:
        return static_cast<double>(host().as<float>()[i]);
      default:
        return host().as<double>()[i];
    }
  }

 private:
  Backend& backend_;
  Stream& stream_;
  HostTensor host_;
  Tensor device_;
  bool read_ = false;
};

/// Allowed errors: of losses, absolute; of gradients, relative.
struct Bounds {
  double losses, hidden, table;
};

/// Root mean square of differences over that of the expected values: every element may be off by rounding.
class Error2 {
 public:
  void add(double got, double expected) {
    difference_ += (got - expected) * (got - expected);
    square_ += expected * expected;
    nan_ |= std::isnan(got);
  }
  double relative() const {
    return nan_ ? std::numeric_limits<double>::infinity() : std::sqrt(difference_ / std::max(square_, 1e-30));
  }

 private:
  double difference_ = 0, square_ = 0;
  bool nan_ = false;
};

class Head {
 public:
  Head(const World& world, const Case& c)
      : c_(c),
        world_(world),
        backend_(c.device == Device::cuda ? cuda_backend(0) : cpu_backend()),
        mesh_(make_mpi_mesh(resolve_mesh(world.size, world.rank, 0, c.group, world.size), backend_)),
        state_(backend_, "state", std::size_t{8} << 20),
        workspace_(backend_, "workspace", std::size_t{64} << 20),
        stream_(backend_.make_stream("compute")),
        table_({.name = "table", .shape = {c.vocabulary, c.width}, .unit = -1}, 0, 0, c.capacity, mesh_,
               c.type, c.gradients, *stream_, state_) {
    stream_->set_workspace(&workspace_);
    config_.vocabulary = c.vocabulary;
    config_.width = c.width;
    config_.soft_cap = c.cap;
    const std::int64_t rows = table_.range().size();
    Copied weight(backend_, *stream_, c.type, {rows, c.width});
    Copied gradient(backend_, *stream_, c.gradients, {rows, c.width});
    for (std::int64_t i = 0; i < rows * c.width; ++i) {
      set(weight.host(), i, table_value(table_.range().begin + i / c.width, i % c.width));
      set(gradient.host(), i, kStart);
    }
    run(*stream_, Copy{.in = weight.device(), .out = table_.weight()});
    run(*stream_, Copy{.in = gradient.device(), .out = table_.gradient()});
    backend_.synchronize(*stream_);
  }

  /// gradients false: an evaluation.
  void run_and_compare(bool gradients, const Bounds& bounds) {
    const std::int64_t own = tokens_of(c_, world_.rank);
    const DType wide = c_.type == DType::f64 ? DType::f64 : DType::f32;
    Copied hidden(backend_, *stream_, c_.type, {own, c_.width}),
        targets(backend_, *stream_, DType::i32, {own});
    Copied totals(backend_, *stream_, DType::f64, {kLossTotals}),
        d_hidden(backend_, *stream_, c_.type, {own, c_.width});
    Copied nll(backend_, *stream_, wide, {own}), entropy(backend_, *stream_, wide, {own});
    for (std::int64_t t = 0; t < own; ++t) {
      targets.host().as<std::int32_t>()[t] = target_of(c_, world_.rank, t);
      for (std::int64_t d = 0; d < c_.width; ++d)
        set(hidden.host(), t * c_.width + d, hidden_value(c_, world_.rank, t, d));
    }
    LossHead head(config_, options(), table_, c_.type);
    const Tensor sums = totals.device(), dx = gradients ? d_hidden.device() : Tensor();
    for (int i = 0; i < c_.passes; ++i)
      head.run_chunks(*stream_, hidden.device(), targets.device(), kGradScale, sums, dx,
                      {.nll = nll.device(), .entropy = entropy.device()});
    const int size = table_.group().size(), first = world_.rank / size * size;
    const Expected expected = expect(c_, first, first + size);
    const auto& sum = expected.totals[static_cast<std::size_t>(world_.rank)];
    for (const int i : {kTotalLoss, kTotalNll, kTotalEntropy})
      EXPECT_NEAR(totals.read(i), sum[static_cast<std::size_t>(i)],
                  bounds.losses * (std::abs(sum[static_cast<std::size_t>(i)]) + 1));
    EXPECT_EQ(totals.read(kTotalCorrect), sum[kTotalCorrect]);
    EXPECT_EQ(totals.read(kTotalTokens), sum[kTotalTokens]);
    std::int64_t before = 0;
    for (int rank = first; rank < world_.rank; ++rank) before += tokens_of(c_, rank);
    for (std::int64_t t = 0; t < own; ++t) {
      EXPECT_NEAR(nll.read(t), expected.token_nll[static_cast<std::size_t>(before + t)], bounds.losses * 10);
      EXPECT_NEAR(entropy.read(t), expected.entropy[static_cast<std::size_t>(before + t)],
                  bounds.losses * 10);
    }
    compare_gradients(expected, gradients, d_hidden, bounds);
  }

  /// NaN in the hidden states of rank 0's first token alone, which has a target.
  void expect_nan_on_its_rank() {
    Copied hidden(backend_, *stream_, c_.type, {1, c_.width}),
        d_hidden(backend_, *stream_, c_.type, {1, c_.width});
    Copied targets(backend_, *stream_, DType::i32, {1}),
        totals(backend_, *stream_, DType::f64, {kLossTotals});
    for (std::int64_t d = 0; d < c_.width; ++d)
      set(hidden.host(), d, world_.rank == 0 ? std::nan("") : hidden_value(c_, world_.rank, 0, d));
    LossHead(config_, options(), table_, c_.type)
        .run_chunks(*stream_, hidden.device(), targets.device(), kGradScale, totals.device(),
                    d_hidden.device());
    EXPECT_EQ(std::isnan(totals.read(kTotalLoss)), world_.rank == 0);
    EXPECT_EQ(std::isnan(d_hidden.read(0)), world_.rank == 0);
    Copied gradient(backend_, *stream_, c_.gradients, {table_.range().size(), c_.width});
    run(*stream_, Copy{.in = table_.gradient(), .out = gradient.device()});
    EXPECT_TRUE(std::isnan(gradient.read(0)));
  }

 private:
  LossOptions options() const {
    const int ranks = table_.group().size();
    LossOptions out{.label_smoothing = c_.smoothing, .z_loss = c_.z_loss};
    out.scratch_bytes =
        static_cast<std::size_t>(loss_score_stride(c_.device, table_rows(c_.vocabulary, 0, ranks).size()) *
                                 c_.scratch_tokens * ranks) *
        size_of(loss_score_dtype(c_.device, c_.type));
    return out;
  }

  void compare_gradients(const Expected& expected, bool gradients, Copied& d_hidden, const Bounds& bounds) {
    Error2 hidden_error, table_error;
    const std::vector<double>& rows = expected.d_hidden[static_cast<std::size_t>(world_.rank)];
    for (std::size_t i = 0; gradients && i < rows.size(); ++i)
      hidden_error.add(d_hidden.read(static_cast<std::int64_t>(i)), rows[i]);
    EXPECT_LE(hidden_error.relative(), bounds.hidden) << "d(hidden)";
    const std::int64_t count = table_.range().size() * c_.width;
    Copied gradient(backend_, *stream_, c_.gradients, {table_.range().size(), c_.width});
    run(*stream_, Copy{.in = table_.gradient(), .out = gradient.device()});
    for (std::int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(table_.range().begin * c_.width + i);
      // Relative to what was added, not to where it started; in bf16 the start's own rounding counts.
      const double start = c_.gradients == DType::bf16 ? 0.0 : kStart;
      table_error.add(gradient.read(i) - start, (gradients ? expected.d_table[at] : kStart) - start);
    }
    EXPECT_LE(table_error.relative(), gradients ? bounds.table : 0.0) << "d(table)";
  }

  Case c_;
  const World& world_;
  Backend& backend_;
  Mesh mesh_;
  Arena state_, workspace_;
  std::unique_ptr<Stream> stream_;
  ModelConfig config_;
  VocabularyTable table_;
};

std::vector<Case> cases(const World& world) {
  std::vector<Case> out{{}, {.uneven = true}};
  out.push_back({.cap = 0, .uneven = true});
  out.push_back({.smoothing = 0.1, .z_loss = 1e-2, .uneven = true});
  out.push_back({.vocabulary = 3, .uneven = true});  // more ranks than rows
  out.push_back({.capacity = 1, .scratch_tokens = 1});
  out.push_back({.capacity = 9, .trained = 0});      // no token has a target
  out.push_back({.capacity = 40, .trained = 0.03});  // most chunks have none
  out.push_back({.trained = 1, .passes = 3, .peaked = true});
  if (world.size == 4) out.push_back({.group = 2, .uneven = true});
  return out;
}

TEST(LossHead, MatchesTheWholeVocabulary) {
  const World world;
  for (Case c : cases(world)) {
    for (const DType type : {DType::f64, DType::f32}) {
      SCOPED_TRACE(fmt::format("vocabulary {}, capacity {}, cap {}, smoothing {}, {}", c.vocabulary,
                               c.capacity, c.cap, c.smoothing, name_of(type)));
      c.type = c.gradients = type;
      const double bound = type == DType::f64 ? 1e-12 : 1e-5;
      Head(world, c).run_and_compare(true, {bound, bound, bound});
      Head(world, c).run_and_compare(false, {bound, bound, bound});
    }
  }
}

TEST(LossHead, NanStaysInTheSumsOfTheRankThatBroughtIt) {
  const World world;
  Head(world, {}).expect_nan_on_its_rank();
  if (cuda_device_count() == 0) return;
  for (const std::int64_t width : {72, 12}) {
    const Case c{.width = width, .device = Device::cuda, .type = DType::bf16, .gradients = DType::f32};
    Head(world, c).expect_nan_on_its_rank();
  }
}

/// bf16 as a GPU runs it: shapes for the tensor cores' tiles and beside them.
TEST(LossHead, MatchesTheWholeVocabularyOnAGpu) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  const World world;
  std::vector<Case> list;
  for (const bool uneven : {false, true}) {
    list.push_back(
        {.vocabulary = 1003, .width = 72, .capacity = 300, .scratch_tokens = 256, .uneven = uneven});
    list.push_back(
        {.vocabulary = 1003, .width = 72, .capacity = 300, .scratch_tokens = 100, .uneven = uneven});
    list.push_back({.vocabulary = 515, .width = 12, .capacity = 70, .scratch_tokens = 33, .uneven = uneven});
  }
  list.push_back({.vocabulary = 1003, .width = 72, .capacity = 90, .smoothing = 0.1, .z_loss = 1e-3});
  list.push_back({.vocabulary = 1003, .width = 72, .capacity = 90, .cap = 0});
  list.push_back({.vocabulary = 1003, .width = 72, .capacity = 1, .trained = 1});
  list.push_back({.vocabulary = 1003, .width = 72, .capacity = 90, .trained = 0});
  list.push_back({.vocabulary = 1003, .width = 72, .capacity = 300, .scratch_tokens = 100, .trained = 0.02});
  list.push_back({.vocabulary = 3, .width = 72, .capacity = 5});  // more ranks than rows
  for (const int passes : {1, 3}) {
    list.push_back({.vocabulary = 1003,
                    .width = 72,
                    .capacity = 300,
                    .scratch_tokens = 128,
                    .trained = 1,
                    .passes = passes,
                    .peaked = true});
  }
  list.push_back({.vocabulary = 1003, .width = 76, .capacity = 90, .scratch_tokens = 40, .peaked = true});
  list.push_back({.vocabulary = 1003, .width = 72, .capacity = 90, .cap = 0, .peaked = true});
  list.push_back(
      {.vocabulary = 1003, .width = 72, .capacity = 90, .smoothing = 0.1, .z_loss = 1e-3, .peaked = true});
  for (Case c : list) {
    c.device = Device::cuda;
    c.type = DType::bf16;
    for (const DType gradients : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(
          fmt::format("vocabulary {}, width {}, capacity {}, cap {}, smoothing {}, table gradient {}",
                      c.vocabulary, c.width, c.capacity, c.cap, c.smoothing, name_of(gradients)));
      c.gradients = gradients;
      // d(hidden) in bf16: the rounding of the result is 1.7e-3. d(table) in bf16 is rounded with every
      // chunk.
      const double table = gradients == DType::bf16 ? 6e-3 * std::sqrt(c.passes) : 8e-4;
      Head(world, c).run_and_compare(true, {1e-5, 1.9e-3, table});
      Head(world, c).run_and_compare(false, {1e-5, 0, 0});
    }
  }
}

TEST(LossHead, CutsEvenChunksWithinTheScratch) {
  const World world;
  if (world.size > 1) return;
  Backend& backend = plan_backend(Device::cuda);
  Mesh mesh = make_plan_mesh(resolve_mesh(1, 0, 0, 0, 1), backend);
  Arena state(backend, "state", 0);
  const auto stream = backend.make_stream("compute");
  const ModelConfig config{.vocabulary = 262144, .width = 3840, .soft_cap = 30};
  VocabularyTable table({.name = "table", .shape = {262144, 3840}, .unit = -1}, 0, 0, 8192, mesh, DType::bf16,
                        DType::f32, *stream, state);
  const auto tokens = [&](std::int64_t mib, std::int64_t total, bool gradients) {
    LossOptions options;
    options.scratch_bytes = static_cast<std::size_t>(mib) << 20;
    return LossHead(config, options, table, DType::bf16).chunk_tokens(Device::cuda, total, gradients);
  };
  EXPECT_EQ(tokens(512, 8192, true), 1024);
  EXPECT_EQ(tokens(64, 8192, true), 128);
  EXPECT_EQ(tokens(1024, 100, true), 100);
  EXPECT_EQ(tokens(1024, 2100, true), 1280);  // two chunks, not one of 2048 and a rest
  EXPECT_EQ(tokens(1024, 0, true), 1);
  EXPECT_EQ(tokens(1024, 8192, false) % 256, 0);
  EXPECT_LE(tokens(1024, 8192, false), 768);  // sums over tiles: 16 KiB a token
  EXPECT_THROW(tokens(0, 8192, true), Error);
}

}  // namespace
}  // namespace lapidary
