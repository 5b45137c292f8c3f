// The reader of tokenizer.json against ids that Hugging Face's `tokenizers` gives (tests/data/assets, written
// by tools/make_small_tokenizer.py and tools/compare_tokenizer.py), and against files that it must refuse.
#include "data/bpe_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "data/conversation.h"
#include "kernels/error.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

using Json = nlohmann::json;
const std::string kAssets = LAPIDARY_SOURCE_DIR "/tests/data/assets/";

const std::string& file_text() {
  static const std::string kText = read_text_file(kAssets + "tokenizer.json", 1 << 20);
  return kText;
}
const BpeTokenizer& small_tokenizer() {
  static const BpeTokenizer kTokenizer(file_text(), "small");
  return kTokenizer;
}
Json goldens() {
  return read_json_file(kAssets + "tokenizer_golden.json", 1 << 20);
}

TEST(BpeTokenizer, GivesTheIdsOfTheReferenceLibrary) {
  const Json cases = goldens();
  ASSERT_GT(cases.size(), 90u);
  std::size_t ids = 0;
  for (const Json& c : cases) {
    const auto expected = c["ids"].get<std::vector<std::int32_t>>();
    EXPECT_EQ(small_tokenizer().encode(c["text"].get<std::string>()), expected) << c["text"];
    ids += expected.size();
  }
  EXPECT_GT(ids, 5000u);
}

TEST(BpeTokenizer, GivesTheSameIdsInEveryThread) {
  const Json cases = goldens();
  std::vector<std::jthread> threads;
  std::atomic<int> different{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const BpeTokenizer own(file_text(),
                             "own");  // alternating tokenizers must not mix up what a thread remembers
      for (std::size_t i = 0; i < cases.size(); ++i) {
        const Json& c = cases[(i * 7 + static_cast<std::size_t>(t)) % cases.size()];
        const BpeTokenizer& tokenizer = i % 5 == 0 ? own : small_tokenizer();
        different +=
            tokenizer.encode(c["text"].get<std::string>()) != c["ids"].get<std::vector<std::int32_t>>();
      }
    });
  }
  threads.clear();
  EXPECT_EQ(different, 0);
}

TEST(BpeTokenizer, DecodesWhatItEncoded) {
  for (const Json& c : goldens()) {
    std::string text = c["text"].get<std::string>();
    const std::string decoded = small_tokenizer().decode(small_tokenizer().encode(text));
    for (std::size_t at; (at = text.find("\xE2\x96\x81")) != std::string::npos;) text.replace(at, 3, " ");
    EXPECT_EQ(decoded, text);
  }
}

TEST(BpeTokenizer, SpecialTokensComeByNameOnly) {
  const BpeTokenizer& tokenizer = small_tokenizer();
  for (const char* name : {"<bos>", "<|turn>", "<turn|>", "<|image|>", "<|audio|>"}) {
    const auto id = tokenizer.special(name);
    ASSERT_TRUE(id.has_value()) << name;
    EXPECT_EQ(tokenizer.piece(*id), name);
    const std::vector<std::int32_t> ids = tokenizer.encode(std::string("a") + name + "b");
    EXPECT_EQ(std::count(ids.begin(), ids.end(), *id), 0) << name;
    EXPECT_EQ(tokenizer.decode(ids), std::string("a") + name + "b");
  }
  EXPECT_TRUE(tokenizer.special("<table>").has_value());
  EXPECT_EQ(tokenizer.special("the"), std::nullopt);
  const TokenLayout layout = tokenizer.layout();
  EXPECT_EQ(layout.bos, 2);
  EXPECT_EQ(layout.vocabulary, tokenizer.vocabulary());
  EXPECT_GT(layout.video, 0);
}

TEST(BpeTokenizer, AFileCannotMakeMarkersOfUserText) {
  // Neither by calling a marker ordinary, nor by merges that build it.
  Json file = parse_json(file_text(), "small");
  for (Json& token : file["added_tokens"])
    if (token["content"] == "<turn|>") token["special"] = false;
  Json& vocab = file["model"]["vocab"];
  std::string built = "<";
  for (const char c : std::string("bos>")) {
    const std::string next(1, c);
    for (const std::string& piece : {built, next, built + next})
      if (!vocab.contains(piece)) vocab[piece] = vocab.size() + 100;
    file["model"]["merges"].insert(file["model"]["merges"].begin(), Json{built, next});
    built += next;
  }
  const BpeTokenizer tokenizer(file.dump(), "changed");
  for (const char* name : {"<turn|>", "<bos>"}) {
    const std::vector<std::int32_t> ids = tokenizer.encode(name);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), *tokenizer.special(name)), 0) << name;
    EXPECT_EQ(tokenizer.decode(ids), name);
  }
}

TEST(BpeTokenizer, ReplacesIllFormedUtf8) {
  EXPECT_EQ(small_tokenizer().encode("a\xFFz"), small_tokenizer().encode("a\xEF\xBF\xBDz"));
  EXPECT_EQ(small_tokenizer().encode("\xE4\xBD"), small_tokenizer().encode("\xEF\xBF\xBD"));
}

TEST(BpeTokenizer, RendersConversationsWithItsOwnIds) {
  struct NoMedia : MediaSource {
    PatchedImage image(const std::string&) const override { return {}; }
    FramedSound sound(const std::string&) const override { return {}; }
    SampledVideo video(const std::string&) const override { return {}; }
  };
  const BpeTokenizer& t = small_tokenizer();
  const Document d = ConversationRenderer(t, {}).render(
      parse_sample(R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yes"}]})",
                   "f:1"),
      NoMedia());
  // User and model turns are tokenized in the same pieces as the finished text between its markers.
  std::vector<std::int32_t> expected;
  std::size_t trained = 0;
  const auto marker = [&](const char* name) { expected.push_back(t.special(name).value()); };
  marker("<bos>");
  marker("<|turn>");
  t.encode("user\nHi", expected);
  marker("<turn|>");
  t.encode("\n", expected);
  marker("<|turn>");
  t.encode("model\n", expected);
  marker("<|channel>");
  t.encode("thought\n", expected);
  marker("<channel|>");
  t.encode("Yes", expected);
  trained = t.encode("Yes").size() + 1;
  marker("<turn|>");
  t.encode("\n", expected);
  EXPECT_EQ(d.tokens, expected);
  EXPECT_EQ(std::count(d.trained.begin(), d.trained.end(), 1), static_cast<std::ptrdiff_t>(trained));
}

std::string error_of(const std::function<void(Json&)>& change) {
  Json file = parse_json(file_text(), "small");
  change(file);
  try {
    const BpeTokenizer tokenizer(file.dump(), "t.json");
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(BpeTokenizer, RefusesByNameWhatItDoesNotCover) {
  const struct {
    const char* part;
    std::function<void(Json&)> change;
    const char* message;
  } cases[] = {
      {"model", [](Json& f) { f["model"]["type"] = "Unigram"; },
       "the model is \"Unigram\", expected \"BPE\""},
      {"fallback", [](Json& f) { f["model"]["byte_fallback"] = false; }, "the model has no byte_fallback"},
      {"dropout", [](Json& f) { f["model"]["dropout"] = 0.1; }, "the model has dropout"},
      {"suffix", [](Json& f) { f["model"]["end_of_word_suffix"] = "</w>"; },
       "the model has a end_of_word_suffix"},
      {"ignore", [](Json& f) { f["model"]["ignore_merges"] = true; }, "the model has ignore_merges"},
      {"normalizer",
       [](Json& f) {
         f["normalizer"] = {{"type", "NFKC"}};
       },
       "the normalizer \"NFKC\" is not known"},
      {"regex",
       [](Json& f) {
         f["normalizer"]["pattern"] = {{"Regex", " +"}};
       },
       "a pattern that is not a string"},
      {"split", [](Json& f) { f["pre_tokenizer"]["behavior"] = "Isolated"; },
       "behavior \"Isolated\" is not known"},
      {"pre",
       [](Json& f) {
         f["pre_tokenizer"] = {{"type", "ByteLevel"}};
       },
       "pre_tokenizer \"ByteLevel\" is not known"},
      {"post",
       [](Json& f) {
         f["post_processor"] = {{"type", "BertProcessing"}};
       },
       "\"BertProcessing\" is not known"},
      {"decoder",
       [](Json& f) {
         f["decoder"] = {{"type", "WordPiece"}};
       },
       "the decoder \"WordPiece\" is not known"},
      {"strip", [](Json& f) { f["added_tokens"][0]["lstrip"] = true; },
       "the added token \"<pad>\" has lstrip"},
      {"no model", [](Json& f) { f.erase("model"); }, "\"model\" is missing"},
      {"bytes", [](Json& f) { f["model"]["vocab"].erase("<0x41>"); }, "the token <0x41>, which is missing"},
      {"id", [](Json& f) { f["model"]["vocab"]["<0x41>"] = 1 << 30; }, "the id of \"<0x41>\" is 1073741824"},
      {"sign", [](Json& f) { f["model"]["vocab"]["<0x41>"] = -1; },
       "found -1, expected a non-negative integer"},
      {"same id", [](Json& f) { f["model"]["vocab"]["<0x41>"] = 300; }, "have the same id 300"},
      {"merge",
       [](Json& f) {
         f["model"]["merges"][5] = {"nowhere", "e"};
       },
       "merge 5 needs \"nowhere\""},
      {"merge form", [](Json& f) { f["model"]["merges"][5] = "a b c"; }, "merge 5 is not a pair of tokens"},
      {"added id", [](Json& f) { f["added_tokens"][0]["id"] = 9; },
       "\"<pad>\" has the id 9, but 0 in the vocabulary"},
      {"added new", [](Json& f) { f["added_tokens"][0]["content"] = "<new>"; },
       "has the id 0, which is \"<pad>\""},
  };
  for (const auto& c : cases) {
    const std::string error = error_of(c.change);
    EXPECT_EQ(error.rfind("t.json", 0), 0u) << c.part << ": " << error;
    EXPECT_NE(error.find(c.message), std::string::npos) << c.part << ": " << error;
  }
  EXPECT_EQ(error_of([](Json& f) { f["normalizer"] = nullptr; }), "no error");
  EXPECT_EQ(error_of([](Json& f) {
              for (Json& m : f["model"]["merges"])
                if (m[0] != "\n") m = m[0].get<std::string>() + " " + m[1].get<std::string>();
            }),
            "no error");
}

TEST(BpeTokenizer, SurvivesMutatedFiles) {
  std::mt19937 random(17);
  const std::string bytes = "{}[]\",:0123456789nul\\ \xE2\x96\x81\xFF";
  int refused = 0, accepted = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string text = file_text();
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int c = 0; c < changes; ++c) {
      std::size_t at = random() % text.size();
      if (i % 2 == 0) {  // another number: what parses is still to be checked
        at = text.find_first_of("0123456789", at);
        if (at != std::string::npos) text[at] = static_cast<char>('0' + random() % 10);
        continue;
      }
      switch (random() % 3) {
        case 0:
          text[at] = bytes[random() % bytes.size()];
          break;
        case 1:
          text.erase(at, 1 + random() % 6);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 30));
      }
    }
    try {
      const BpeTokenizer tokenizer(text, "t.json");
      for (const char* sample : {"Hello <bos> w\xC3\xB6rld\n\n\n", "\xE4\xBD\xA0\xE5\xA5\xBD    x\xFF"})
        for (const std::int32_t id : tokenizer.encode(sample))
          ASSERT_TRUE(id >= 0 && id < tokenizer.vocabulary());
      ++accepted;
    } catch (const Error& e) {
      ASSERT_EQ(std::string(e.what()).rfind("t.json", 0), 0u) << e.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 300);
  EXPECT_GT(accepted, 20);
}

TEST(LoadTokenizer, TakesBytesAFileOrAFolder) {
  EXPECT_EQ(load_tokenizer("bytes")->vocabulary(), 288);
  EXPECT_EQ(load_tokenizer(kAssets)->vocabulary(), small_tokenizer().vocabulary());
  const auto tokenizer = load_tokenizer(kAssets + "tokenizer.json");
  EXPECT_EQ(tokenizer->name(), kAssets + "tokenizer.json");
  EXPECT_EQ(tokenizer->fingerprint(), small_tokenizer().fingerprint());
  EXPECT_THROW(load_tokenizer("/nonexistent"), Error);
}

}  // namespace
}  // namespace lapidary
