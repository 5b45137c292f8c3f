// Any bytes as a file of this kind: an Error or a result within its limits, nothing else.
#include <cstdlib>

#include "data/audio.h"
#include "kernels/error.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    lapidary::AudioOptions options;
    options.max_seconds = 2;
    const lapidary::FramedSound sound = lapidary::decode_sound(bytes, "x", options);
    if (sound.frames < 1 || sound.frames > 50) std::abort();
  } catch (const lapidary::Error&) {
  }
  return 0;
}
