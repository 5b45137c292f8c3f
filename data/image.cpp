#include "data/image.h"

#include <utility>

#include "data/image_codecs.h"
#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {

void check_pixels(std::int64_t width, std::int64_t height, std::int64_t max_pixels, const std::string& name) {
  require(width > 0 && height > 0, "{}: declares {} x {} pixels", name, width, height);
  require(height <= max_pixels / width, "{}: declares {} x {} pixels, more than the {} allowed", name, width,
          height, max_pixels);
}

RgbImage decode_image(std::string_view bytes, const std::string& name, const ImageLimits& limits) {
  DecodedImage decoded;
  if (bytes.substr(0, 3) == "\xFF\xD8\xFF")
    decoded = decode_jpeg(bytes, name, limits.max_pixels);
  else if (bytes.substr(0, 8) == "\x89PNG\r\n\x1A\n")
    decoded = decode_png(bytes, name, limits.max_pixels);
  else if (bytes.substr(0, 4) == "RIFF" && bytes.size() >= 12 && bytes.substr(8, 4) == "WEBP")
    decoded = decode_webp(bytes, name, limits.max_pixels);
  else
    fail("{}: is not a JPEG, PNG or WebP picture", name);
  return apply_orientation(std::move(decoded.image), exif_orientation(decoded.exif));
}

RgbImage read_image(const std::string& path, const ImageLimits& limits) {
  return decode_image(read_text_file(path, limits.max_bytes), path, limits);
}

}  // namespace lapidary
