// Any bytes as a file of this kind: an Error or a result within its limits, nothing else.
#include <cstdlib>

#include "data/video.h"
#include "kernels/error.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    lapidary::VideoOptions options{.frames = 0, .max_pixels = 1 << 16, .max_frames = 64};
    options.image = {.max_soft_tokens = 4, .patch = 8, .any_budget = true};
    const lapidary::SampledVideo video = lapidary::decode_video(bytes, "x", options);
    if (video.frames.empty() || video.frames.size() > 64 || video.seconds.size() != video.frames.size())
      std::abort();
  } catch (const lapidary::Error&) {
  }
  return 0;
}
