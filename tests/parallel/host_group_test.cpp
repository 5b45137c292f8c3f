// Host-side collectives on 1 to 4 ranks: values, agreement on errors, and what happens when a rank does not
// come.
#include "parallel/host_group.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <thread>

#include "kernels/check.h"

namespace lapidary {
namespace {

using Reduce = HostGroup::Reduce;
using std::chrono::milliseconds;

HostGroup world(milliseconds deadline = milliseconds(60000)) {
  return {MPI_COMM_WORLD, deadline};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(HostGroup, AloneNeedsNobody) {
  HostGroup group;
  EXPECT_EQ(group.rank(), 0);
  EXPECT_EQ(group.size(), 1);
  group.barrier("b");
  EXPECT_EQ(group.all_reduce(std::int64_t{7}, Reduce::sum, "s"), 7);
  EXPECT_EQ(group.broadcast("x", 0, "b"), "x");
  EXPECT_EQ(group.gather("x", 0, "g"), std::vector<std::string>{"x"});
  EXPECT_EQ(group.all_gather(3, "a"), std::vector<std::int64_t>{3});
  try {
    group.all_or_error("w", [] { throw Error("reason", ExitCode::peer_lost); });
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.what(), std::string("reason"));
    EXPECT_EQ(e.code(), ExitCode::peer_lost);
  }
}

TEST(HostGroup, Reduces) {
  HostGroup group = world();
  const std::int64_t n = group.size(), r = group.rank();
  std::vector<std::int64_t> values = {r, -r, std::int64_t{1} << 60, 1};
  values[2] /= n;
  group.all_reduce(values, Reduce::sum, "sum");
  EXPECT_EQ(values, (std::vector<std::int64_t>{n * (n - 1) / 2, -n * (n - 1) / 2,
                                               (std::int64_t{1} << 60) / n * n, n}));
  EXPECT_EQ(group.all_reduce(r, Reduce::max, "max"), n - 1);
  EXPECT_EQ(group.all_reduce(r - 5, Reduce::min, "min"), -5);
  const auto x = static_cast<double>(r);
  EXPECT_EQ(group.all_reduce(x * 0.5, Reduce::max, "max"), static_cast<double>(n - 1) * 0.5);
  EXPECT_EQ(group.all_reduce(x * 0.5 - 5, Reduce::min, "min"), -5);
  double expected = 0;  // in rank order, to the last bit
  for (std::int64_t i = 0; i < n; ++i) expected += std::pow(0.1, static_cast<double>(i) * 3);
  EXPECT_EQ(group.all_reduce(std::pow(0.1, x * 3), Reduce::sum, "sum"), expected);
}

TEST(HostGroup, BroadcastsAndGathers) {
  HostGroup group = world();
  for (int root = 0; root < group.size(); ++root) {
    for (const std::size_t length : {0, 1, 5000000}) {
      std::string text(length, '\0');
      for (std::size_t i = 0; i < length; ++i) text[i] = static_cast<char>(i * 31 >> 4);
      EXPECT_TRUE(group.broadcast(group.rank() == root ? text : "else", root, "text") == text);
    }
    const std::string mine = std::string(static_cast<std::size_t>(group.rank()) * 100000, 'a') + "end";
    const auto all = group.gather(mine, root, "texts");
    ASSERT_EQ(all.size(), group.rank() == root ? static_cast<std::size_t>(group.size()) : 0u);
    for (std::size_t r = 0; r < all.size(); ++r) EXPECT_EQ(all[r].size(), r * 100000 + 3);
  }
  const auto squares = group.all_gather(group.rank() * group.rank(), "squares");
  ASSERT_EQ(squares.size(), static_cast<std::size_t>(group.size()));
  for (std::size_t r = 0; r < squares.size(); ++r) EXPECT_EQ(squares[r], static_cast<std::int64_t>(r * r));
}

TEST(HostGroup, OneRanksErrorIsEveryRanksError) {
  HostGroup group = world();
  for (int bad = 0; bad < group.size(); ++bad) {
    std::string message = "no error";
    auto code = ExitCode::ok;
    try {
      group.all_or_error("work", [&] {
        if (group.rank() >= bad) throw Error(fmt::format("trouble {}", group.rank()), ExitCode::hardware);
      });
    } catch (const Error& e) {
      message = e.what();
      code = e.code();
    }
    EXPECT_EQ(message, group.size() == 1 ? "trouble 0" : fmt::format("rank {0}: trouble {0}", bad));
    EXPECT_EQ(code, ExitCode::hardware);
  }
  int done = 0;
  group.all_or_error("work", [&] { ++done; });
  EXPECT_EQ(done, 1);
}

TEST(HostGroup, GroupsAndThreadsDoNotDisturbEachOther) {
  HostGroup main_group = world(), thread_group = world();
  std::int64_t in_thread = 0, in_main = 0;
  std::thread thread([&] {
    for (int i = 0; i < 200; ++i)
      in_thread += thread_group.all_reduce(std::int64_t{i}, Reduce::sum, "thread");
  });
  for (int i = 0; i < 200; ++i) in_main += main_group.all_reduce(std::int64_t{2 * i}, Reduce::sum, "main");
  thread.join();
  EXPECT_EQ(in_thread, 199 * 100 * main_group.size());
  EXPECT_EQ(in_main, 2 * in_thread);
}

// The last rank does not come while the others wait: they stop, name it, and find the group unusable. When it
// comes after all, it stops too. No wall-clock time decides: the machine may be busy.
TEST(HostGroup, NamesTheMissingRank) {
  HostGroup group = world(milliseconds(300));
  const int late = group.size() - 1;
  if (group.size() == 1) return group.barrier("alone");  // nobody to wait for
  std::string message;
  EXPECT_TRUE(group.usable());
  if (group.rank() == late) MPI_Barrier(MPI_COMM_WORLD);
  try {
    for (int i = 0; i < 2; ++i) group.all_reduce(std::int64_t{1}, Reduce::sum, "checkpoint 40: written");
  } catch (const Error& e) {
    message = e.what();
    EXPECT_EQ(e.code(), ExitCode::peer_lost);
  }
  if (group.rank() != late) MPI_Barrier(MPI_COMM_WORLD);
  EXPECT_FALSE(group.usable());
  EXPECT_TRUE(contains(message, "checkpoint 40: written: gave up after")) << message;
  if (group.rank() != late) {
    EXPECT_TRUE(message.ends_with(fmt::format("missing: rank {}", late))) << message;
  }
  try {
    group.barrier("after");
    FAIL() << "the group still works";
  } catch (const Error& e) {
    EXPECT_TRUE(contains(e.what(), "after: not possible after: rank")) << e.what();
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

// A rank with a short deadline takes those with a long one along.
TEST(HostGroup, TheFirstToGiveUpTellsTheOthers) {
  HostGroup group = world(milliseconds(200000));
  if (group.size() < 3) return group.barrier("too few for three roles");
  const int late = group.size() - 1;
  if (group.rank() == 0) group.set_deadline(milliseconds(200));
  MPI_Barrier(MPI_COMM_WORLD);
  if (group.rank() != late) {
    const auto begun = std::chrono::steady_clock::now();
    try {
      group.barrier("save");
      ADD_FAILURE() << "nobody was missed";
    } catch (const Error& e) {
      EXPECT_TRUE(contains(e.what(), fmt::format("missing: rank {}", late))) << e.what();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - begun, milliseconds(60000));
  }
  MPI_Barrier(MPI_COMM_WORLD);
  if (group.rank() == late) {  // whatever it calls now ends
    EXPECT_THROW(
        {
          group.barrier("save");
          group.barrier("next");
        },
        Error);
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

}  // namespace
}  // namespace lapidary
