// Decodes pictures to 8-bit RGB: JPEG, PNG and WebP, told apart by their content. The result is upright (EXIF
// orientation applied), without alpha and colour profile, and equal to what Pillow's convert("RGB") gives.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "data/image_resize.h"

namespace lapidary {

struct ImageLimits {
  std::int64_t max_pixels = 100'000'000;             ///< that a header may declare: 300 MB decoded
  std::int64_t max_bytes = std::int64_t{256} << 20;  ///< of the file
};

/// Decodes a picture that is in memory; `name` opens the messages. Error for any other format, more pixels
/// than allowed (found before anything is allocated), and whatever the decoders call damage: a truncated or
/// corrupt file is refused, not filled with grey.
RgbImage decode_image(std::string_view bytes, const std::string& name, const ImageLimits& limits = {});

/// The same for a file.
RgbImage read_image(const std::string& path, const ImageLimits& limits = {});

}  // namespace lapidary
