// Any bytes as a file of this kind: an Error or a result within its limits, nothing else.
#include <cstdlib>

#include "data/image.h"
#include "kernels/error.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    lapidary::ImageLimits limits;
    limits.max_pixels = 1 << 20;
    const lapidary::RgbImage image = lapidary::decode_image(bytes, "x", limits);
    if (std::int64_t{image.width} * image.height * 3 != static_cast<std::int64_t>(image.pixels.size()))
      std::abort();
  } catch (const lapidary::Error&) {
  }
  return 0;
}
