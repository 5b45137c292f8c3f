// A build without FFmpeg's libraries says what is missing.
#include <gtest/gtest.h>

#include "data/media_files.h"
#include "kernels/error.h"

namespace lapidary {
namespace {

TEST(VideoAbsent, NamesTheFileAndThePackages) {
  try {
    MediaFiles("folder", {}).video("a.mp4");
    ADD_FAILURE() << "no Error";
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(message.rfind("folder/a.mp4: this build of lapidary cannot read videos", 0), 0u) << message;
    EXPECT_NE(message.find("libavformat-dev"), std::string::npos) << message;
  }
  EXPECT_EQ(video_libraries(), "without FFmpeg");
}

}  // namespace
}  // namespace lapidary
