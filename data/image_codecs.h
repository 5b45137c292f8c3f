// One decoder per format, for decode_image() alone.
#pragma once
#include <string>
#include <string_view>

#include "data/image_resize.h"

namespace lapidary {

/// What a decoder found: the pixels as they are stored, and the EXIF block that says how to turn them.
struct DecodedImage {
  RgbImage image;
  std::string exif;  ///< TIFF header and directories; empty where there is none
};

/// Each checks the declared size against `max_pixels` before it allocates, and throws Error opening with
/// `name`.
DecodedImage decode_jpeg(std::string_view bytes, const std::string& name, std::int64_t max_pixels);
DecodedImage decode_png(std::string_view bytes, const std::string& name, std::int64_t max_pixels);
DecodedImage decode_webp(std::string_view bytes, const std::string& name, std::int64_t max_pixels);

/// Error unless 1 <= width * height <= max_pixels.
void check_pixels(std::int64_t width, std::int64_t height, std::int64_t max_pixels, const std::string& name);

/// Orientation 1 to 8 from an EXIF block; 1 where it says nothing, or nothing sensible.
int exif_orientation(std::string_view tiff);

/// Turns and mirrors an image from the stored orientation to upright.
RgbImage apply_orientation(RgbImage image, int orientation);

}  // namespace lapidary
