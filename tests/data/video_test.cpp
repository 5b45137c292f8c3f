// Which frames of a clip are taken, and when they are shown: the rules, without a decoder.
#include "data/video.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/error.h"

namespace lapidary {
namespace {

TEST(VideoSampling, TakesThirtyTwoFramesEvenly) {
  // The worked example of the specification: 40 frames, 2 a second.
  const std::vector<std::int64_t> frames = sampled_frames(40, {}, "x");
  ASSERT_EQ(frames.size(), 32u);
  EXPECT_EQ(std::vector(frames.begin(), frames.begin() + 9),
            (std::vector<std::int64_t>{0, 1, 2, 3, 5, 6, 7, 8, 10}));
  EXPECT_EQ(frames.back(), 38);
  std::vector<std::int32_t> seconds;
  seconds.reserve(frames.size());
  for (const std::int64_t frame : frames) seconds.push_back(second_of_frame(frame, 2));
  EXPECT_EQ(std::vector(seconds.begin(), seconds.begin() + 6), (std::vector<std::int32_t>{0, 0, 1, 1, 2, 3}));
  EXPECT_EQ(seconds.back(), 19);
}

TEST(VideoSampling, TakesAllFramesWhereAskedTo) {
  VideoOptions all{.frames = 0};
  EXPECT_EQ(sampled_frames(3, all, "x"), (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_EQ(sampled_frames(4096, all, "x").size(), 4096u);
  EXPECT_THROW(sampled_frames(4097, all, "x"), Error);
}

TEST(VideoSampling, RefusesClipsThatAreTooShort) {
  EXPECT_EQ(sampled_frames(32, {}, "x").back(), 31);
  for (const std::int64_t total : {31, 1, 0}) {
    try {
      sampled_frames(total, {}, "a.mp4");
      ADD_FAILURE() << total;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).rfind("a.mp4: has ", 0), 0u) << e.what();
    }
  }
}

TEST(VideoSampling, SecondsAreCutOffAndAClipWithoutRateHas24Frames) {
  EXPECT_EQ(second_of_frame(59, 30), 1);
  EXPECT_EQ(second_of_frame(60, 30000.0 / 1001), 2);
  EXPECT_EQ(second_of_frame(71, 24), 2);
  for (const double unknown : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_EQ(second_of_frame(71, unknown), 2);
    EXPECT_EQ(second_of_frame(72, unknown), 3);
  }
  EXPECT_EQ(second_of_frame(4096, 1e-300), 1'000'000'000);
}

}  // namespace
}  // namespace lapidary
