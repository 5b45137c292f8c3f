#include "data/jsonl.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "data/gsm8k.h"
#include "data/sample.h"
#include "kernels/check.h"

namespace lapidary {
namespace {

class Jsonl : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    path_ = (std::filesystem::temp_directory_path() / ("lapidary_jsonl_" + name)).string();
  }
  void TearDown() override { std::filesystem::remove(path_); }
  void write(const std::string& content) const { std::ofstream(path_, std::ios::binary) << content; }
  std::string path_;
};

TEST_F(Jsonl, ReadsLinesWithNumbersAndSkipsBlankOnes) {
  write("\xEF\xBB\xBF{\"a\":1}\r\n\n  \t\nsecond\n\xFFlast");
  LineReader reader(path_);
  std::string line;
  ASSERT_TRUE(reader.next(line));
  EXPECT_EQ(line, "{\"a\":1}");
  EXPECT_EQ(reader.place(), path_ + ":1");
  ASSERT_TRUE(reader.next(line));
  EXPECT_EQ(line, "second");
  EXPECT_EQ(reader.line_number(), 4);
  ASSERT_TRUE(reader.next(line));
  EXPECT_EQ(line, "\xEF\xBF\xBDlast");
  EXPECT_EQ(reader.utf8_errors(), 1);
  EXPECT_FALSE(reader.next(line));
}

TEST_F(Jsonl, FindsEveryLineWhereverTheBufferEnds) {
  // Lines around the 1 MiB buffer: the end of a line may be its last byte, its first, or behind it.
  for (const int shift : {-2, -1, 0, 1, 2}) {
    const std::string first(static_cast<std::size_t>((1 << 20) + shift), 'x');
    write(first + "\nshort\n");
    LineReader reader(path_);
    std::string line;
    ASSERT_TRUE(reader.next(line));
    EXPECT_EQ(line.size(), first.size());
    ASSERT_TRUE(reader.next(line));
    EXPECT_EQ(line, "short");
    EXPECT_FALSE(reader.next(line));
    EXPECT_EQ(reader.bytes_read(), static_cast<std::int64_t>(first.size()) + 7);
  }
}

TEST_F(Jsonl, RefusesLongLinesMissingFilesAndDirectories) {
  write("ok\n" + std::string(101, 'x') + "\n");
  LineReader reader(path_, 100);
  std::string line;
  ASSERT_TRUE(reader.next(line));
  try {
    reader.next(line);
    FAIL() << "a line beyond the limit was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()), path_ + ":2: the line is longer than 100 bytes");
  }
  EXPECT_THROW(LineReader("/nonexistent/file.jsonl"), Error);
  EXPECT_THROW(LineReader(std::filesystem::temp_directory_path().string()), Error);
}

TEST(Sample, ReadsTheFourForms) {
  const Sample text = parse_sample(R"({"text": "hello", "id": 7})", "f:1");
  EXPECT_EQ(text.form, Sample::Form::text);
  EXPECT_EQ(text.answer.at(0).value, "hello");
  EXPECT_EQ(text.source, "f:1");

  const Sample pair = parse_sample(
      R"({"prompt": [{"type":"image","image":"a.png"}, "What is it?"], "completion": "A cat."})", "f:2");
  EXPECT_EQ(pair.form, Sample::Form::completion);
  ASSERT_EQ(pair.prompt.size(), 2u);
  EXPECT_EQ(pair.prompt[0].kind, Part::Kind::image);
  EXPECT_EQ(pair.prompt[0].value, "a.png");
  EXPECT_EQ(pair.prompt[1].value, "What is it?");

  const Sample chat = parse_sample(R"({"messages": [
      {"role": "developer", "content": "Be brief."},
      {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b.jpg"}},
                                   {"type": "audio", "path": "c.wav"}, {"type": "text", "text": "Well?"}]},
      {"role": "assistant", "content": null, "reasoning_content": "Hm."},
      {"role": "model", "content": "Yes.", "tool_calls": []}]})",
                                   "f:3");
  ASSERT_EQ(chat.messages.size(), 4u);
  EXPECT_EQ(chat.messages[0].role, Message::Role::system);
  EXPECT_EQ(chat.messages[1].parts[0].value, "b.jpg");
  EXPECT_EQ(chat.messages[1].parts[1].kind, Part::Kind::audio);
  EXPECT_EQ(chat.messages[1].parts[2].value, "Well?");
  EXPECT_EQ(chat.messages[2].role, Message::Role::model);
  EXPECT_EQ(chat.messages[2].reasoning, "Hm.");
  EXPECT_TRUE(chat.messages[2].parts.empty());
  EXPECT_EQ(chat.messages[3].parts[0].value, "Yes.");

  const Sample tokens = parse_sample(
      R"({"input_ids": [2, 7, 9], "labels": [-100, -100, 9], "attention_mask": [1, 1, 1]})", "f:4");
  EXPECT_EQ(tokens.form, Sample::Form::tokens);
  EXPECT_EQ(tokens.tokens, (std::vector<std::int32_t>{2, 7, 9}));
  EXPECT_EQ(tokens.trained, (std::vector<std::uint8_t>{0, 0, 1}));
  EXPECT_EQ(parse_sample(R"({"input_ids": [2, 7]})", "f:5").trained, (std::vector<std::uint8_t>{1, 1}));
}

TEST(Sample, NamesThePlaceAndTheMistake) {
  const struct {
    const char* line;
    const char* message;
  } cases[] = {
      {"[1]", "f:9: expected a JSON object"},
      {"{}", "found none"},
      {R"({"text": "a", "messages": []})", "found several"},
      {R"({"prompt": "a"})", "\"completion\" is missing"},
      {R"({"text": 3})", "text must be a string or a list of parts, found number"},
      {R"({"text": "a", "text": "b"})", "appears twice"},
      {R"({"text": "a"} {)", "not valid JSON"},
      {R"({"messages": {}})", "\"messages\" must be a list"},
      {R"({"messages": []})", "\"messages\" is empty"},
      {R"({"messages": ["a"]})", "message 1 must be an object"},
      {R"({"messages": [{"content": "a"}]})", "message 1 has no \"role\""},
      {R"({"messages": [{"role": "user"}]})", "message 1 has no \"content\""},
      {R"({"messages": [{"role": "tool", "content": "a"}]})",
       "the role \"tool\", expected system, user or assistant"},
      {R"({"messages": [{"role": "user", "content": "a", "reasoning": "b"}]})", "is not the assistant's"},
      {R"({"messages": [{"role": "model", "content": "a", "tool_calls": [1]}]})",
       "tool calls are not supported"},
      {R"({"text": [{"type": "smell", "smell": "x"}]})",
       "type \"smell\", expected text, image, audio or video"},
      {R"({"text": [{"type": "image"}]})", "type \"image\" but no key \"image\""},
      {R"({"text": [{"type": "image", "image": ""}]})", "names no file"},
      {R"({"input_ids": [2], "text": "a"})", "found several"},
      {R"({"input_ids": 7})", "\"input_ids\" must be a list of whole numbers, found number"},
      {R"({"input_ids": []})", "\"input_ids\" is empty"},
      {R"({"input_ids": [2, 1.5]})", "\"input_ids\" has 1.5 at token 1, expected a whole number"},
      {R"({"input_ids": [2, "7"]})", "\"input_ids\" has string at token 1, expected a whole number"},
      {R"({"input_ids": [2, -1]})", "\"input_ids\" has -1 at token 1, expected an id from 0 on"},
      {R"({"input_ids": [2, 4294967296]})", "\"input_ids\" has 4294967296 at token 1"},
      {R"({"input_ids": [2, 7], "labels": [-100]})", "\"input_ids\" has 2 numbers, \"labels\" 1"},
      {R"({"input_ids": [2, 7, 9], "labels": [-100, 9, -100]})",
       "\"labels\" has 9 at token 1, expected 7 as \"input_ids\", or -100"},
      {R"({"input_ids": [2, 0], "attention_mask": [1, 0]})",
       "\"attention_mask\" has 0 at token 1: padding has to be left out"},
      {R"({"text": [7]})", "a part of text must be a string or an object with \"type\""},
  };
  for (const auto& c : cases) {
    try {
      parse_sample(c.line, "f:9");
      ADD_FAILURE() << "accepted " << c.line;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).rfind("f:9", 0), 0u) << e.what();
      EXPECT_NE(std::string(e.what()).find(c.message), std::string::npos) << e.what();
    }
  }
}

TEST(Sample, SurvivesMutatedLines) {
  const std::string line =
      R"({"messages":[{"role":"system","content":"S"},{"role":"user","content":[{"type":"image","image":"a.png"},)"
      R"({"type":"text","text":"caf\u00e9"}]},{"role":"assistant","content":"A","reasoning":"R"}],"id":[1,2.5,null]})";
  ASSERT_NO_THROW(parse_sample(line, "f:1"));
  std::mt19937 random(7);
  const std::string bytes = "{}[]\",:\\0u \x80\xFFx";
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string mutated = line;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int c = 0; c < changes; ++c) {
      const std::size_t at = random() % mutated.size();
      switch (random() % 4) {
        case 0:
          mutated[at] = bytes[random() % bytes.size()];
          break;
        case 1:
          mutated.erase(at, 1 + random() % 8);
          break;
        case 2:
          mutated.insert(at, mutated.substr(random() % mutated.size(), random() % 20));
          break;
        default:
          mutated.resize(at + 1);
          break;
      }
      if (mutated.empty()) mutated.push_back(' ');
    }
    try {
      const Sample sample = parse_sample(mutated, "f:1");
      EXPECT_FALSE(sample.form == Sample::Form::conversation && sample.messages.empty());
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).rfind("f:1", 0), 0u) << e.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(Sample, RefusesNestingWithoutEnd) {
  EXPECT_THROW(parse_sample(std::string(1000000, '['), "f:1"), Error);
  std::string deep = R"({"text":"a","x":)";
  deep += std::string(100, '[') + std::string(100, ']') + "}";
  EXPECT_THROW(parse_sample(deep, "f:1"), Error);
}

TEST(Gsm8k, QuestionAndAnswerBecomeAConversationWithoutNotes) {
  const Sample sample = parse_gsm8k(
      R"({"question": "How many in 2 dozen?\n", "answer": "A dozen is 12.\n2*12 = <<2*12=24>>24 of them.\n#### 24"})",
      "f:1");
  ASSERT_EQ(sample.form, Sample::Form::conversation);
  ASSERT_EQ(sample.messages.size(), 2u);
  EXPECT_EQ(sample.messages[0].role, Message::Role::user);
  EXPECT_EQ(sample.messages[0].parts.at(0).value, "How many in 2 dozen?");
  EXPECT_EQ(sample.messages[1].role, Message::Role::model);
  EXPECT_EQ(sample.messages[1].parts.at(0).value, "A dozen is 12.\n2*12 = 24 of them.\n#### 24");
  for (const char* number : {"0", "-3", "1,000", "2.50"})
    EXPECT_NO_THROW(parse_gsm8k(fmt::format(R"({{"question": "q", "answer": "#### {}"}})", number), "f:1"));
}

TEST(Gsm8k, NamesThePlaceAndTheMistake) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"([1])", "f:1: expected a JSON object"},
      {R"({"question": "q"})", "f:1: expected a text under \"answer\""},
      {R"({"question": 1, "answer": "#### 1"})", "f:1: expected a text under \"question\""},
      {R"({"question": " ", "answer": "#### 1"})", "f:1: \"question\" is empty"},
      {R"({"question": "q", "answer": "1 <<1=1 1\n#### 1"})", "f:1: the note \"<<1=1 1"},
      {R"({"question": "q", "answer": "1"})", "f:1: the last line of \"answer\" is \"1\""},
      {R"({"question": "q", "answer": "#### one"})", "f:1: the last line"},
      {R"({"question": "q", "answer": "#### 1\nDone."})", "f:1: the last line of \"answer\" is \"Done.\""},
      {R"({"question": "q", "answer": "#### -."})", "f:1: the last line"}};
  for (const auto& [line, expected] : cases) {
    try {
      parse_gsm8k(line, "f:1");
      ADD_FAILURE() << line;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).rfind(expected, 0), 0u) << e.what();
    }
  }
}

}  // namespace
}  // namespace lapidary
