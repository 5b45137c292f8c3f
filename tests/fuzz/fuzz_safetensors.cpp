// Any bytes as a safetensors header, or as an index: an Error, or tensors that fill their file exactly.
#include <cstdlib>

#include "kernels/check.h"
#include "model/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace lapidary;
  if (size < 2) return 0;
  const std::int64_t data_bytes = data[0] + 256 * data[1];
  try {
    SafetensorsHeader header =
        parse_safetensors_header({reinterpret_cast<const char*>(data) + 2, size - 2}, data_bytes, "x");
    std::int64_t sum = 0;
    for (const StoredTensor& tensor : header.tensors) sum += tensor.bytes();
    if (sum != data_bytes) std::abort();
    const std::string text = make_safetensors_header(header.tensors, header.metadata);
    parse_safetensors_header(std::string_view(text).substr(8), data_bytes, "x");  // its own output
  } catch (const Error&) {
  }
  return 0;
}
