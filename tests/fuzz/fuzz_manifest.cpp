// Any bytes as a manifest, with the checksum that fits them: an Error, or a manifest that is written as it
// was read.
#include <cstdlib>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "trainer/checkpoint_manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace lapidary;
  std::string text(reinterpret_cast<const char*>(data), size);
  text += ",\n\"xxh3_128\":\"";
  text += checksum_of(text) + "\"}\n";
  try {
    const CheckpointManifest manifest = parse_manifest(text, "x");
    const std::string again = to_text(manifest);
    if (to_text(parse_manifest(again, "x")) != again) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
