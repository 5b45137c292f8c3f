#include "parallel/parameters.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/check.h"

namespace lapidary {
namespace {

ParameterSpec parameter(const std::string& name, std::vector<std::int64_t> shape, int unit,
                        bool joined = false) {
  ParameterSpec spec;
  spec.name = name;
  spec.shape = std::move(shape);
  spec.unit = unit;
  spec.joined = joined;
  return spec;
}

// Parameters of several units, interleaved in the table; some matrices joined to the one before.
std::vector<ParameterSpec> random_table(std::mt19937& random) {
  std::vector<ParameterSpec> table;
  const int count = 1 + static_cast<int>(random() % 30);
  for (int i = 0; i < count; ++i) {
    const bool joined = i > 0 && table.back().shape.size() == 2 && random() % 2 == 0;
    if (joined) {
      table.push_back(parameter(fmt::format("p{}", i),
                                {1 + static_cast<std::int64_t>(random() % 40), table.back().shape[1]},
                                table.back().unit, true));
      continue;
    }
    std::vector<std::int64_t> shape(1 + random() % 3);
    for (auto& extent : shape) extent = 1 + static_cast<std::int64_t>(random() % 37);
    table.push_back(parameter(fmt::format("p{}", i), shape, static_cast<int>(random() % 3)));
  }
  return table;
}

std::string message_of(const std::vector<ParameterSpec>& table, int unit) {
  try {
    make_unit_layout(table, unit, "layer 0");
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(UnitLayout, PlacesEveryParameterOfTheUnitInOrder) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const auto table = random_table(random);
    const int unit = table[random() % table.size()].unit;
    const UnitLayout layout = make_unit_layout(table, unit, "layer 0");
    std::int64_t end = 0;
    std::size_t next = 0;
    for (const auto& entry : layout.entries) {
      while (table[next].unit != unit) ++next;
      EXPECT_EQ(static_cast<std::size_t>(entry.parameter), next);
      EXPECT_EQ(entry.count, table[next].numel());
      if (table[next].joined) {
        EXPECT_EQ(entry.offset, end);
      } else {
        EXPECT_EQ(entry.offset % UnitLayout::kAlignment, 0);
        EXPECT_GE(entry.offset, end);
        EXPECT_LT(entry.offset - end, UnitLayout::kAlignment);
      }
      end = entry.offset + entry.count;
      ++next;
    }
    for (; next < table.size(); ++next) EXPECT_NE(table[next].unit, unit);
    EXPECT_GE(layout.numel, end);
    EXPECT_LT(layout.numel - end, UnitLayout::kAlignment);
    EXPECT_EQ(layout.numel % UnitLayout::kAlignment, 0);
  }
}

TEST(UnitLayout, ShardsAreEqualAlignedAndNoLargerThanNeeded) {
  UnitLayout layout;
  for (std::int64_t blocks = 1; blocks < 40; ++blocks) {
    layout.numel = blocks * UnitLayout::kAlignment;
    EXPECT_EQ(layout.shard(1), layout.numel);
    for (int ranks = 1; ranks < 50; ++ranks) {
      EXPECT_EQ(layout.shard(ranks), (blocks + ranks - 1) / ranks * UnitLayout::kAlignment);
    }
  }
}

TEST(ShardSlices, CoverEveryElementOnceForAnyNumberOfRanks) {
  std::mt19937 random(2);
  for (int round = 0; round < 100; ++round) {
    const auto table = random_table(random);
    const int unit = table[random() % table.size()].unit;
    const UnitLayout layout = make_unit_layout(table, unit, "layer 0");
    for (const int ranks : {1, 2, 3, 4, 7, 64}) {
      std::vector<std::int64_t> covered(table.size(), 0);
      for (int rank = 0; rank < ranks; ++rank) {
        std::int64_t end = 0;
        for (const ShardSlice& slice : shard_slices(layout, rank, ranks)) {
          const auto p = static_cast<std::size_t>(slice.parameter);
          EXPECT_EQ(slice.parameter_begin, covered[p]);  // ranks in order leave no gap and no overlap
          EXPECT_GT(slice.count, 0);
          EXPECT_GE(slice.offset, end);
          end = slice.offset + slice.count;
          covered[p] += slice.count;
          // Where the element lies in the whole unit does not depend on the number of ranks.
          for (const auto& entry : layout.entries) {
            if (entry.parameter != slice.parameter) continue;
            EXPECT_EQ(rank * layout.shard(ranks) + slice.offset, entry.offset + slice.parameter_begin);
          }
        }
        EXPECT_LE(end, layout.shard(ranks));
      }
      for (const auto& entry : layout.entries) {
        EXPECT_EQ(covered[static_cast<std::size_t>(entry.parameter)], entry.count);
      }
    }
  }
}

TEST(UnitLayout, NamesWhatIsWrong) {
  EXPECT_EQ(message_of({parameter("a", {4}, 0)}, 1), "layer 0: no parameter belongs to unit 1");
  EXPECT_EQ(message_of({parameter("a", {0, 4}, 0)}, 0), "a: a parameter needs at least one element");
  EXPECT_EQ(message_of({parameter("a", {4, 4}, 0, true)}, 0),
            "a is joined, but no parameter comes before it");
  EXPECT_EQ(message_of({parameter("a", {4, 4}, 1), parameter("b", {4, 4}, 0, true)}, 0),
            "b is joined to a, which lies in another unit (1, not 0)");
  EXPECT_EQ(message_of({parameter("a", {4, 4}, 0), parameter("b", {4, 5}, 0, true)}, 0),
            "b is joined to a, whose rows are of another shape");
  UnitLayout layout = make_unit_layout({parameter("a", {4}, 0)}, 0, "layer 0");
  EXPECT_THROW(shard_slices(layout, 2, 2), Error);
  EXPECT_THROW(layout.shard(0), Error);
}

}  // namespace
}  // namespace lapidary
