#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include "data/byte_tokenizer.h"
#include "data/utf8.h"
#include "kernels/error.h"

namespace lapidary {
namespace {

TEST(ByteTokenizer, EncodesEveryByteAsItsOwnToken) {
  const ByteTokenizer tokenizer;
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  const std::vector<std::int32_t> ids = tokenizer.encode(all);
  ASSERT_EQ(ids.size(), 256u);
  for (std::int32_t b = 0; b < 256; ++b) EXPECT_EQ(ids[static_cast<std::size_t>(b)], 4 + b);
  EXPECT_EQ(tokenizer.decode(ids), all);
}

TEST(ByteTokenizer, TextThatNamesASpecialTokenIsText) {
  const ByteTokenizer tokenizer;
  const std::vector<std::int32_t> ids = tokenizer.encode("<eos><|image|>");
  EXPECT_EQ(ids.size(), 14u);
  for (const std::int32_t id : ids) EXPECT_TRUE(id >= 4 && id < 260) << id;
}

TEST(ByteTokenizer, ResolvesTheDocumentedSpecialTokens) {
  const ByteTokenizer tokenizer;
  const char* names[] = {"<|turn>",  "<turn|>",  "<|channel>", "<channel|>", "<|image>", "<|image|>",
                         "<image|>", "<|audio>", "<|audio|>",  "<audio|>",   "<|video|>"};
  std::int32_t id = 260;
  for (const char* name : names) {
    EXPECT_EQ(tokenizer.special(name), id) << name;
    EXPECT_EQ(tokenizer.piece(id), name);
    ++id;
  }
  EXPECT_EQ(tokenizer.special("a"), std::nullopt);
  EXPECT_EQ(tokenizer.special(""), std::nullopt);
  for (std::int32_t any = 0; any < 288; ++any) EXPECT_FALSE(tokenizer.piece(any).empty());
  EXPECT_THROW(tokenizer.piece(288), Error);
  EXPECT_THROW(tokenizer.piece(-1), Error);
}

TEST(Tokenizer, LayoutTakesOverriddenNamesAndMarksWhatIsMissing) {
  const ByteTokenizer tokenizer;
  const TokenLayout layout = tokenizer.layout();
  EXPECT_EQ(layout.vocabulary, 288);
  EXPECT_EQ(layout.pad, 0);
  EXPECT_EQ(layout.eos, 1);
  EXPECT_EQ(layout.bos, 2);
  EXPECT_EQ(layout.begin_image, 264);
  EXPECT_EQ(layout.image, 265);
  EXPECT_EQ(layout.end_image, 266);
  EXPECT_EQ(layout.begin_audio, 267);
  EXPECT_EQ(layout.audio, 268);
  EXPECT_EQ(layout.end_audio, 269);
  EXPECT_EQ(layout.video, 270);

  TokenNames names;
  names.image = "<image_soft_token>";
  EXPECT_EQ(tokenizer.layout(names).image, -1);
  names.bos = "<s>";
  try {
    tokenizer.layout(names);
    FAIL() << "a vocabulary without bos was accepted";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "bytes: the tokenizer has no token \"<s>\" (markup key bos)");
  }
}

TEST(Utf8, RepairsWhatPythonReplaces) {
  // Expected: bytes.decode("utf-8", "replace") of CPython.
  const std::string r = "\xEF\xBF\xBD";
  const struct {
    std::string bytes, repaired;
    std::size_t count;
  } cases[] = {
      {"plain", "plain", 0},
      {"gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80", "gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80",
       0},
      {"a\xFFz", "a" + r + "z", 1},
      {"\xC3", r, 1},
      {"\xE2\x82", r, 1},
      {"\xE2\x82z", r + "z", 1},
      {"\xF0\x9F\x98", r, 1},
      {"\xC0\x80", r + r, 2},
      {"\xED\xA0\x80", r + r + r, 3},
      {"\xF4\x90\x80\x80", r + r + r + r, 4},
  };
  for (const auto& c : cases) {
    std::string text = c.bytes;
    EXPECT_EQ(repair_utf8(text), c.count) << c.repaired;
    EXPECT_EQ(text, c.repaired);
    EXPECT_EQ(repair_utf8(text), 0u);
  }
}

TEST(Utf8, TrimsUnicodeSpaceAtBothEndsOnly) {
  EXPECT_EQ(trim(" \t\r\n a b \n"), "a b");
  EXPECT_EQ(trim("\xC2\xA0\xE3\x80\x80\xE2\x80\xA8x\xE2\x80\x8A\xC2\x85"), "x");
  EXPECT_EQ(trim("\x1Cx\x1F"), "x");
  EXPECT_EQ(trim("\xE2\x80\x8Bx"), "\xE2\x80\x8Bx");  // U+200B, zero-width, is no white space
  EXPECT_EQ(trim(" \xE3\x80\x80 "), "");
  EXPECT_EQ(trim(""), "");
  EXPECT_EQ(trim("\xC3\xA9"), "\xC3\xA9");
}

}  // namespace
}  // namespace lapidary
