// EXIF orientation: the one tag of the block that changes what a picture shows.
#include <cstdint>
#include <optional>

#include "data/image_codecs.h"

namespace lapidary {
namespace {

/// Reads unsigned integers of a TIFF block in its own byte order, never outside of it.
class TiffReader {
 public:
  explicit TiffReader(std::string_view bytes) : bytes_(bytes), little_(bytes.substr(0, 2) == "II") {}
  bool valid() const { return (little_ || bytes_.substr(0, 2) == "MM") && number(2, 2) == 42u; }
  std::optional<std::uint32_t> number(std::size_t at, std::size_t size) const {
    if (at > bytes_.size() || bytes_.size() - at < size) return std::nullopt;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < size; ++i)
      value = (value << 8) | static_cast<unsigned char>(bytes_[little_ ? at + size - 1 - i : at + i]);
    return value;
  }

 private:
  std::string_view bytes_;
  bool little_;
};

}  // namespace

int exif_orientation(std::string_view tiff) {
  constexpr std::uint32_t kOrientation = 0x0112, kShort = 3;
  const TiffReader reader(tiff);
  if (!reader.valid()) return 1;
  const auto directory = reader.number(4, 4);
  if (!directory) return 1;
  const auto entries = reader.number(*directory, 2);
  if (!entries) return 1;
  for (std::uint32_t i = 0; i < *entries; ++i) {
    const std::size_t entry = std::size_t{*directory} + 2 + std::size_t{12} * i;
    const auto tag = reader.number(entry, 2), type = reader.number(entry + 2, 2);
    const auto value = reader.number(entry + 8, 2);
    if (!tag || !type || !value) return 1;
    if (*tag == kOrientation)
      return *type == kShort && *value >= 1 && *value <= 8 ? static_cast<int>(*value) : 1;
  }
  return 1;
}

RgbImage apply_orientation(RgbImage image, int orientation) {
  if (orientation <= 1 || orientation > 8) return image;
  const std::int64_t w = image.width, h = image.height;
  const bool transposed = orientation >= 5;
  // Where the pixel (x, y) of the upright image is stored: along the rows (or the columns) and from which
  // side.
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  RgbImage upright{
      static_cast<std::int32_t>(transposed ? h : w), static_cast<std::int32_t>(transposed ? w : h), {}};
  upright.pixels.resize(image.pixels.size());
  std::uint8_t* out = upright.pixels.data();
  for (std::int64_t y = 0; y < upright.height; ++y) {
    for (std::int64_t x = 0; x < upright.width; ++x, out += 3) {
      const std::int64_t u = transposed ? y : x, v = transposed ? x : y;
      const std::int64_t column = from_right ? w - 1 - u : u, row = from_below ? h - 1 - v : v;
      const std::uint8_t* in = image.pixels.data() + (row * w + column) * 3;
      out[0] = in[0];
      out[1] = in[1];
      out[2] = in[2];
    }
  }
  return upright;
}

}  // namespace lapidary
