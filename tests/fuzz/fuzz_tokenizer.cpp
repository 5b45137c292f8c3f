// Any bytes as a tokenizer.json (an Error, or a tokenizer whose ids lie in its vocabulary), and as a text for
// the small tokenizer of the tests.
#include "data/bpe_tokenizer.h"

#include <cstdlib>
#include "kernels/check.h"
#include "kernels/file.h"

namespace {

void encode(const lapidary::Tokenizer& tokenizer, std::string_view text) {
  for (const std::int32_t id : tokenizer.encode(text))
    if (id < 0 || id >= tokenizer.vocabulary()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace lapidary;
  static const auto kSmall = load_tokenizer(LAPIDARY_SOURCE_DIR "/tests/data/assets/tokenizer.json");
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  encode(*kSmall, input);
  try {
    const BpeTokenizer tokenizer(input, "x");
    encode(tokenizer, "Hello <bos> w\xC3\xB6rld\n\n");
  } catch (const Error&) {
  }
  return 0;
}
