// Frames of a video clip as the model takes them: some of them, evenly spaced, each an image of its own with
// the second at which it is shown (specification 6). Decoded by FFmpeg's libraries; a build without them has
// video_absent.cpp, which refuses every clip.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/image_resize.h"
#include "data/media.h"

namespace lapidary {

struct VideoOptions {
  std::int32_t frames = 32;                   ///< taken of a clip, evenly spaced; 0: all of them
  ImageOptions image{.max_soft_tokens = 70};  ///< of every frame
  std::int64_t max_pixels = 40'000'000;       ///< of a frame: more than 8K
  std::int32_t max_frames = 4096;             ///< that may be taken: bounds memory where `frames` is 0
};

/// Frames floor(k * total / wanted) for k = 0 ... wanted - 1; all of them where wanted is 0. Error where the
/// clip has fewer than wanted, as the processor has no rule for that, or more than `most` would be taken.
/// `name` opens the messages.
std::vector<std::int64_t> sampled_frames(std::int64_t total, const VideoOptions& options,
                                         const std::string& name);

/// The second at which a frame is shown, fractions cut off. A clip that does not say its rate has 24 a
/// second.
std::int32_t second_of_frame(std::int64_t frame, double frames_per_second);

/// Decodes a clip that is in memory; `name` opens the messages. Reads MP4 and MOV, Matroska and WebM, AVI,
/// MPEG, FLV, Ogg and GIF, in the codecs that the FFmpeg at hand has. Frames are turned upright as the file
/// asks. Error for other formats, damage, frames that change their size, and too many or too few of them.
SampledVideo decode_video(std::string_view bytes, const std::string& name, const VideoOptions& options = {});

/// The same for a file, which is read in parts.
SampledVideo read_video(const std::string& path, const VideoOptions& options = {});

/// For --version: "FFmpeg's libavcodec 59.37.100", or "without FFmpeg".
std::string video_libraries();

}  // namespace lapidary
