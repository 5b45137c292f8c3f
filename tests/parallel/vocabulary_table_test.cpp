// The table in pieces against the whole table, which every rank keeps for itself.
#include "parallel/vocabulary_table.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/check.h"
#include "tests/parallel/collectives.h"

namespace lapidary {
namespace {

constexpr std::int32_t kPadding = 0;
constexpr double kScale = 8;

TEST(TableRows, AreEvenAndCoverTheTable) {
  for (const std::int64_t rows : {0, 1, 3, 17, 262144}) {
    for (const int ranks : {1, 2, 3, 7, 64}) {
      std::int64_t end = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const RowRange range = table_rows(rows, rank, ranks);
        EXPECT_EQ(range.begin, end);
        EXPECT_GE(range.size(), rows / ranks);
        EXPECT_LE(range.size(), (rows + ranks - 1) / ranks);
        EXPECT_LE(range.size(), table_rows(rows, 0, ranks).size());
        end = range.end;
      }
      EXPECT_EQ(end, rows);
    }
  }
}

struct Case {
  std::int64_t rows = 0, width = 0, capacity = 0;
  DType type = DType::f32, gradients = DType::f32;
  int group = 0;        // ranks that share the table; 0: all
  bool uneven = false;  // ranks bring different numbers of tokens, rank 1 none
};

std::int64_t tokens_of(const Case& c, int rank) {
  if (!c.uneven) return c.capacity;
  return rank == 1 ? 0 : std::max<std::int64_t>(c.capacity - 3 * rank - 1, 0);
}

// Ids repeat, and some are the padding or no token at all.
std::int32_t id_of(const Case& c, int rank, std::int64_t t) {
  const double x = noise(11, static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(t));
  if (x < -0.9) return -1;
  if (x < -0.8) return kPadding;
  return static_cast<std::int32_t>(std::floor((x + 0.8) / 1.8 * static_cast<double>(c.rows)));
}

double coarse(double value) {
  return std::round(value * 64) / 64;  // sums of a few are exact in any order, in bf16 for a handful
}

double table_value(std::int64_t row, std::int64_t column) {
  return coarse(noise(12, static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(column)));
}

double gradient_value(int rank, std::int64_t t, std::int64_t column) {
  return coarse(noise(13 + static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(t),
                      static_cast<std::uint64_t>(column)));
}

class Table {
 public:
  Table(const World& world, const Case& c, bool dry = false)
      : c_(c),
        backend_(dry ? plan_backend(Device::cpu) : cpu_backend()),
        mesh_(dry ? make_plan_mesh(shape(world, c), backend_) : make_mpi_mesh(shape(world, c), backend_)),
        state_(backend_, "state", arena_bytes(c, 0)),
        workspace_(backend_, "workspace", arena_bytes(c, 36)),
        stream_(backend_.make_stream("compute")),
        ids_(DType::i32, {tokens_of(c, world.rank)}),
        rows_(c.type, {tokens_of(c, world.rank), c.width}),
        table({.name = "table", .shape = {c.rows, c.width}, .unit = -1}, 3, 1000, c.capacity, mesh_, c.type,
              c.gradients, *stream_, state_) {
    stream_->set_workspace(&workspace_);
    if (dry) return;
    for (std::int64_t t = 0; t < ids_.view().numel(); ++t)
      ids_.view().as<std::int32_t>()[t] = id_of(c, world.rank, t);
    for (std::int64_t r = 0; r < table.range().size(); ++r) {
      for (std::int64_t d = 0; d < c.width; ++d) {
        set(table.weight(), r * c.width + d, table_value(table.range().begin + r, d));
      }
    }
  }

  void look_up() { table.look_up(*stream_, ids_.view(), kScale, rows_.view()); }
  void look_up_backward() { table.look_up_backward(*stream_, ids_.view(), rows_.view(), kScale, kPadding); }
  void fill_gradients(int rank) {
    for (std::int64_t t = 0; t < rows_.view().rows(); ++t) {
      for (std::int64_t d = 0; d < c_.width; ++d)
        set(rows_.view(), t * c_.width + d, gradient_value(rank, t, d));
    }
  }
  const Tensor& rows() const { return rows_.view(); }
  std::size_t workspace_peak() const { return workspace_.peak(); }

 private:
  // The largest case takes the whole bounded scratch, the small ones next to nothing.
  static std::size_t arena_bytes(const Case& c, std::size_t scratch_mib) {
    const std::size_t small = 1 << 16;
    return c.width < 1000 ? small : (scratch_mib << 20) + static_cast<std::size_t>(c.rows * c.width) * 16;
  }
  static MeshShape shape(const World& world, const Case& c) {
    return resolve_mesh(world.size, world.rank, 0, c.group, world.size);
  }

  Case c_;
  Backend& backend_;
  Mesh mesh_;
  Arena state_, workspace_;
  std::unique_ptr<Stream> stream_;
  HostTensor ids_, rows_;

 public:
  VocabularyTable table;
};

std::vector<Case> cases(const World& world) {
  std::vector<Case> out;
  for (const bool uneven : {false, true}) {
    out.push_back({.rows = 37, .width = 6, .capacity = 23, .uneven = uneven});
    out.push_back({.rows = 2, .width = 5, .capacity = 9, .uneven = uneven});  // more ranks than rows
    out.push_back({.rows = 37, .width = 6, .capacity = 23, .type = DType::bf16, .uneven = uneven});
    out.push_back({.rows = 37,
                   .width = 6,
                   .capacity = 23,
                   .type = DType::f64,
                   .gradients = DType::f64,
                   .uneven = uneven});
    if (world.size == 4)
      out.push_back({.rows = 37, .width = 6, .capacity = 23, .group = 2, .uneven = uneven});
    // Several pieces of the bounded scratch, with a rest.
    out.push_back({.rows = 301, .width = 3840, .capacity = 997, .uneven = uneven});
  }
  return out;
}

std::string trace(const Case& c) {
  return fmt::format("{} rows of {}, capacity {}, {}, group {}, uneven {}", c.rows, c.width, c.capacity,
                     name_of(c.type), c.group, c.uneven);
}

TEST(VocabularyTable, LooksUpWhatTheWholeTableHolds) {
  const World world;
  for (const Case& c : cases(world)) {
    SCOPED_TRACE(trace(c));
    Table setup(world, c);
    setup.look_up();
    std::int64_t wrong = 0;
    for (std::int64_t t = 0; t < setup.rows().rows(); ++t) {
      const std::int32_t id = id_of(c, world.rank, t);
      for (std::int64_t d = 0; d < c.width; ++d) {
        wrong += get(setup.rows(), t * c.width + d) != (id < 0 ? 0.0 : kScale * table_value(id, d));
      }
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST(VocabularyTable, BackwardSumsOverEveryRankThatSawTheRow) {
  const World world;
  for (const Case& c : cases(world)) {
    SCOPED_TRACE(trace(c));
    Table setup(world, c);
    setup.fill_gradients(world.rank);
    setup.look_up_backward();
    setup.look_up_backward();  // a second micro-batch is added
    setup.table.finish_gradients();
    std::vector<double> whole(static_cast<std::size_t>(c.rows * c.width), 0.0);
    for (int rank = 0; rank < world.size; ++rank) {
      for (std::int64_t t = 0; t < tokens_of(c, rank); ++t) {
        const std::int32_t id = id_of(c, rank, t);
        if (id < 0 || id == kPadding) continue;
        for (std::int64_t d = 0; d < c.width; ++d) {
          whole[static_cast<std::size_t>(id * c.width + d)] += 2 * kScale * gradient_value(rank, t, d);
        }
      }
    }
    std::int64_t wrong = 0;
    const Tensor gradient = setup.table.gradient();
    const std::int64_t first = setup.table.range().begin * c.width;
    for (std::int64_t i = 0; i < gradient.numel(); ++i) {
      wrong += get(gradient, i) != whole[static_cast<std::size_t>(first + i)];
    }
    EXPECT_EQ(wrong, 0);
    setup.table.zero_gradients();
    for (std::int64_t i = 0; i < gradient.numel(); ++i) wrong += get(gradient, i) != 0;
    EXPECT_EQ(wrong, 0);
  }
}

TEST(VocabularyTable, SameBitsInEveryRun) {
  const World world;
  const Case c{.rows = 53, .width = 7, .capacity = 200, .uneven = true};
  std::vector<float> first;
  for (int round = 0; round < 3; ++round) {
    Table setup(world, c);
    for (std::int64_t i = 0; i < setup.rows().numel(); ++i) {
      set(setup.rows(), i, noise(5, static_cast<std::uint64_t>(world.rank), static_cast<std::uint64_t>(i)));
    }
    setup.look_up_backward();
    const Tensor gradient = setup.table.gradient();
    const std::vector<float> bits(gradient.as<float>(), gradient.as<float>() + gradient.numel());
    if (round == 0) first = bits;
    EXPECT_EQ(bits, first);
  }
}

TEST(VocabularyTable, PlanCountsTheScratchAndItIsBounded) {
  const World world;
  for (const Case& c : cases(world)) {
    SCOPED_TRACE(trace(c));
    Table plan(world, c, true), real(world, c);
    for (Table* setup : {&plan, &real}) {
      setup->look_up();
      setup->look_up_backward();
    }
    EXPECT_EQ(plan.workspace_peak(), real.workspace_peak());
    EXPECT_LE(real.workspace_peak(), std::size_t{36} << 20);
  }
}

TEST(VocabularyTable, DescribesItsShard) {
  const World world;
  Table setup(world, {.rows = 37, .width = 6, .capacity = 23});
  const ParameterShard& shard = setup.table.shard();
  const RowRange range = table_rows(37, world.rank, world.size);
  ASSERT_EQ(shard.slices.size(), 1u);
  EXPECT_EQ(shard.slices[0].parameter, 3);
  EXPECT_EQ(shard.slices[0].parameter_begin, range.begin * 6);
  EXPECT_EQ(shard.slices[0].count, range.size() * 6);
  EXPECT_EQ(shard.first_index, 1000 + range.begin * 6);
  EXPECT_EQ(shard.replicas, 1);
}

TEST(VocabularyTable, RefusesWhatDoesNotFit) {
  const World world;
  Table setup(world, {.rows = 37, .width = 6, .capacity = 23});
  auto stream = cpu_backend().make_stream("test");
  HostTensor ids(DType::i32, {24}), few(DType::i32, {3}), out(DType::f32, {24, 6});
  EXPECT_THROW(setup.table.look_up(*stream, few.view(), 1, out.view()), Error);
  if (world.size > 1) {
    EXPECT_THROW(setup.table.look_up(*stream, ids.view(), 1, out.view()), Error);
  }
  EXPECT_THROW(Table(world, {.rows = 37, .width = 6, .capacity = 0}), Error);
}

}  // namespace
}  // namespace lapidary
