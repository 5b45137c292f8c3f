// WebP through libwebp: still pictures, alpha ignored.
#include <webp/decode.h>

#include "data/image_codecs.h"
#include "kernels/check.h"

namespace lapidary {
namespace {

const char* status_name(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OK:
      return "no error";
    case VP8_STATUS_OUT_OF_MEMORY:
      return "out of memory";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return "a feature that is not supported";
    case VP8_STATUS_NOT_ENOUGH_DATA:
      return "the file ends early";
    default:
      return "the data is damaged";
  }
}

/// The EXIF chunk of the RIFF container: four letters, a little-endian size, the data, padded to an even
/// length.
std::string find_exif(std::string_view bytes) {
  for (std::size_t at = 12; at + 8 <= bytes.size();) {
    std::size_t size = 0;
    for (std::size_t i = 0; i < 4; ++i)
      size |= std::size_t{static_cast<unsigned char>(bytes[at + 4 + i])} << (8 * i);
    if (size > bytes.size() - at - 8) return {};
    std::string_view data = bytes.substr(at + 8, size);
    if (bytes.substr(at, 4) == "EXIF") {
      if (data.substr(0, 6) == std::string_view("Exif\0\0", 6))
        data.remove_prefix(6);  // some writers copy JPEG's
      return std::string(data);
    }
    at += 8 + size + size % 2;
  }
  return {};
}

}  // namespace

DecodedImage decode_webp(std::string_view bytes, const std::string& name, std::int64_t max_pixels) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
  WebPDecoderConfig config;
  require(WebPInitDecoderConfig(&config) != 0, "{}: WebP: libwebp has another version than its header", name);
  VP8StatusCode status = WebPGetFeatures(data, bytes.size(), &config.input);
  require(status == VP8_STATUS_OK, "{}: WebP: {}", name, status_name(status));
  require(config.input.has_animation == 0, "{}: WebP: animations are not supported", name);
  check_pixels(config.input.width, config.input.height, max_pixels, name);

  DecodedImage decoded;
  decoded.exif = find_exif(bytes);
  decoded.image.width = config.input.width;
  decoded.image.height = config.input.height;
  const int stride = config.input.width * 3;
  decoded.image.pixels.resize(static_cast<std::size_t>(stride) *
                              static_cast<std::size_t>(config.input.height));
  config.output.colorspace = MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = decoded.image.pixels.data();
  config.output.u.RGBA.stride = stride;
  config.output.u.RGBA.size = decoded.image.pixels.size();
  status = WebPDecode(data, bytes.size(), &config);
  WebPFreeDecBuffer(&config.output);
  require(status == VP8_STATUS_OK, "{}: WebP: {}", name, status_name(status));
  return decoded;
}

}  // namespace lapidary
