// Any bytes as a line of JSONL, in both forms of input: an Error, or a sample that renders or is refused.
#include "data/byte_tokenizer.h"

#include <cstdlib>
#include "data/conversation.h"
#include "data/gsm8k.h"
#include "kernels/check.h"

namespace {

/// One soft token for whatever is named.
struct SmallMedia : lapidary::MediaSource {
  lapidary::PatchedImage image(const std::string&) const override { return {1, 1, {1, 2, 3}}; }
  lapidary::FramedSound sound(const std::string&) const override {
    return {1, std::vector<std::int16_t>(640)};
  }
  lapidary::SampledVideo video(const std::string&) const override { return {{{1, 1, {1, 2, 3}}}, {0}}; }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace lapidary;
  static const ByteTokenizer kTokenizer;
  static const ConversationRenderer kRenderer(kTokenizer, {});
  for (const auto& parse : {parse_sample, parse_gsm8k}) {
    try {
      const Sample sample = parse({reinterpret_cast<const char*>(data), size}, "x:1");
      const Document document = kRenderer.render(sample, SmallMedia());
      if (document.tokens.size() != document.trained.size() || document.trained.front() != 0) std::abort();
    } catch (const Error&) {
    }
  }
  return 0;
}
