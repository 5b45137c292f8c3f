// The timing of the bench commands: medians, and that every case is run as often as asked.
#include "launch/bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "kernels/error.h"
#include "kernels/stopwatch.h"

namespace lapidary {
namespace {

TEST(Bench, MedianOfOddAndEvenCounts) {
  EXPECT_EQ(median_of({3, 1, 2}), 2);
  EXPECT_EQ(median_of({4, 1, 3, 2}), 2.5);
  EXPECT_EQ(median_of({7}), 7);
  EXPECT_THROW(median_of({}), Error);
}

TEST(Bench, TimesCasesInTurn) {
  const auto stream = cpu_backend().make_stream("bench");
  std::string order;
  const auto sleep = [](int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); };
  const std::vector<BenchCase> cases{{"short", [&] { order += 's', sleep(1); }},
                                     {"long", [&] { order += 'l', sleep(12); }}};
  const auto times = time_in_turn(*stream, cases, {.warm_up_ms = 1, .least_ms = 6, .rounds = 3});
  ASSERT_EQ(times.size(), 2u);
  EXPECT_GE(times[0].fastest, 1.0);
  EXPECT_GE(times[1].fastest, 12.0);
  EXPECT_LE(times[1].fastest, times[1].median);
  EXPECT_LE(times[1].median, times[1].slowest);
  // Once untimed, once to warm up, and three rounds in which the short case is repeated and the long is not.
  EXPECT_EQ(order.substr(0, 4), "slsl");
  EXPECT_EQ(std::count(order.begin(), order.end(), 'l'), 5);
  EXPECT_GE(std::count(order.begin(), order.end(), 's'), 2 + 3 * 2);
  EXPECT_EQ(order.back(), 'l');
}

}  // namespace
}  // namespace lapidary
