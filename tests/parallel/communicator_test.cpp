// Collectives over MPI against sums that every rank computes for itself.
#include "parallel/communicator.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>

#include "kernels/error.h"
#include "tests/parallel/collectives.h"

namespace lapidary {
namespace {

constexpr std::array kAll{DType::f32, DType::bf16, DType::f64, DType::i64, DType::i32, DType::i16, DType::u8};
constexpr std::array kReducible{DType::f32, DType::bf16, DType::f64, DType::i64, DType::i32};
// Zero, odd, and enough that the staging takes several rounds with a rest (4 MiB for the parts of all ranks).
constexpr std::array<std::int64_t, 5> kCounts{0, 1, 13, 1000, 600011};

// The ranks' parts in rank order, in float for bf16 and float32.
template <class A>
A ordered(int ranks, DType dtype, std::int64_t i, Reduction reduction) {
  HostTensor one(dtype, {1});
  A out{};
  for (int rank = 0; rank < ranks; ++rank) {
    set(one.view(), 0, noise(static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(i)));
    const A part = static_cast<A>(get(one.view(), 0));
    out = rank == 0 ? part : reduction == Reduction::sum ? static_cast<A>(out + part) : std::max(out, part);
  }
  return out;
}

double expected(int ranks, DType dtype, std::int64_t i, Reduction reduction) {
  HostTensor rounded(dtype, {1});
  switch (dtype) {
    case DType::f32:
      return static_cast<double>(ordered<float>(ranks, dtype, i, reduction));
    case DType::bf16:
      rounded.view().as<bf16>()[0] = bf16(ordered<float>(ranks, dtype, i, reduction));
      return get(rounded.view(), 0);
    default:
      return ordered<double>(ranks, dtype, i, reduction);
  }
}

HostTensor part_of(int rank, DType dtype, std::int64_t count, std::int64_t first) {
  HostTensor part(dtype, {count});
  for (std::int64_t i = 0; i < count; ++i) {
    set(part.view(), i, noise(static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(first + i)));
  }
  return part;
}

// Every 97th element and the last ones: all of a small tensor would do, all of a large one takes long.
std::int64_t stride_of(std::int64_t count) {
  return count > 10000 ? 97 : 1;
}

class Communicators : public testing::Test {
 protected:
  World world;
  Mesh mesh = world.mesh(0, 0);
  std::unique_ptr<Stream> stream = cpu_backend().make_stream("test");
};

TEST_F(Communicators, AllGatherBringsEveryPartToItsPlace) {
  for (const DType dtype : kAll) {
    for (const std::int64_t count : kCounts) {
      const HostTensor mine = part_of(world.rank, dtype, count, 0);
      HostTensor all(dtype, {world.size * count});
      Ticket ticket = mesh.gather->all_gather(*stream, mine.view(), all.view());
      mesh.gather->wait(*stream, ticket);
      for (int rank = 0; rank < world.size; ++rank) {
        EXPECT_TRUE(part_of(rank, dtype, count, 0).same_bits(all.view().flat_range(rank * count, count)))
            << name_of(dtype) << " " << count;
      }
    }
  }
}

TEST_F(Communicators, AllGatherWorksInPlace) {
  constexpr std::int64_t kCount = 1537;
  HostTensor all(DType::f32, {world.size * kCount});
  const Tensor mine = all.view().flat_range(world.rank * kCount, kCount);
  std::memcpy(mine.data(), part_of(world.rank, DType::f32, kCount, 0).bytes(), mine.bytes());
  Ticket ticket = mesh.gather->all_gather(*stream, mine, all.view());
  mesh.gather->wait(*stream, ticket);
  for (int rank = 0; rank < world.size; ++rank) {
    EXPECT_TRUE(part_of(rank, DType::f32, kCount, 0).same_bits(all.view().flat_range(rank * kCount, kCount)));
  }
}

TEST_F(Communicators, ReduceScatterSumsInRankOrder) {
  for (const DType dtype : kReducible) {
    for (const std::int64_t count : kCounts) {
      const HostTensor mine = part_of(world.rank, dtype, world.size * count, 0);
      HostTensor sum(dtype, {count});
      Ticket ticket = mesh.reduce->reduce_scatter(*stream, mine.view(), sum.view());
      mesh.reduce->wait(*stream, ticket);
      for (std::int64_t i = 0; i < count; i += stride_of(count)) {
        ASSERT_EQ(get(sum.view(), i), expected(world.size, dtype, world.rank * count + i, Reduction::sum))
            << name_of(dtype) << " " << count << " " << i;
      }
    }
  }
}

TEST_F(Communicators, AllReduceGivesTheSameBitsEverywhere) {
  for (const Reduction reduction : {Reduction::sum, Reduction::max}) {
    for (const DType dtype : kReducible) {
      for (const std::int64_t count : kCounts) {
        const HostTensor data = part_of(world.rank, dtype, count, 0);
        Ticket ticket = mesh.reduce->all_reduce(*stream, data.view(), reduction);
        mesh.reduce->wait(*stream, ticket);
        for (std::int64_t i = 0; i < count; i += stride_of(count)) {
          ASSERT_EQ(get(data.view(), i), expected(world.size, dtype, i, reduction))
              << name_of(dtype) << " " << count << " " << i;
        }
        EXPECT_TRUE(same_on_all_ranks(data.view().data(), data.view().bytes()));
      }
    }
  }
}

TEST_F(Communicators, MaximumCarriesNaN) {
  for (int culprit = 0; culprit < world.size; ++culprit) {
    HostTensor data(DType::f32, {2});
    set(data.view(), 0, world.rank == culprit ? std::numeric_limits<double>::quiet_NaN() : 1.0);
    set(data.view(), 1, world.rank);
    Ticket ticket = mesh.reduce->all_reduce(*stream, data.view(), Reduction::max);
    mesh.reduce->wait(*stream, ticket);
    EXPECT_TRUE(std::isnan(get(data.view(), 0)));
    EXPECT_EQ(get(data.view(), 1), world.size - 1);
  }
}

// Several operations under way at once, of both communicators, waited for in another order than begun.
TEST_F(Communicators, OperationsOverlapAndMayBeWaitedForInAnyOrder) {
  constexpr std::int64_t kCount = 400003;
  const HostTensor mine = part_of(world.rank, DType::f32, kCount, 0);
  const HostTensor whole = part_of(world.rank, DType::f32, world.size * kCount, 0);
  HostTensor gathered_a(DType::f32, {world.size * kCount}), gathered_b(DType::f32, {world.size * kCount});
  HostTensor sum_a(DType::f32, {kCount}), sum_b(DType::f32, {kCount});
  std::vector<Ticket> tickets;
  tickets.push_back(mesh.gather->all_gather(*stream, mine.view(), gathered_a.view()));
  tickets.push_back(mesh.reduce->reduce_scatter(*stream, whole.view(), sum_a.view()));
  tickets.push_back(mesh.gather->all_gather(*stream, mine.view(), gathered_b.view()));
  tickets.push_back(mesh.reduce->reduce_scatter(*stream, whole.view(), sum_b.view()));
  mesh.reduce->wait(*stream, tickets[3]);
  mesh.gather->wait(*stream, tickets[2]);
  mesh.reduce->wait(*stream, tickets[1]);
  mesh.gather->wait(*stream, tickets[0]);
  EXPECT_TRUE(gathered_a.same_bits(gathered_b.view()));
  EXPECT_TRUE(sum_a.same_bits(sum_b.view()));
  EXPECT_EQ(get(sum_a.view(), 17),
            expected(world.size, DType::f32, world.rank * kCount + 17, Reduction::sum));
}

TEST_F(Communicators, RefusesTensorsThatDoNotFit) {
  HostTensor part(DType::f32, {4}), whole(DType::f32, {world.size * 4 + 1}), bytes(DType::u8, {4});
  EXPECT_THROW(mesh.gather->all_gather(*stream, part.view(), whole.view()), Error);
  EXPECT_THROW(mesh.reduce->reduce_scatter(*stream, whole.view(), part.view()), Error);
  EXPECT_THROW(mesh.reduce->all_reduce(*stream, bytes.view(), Reduction::sum), Error);
  try {
    mesh.gather->all_gather(*stream, part.view(), whole.view());
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("all_gather on communicator 'gather' of"), std::string::npos)
        << e.what();
  }
}

TEST_F(Communicators, NameAndPlace) {
  EXPECT_EQ(mesh.gather->size(), world.size);
  EXPECT_EQ(mesh.gather->rank(), world.rank);
  EXPECT_EQ(mesh.gather->name(), "gather");
  EXPECT_EQ(mesh.replicas->size(), 1);
  EXPECT_EQ(mesh.vocabulary->name(), "vocabulary");
}

}  // namespace
}  // namespace lapidary
