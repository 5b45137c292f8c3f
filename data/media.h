// The pictures, sounds and clips that a sample names, in the form in which the model takes them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lapidary {

/// An image cut into squares of `patch` pixels, one per soft token (specification 4.2).
struct PatchedImage {
  std::int32_t columns = 0, rows = 0;
  std::vector<std::uint8_t>
      patches;  ///< [rows * columns, patch, patch, 3]: row-major squares, each in HWC order, RGB
};

/// A sound at 16 kHz in frames of 40 ms, the last one padded with zeros (specification 5.1).
struct FramedSound {
  std::int32_t frames = 0;
  std::vector<std::int16_t> samples;  ///< [frames, 640]
};

/// Frames of a clip and the second at which each was shown (specification 6).
struct SampledVideo {
  std::vector<PatchedImage> frames;
  std::vector<std::int32_t> seconds;  ///< [frames], truncated to whole seconds
};

/// Where the renderer gets media from. `path` is what the sample says; errors name the file.
/// Implementations may be called from several threads at once.
class MediaSource {
 public:
  virtual ~MediaSource() = default;
  virtual PatchedImage image(const std::string& path) const = 0;
  virtual FramedSound sound(const std::string& path) const = 0;
  virtual SampledVideo video(const std::string& path) const = 0;
};

}  // namespace lapidary
