#include <algorithm>
#include <cmath>

#include "data/video.h"
#include "kernels/check.h"

namespace lapidary {

std::vector<std::int64_t> sampled_frames(std::int64_t total, const VideoOptions& options,
                                         const std::string& name) {
  require(total > 0, "{}: has no frames", name);
  const std::int64_t wanted = options.frames == 0 ? total : options.frames;
  require(total >= wanted,
          "{}: has {} frames, fewer than the {} to take: leave it out, or take all frames of every clip "
          "(--video-frames 0)",
          name, total, wanted);
  require(wanted <= options.max_frames, "{}: {} frames would be taken, expected at most {}", name, wanted,
          options.max_frames);
  std::vector<std::int64_t> frames(static_cast<std::size_t>(wanted));
  for (std::int64_t k = 0; k < wanted; ++k) frames[static_cast<std::size_t>(k)] = k * total / wanted;
  return frames;
}

std::int32_t second_of_frame(std::int64_t frame, double frames_per_second) {
  constexpr double kUsualRate = 24;
  const bool known = std::isfinite(frames_per_second) && frames_per_second > 0;
  const double second = static_cast<double>(frame) / (known ? frames_per_second : kUsualRate);
  constexpr double kMost = 1e9;  // a rate may be absurdly small
  return static_cast<std::int32_t>(std::min(second, kMost));
}

}  // namespace lapidary
