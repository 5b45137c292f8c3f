// Video in a build without FFmpeg's libraries: nothing is read, and the message says what to do.
#include "data/video.h"
#include "kernels/check.h"

namespace lapidary {

SampledVideo decode_video(std::string_view, const std::string& name, const VideoOptions&) {
  fail(
      "{}: this build of lapidary cannot read videos: install libavformat-dev, libavcodec-dev, libavutil-dev "
      "and libswscale-dev, and build again",
      name);
}

SampledVideo read_video(const std::string& path, const VideoOptions& options) {
  return decode_video({}, path, options);
}

std::string video_libraries() {
  return "without FFmpeg";
}

}  // namespace lapidary
