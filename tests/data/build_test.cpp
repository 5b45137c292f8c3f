// `data build` from files to shards: what is in them, that neither threads nor kills change it, and that
// nothing half-done is ever visible.
#include "data/build.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <numeric>
#include <random>
#include <thread>

#include "data/bpe_tokenizer.h"
#include "data/byte_tokenizer.h"
#include "data/check_document.h"
#include "data/shard_format.h"
#include "data/show.h"
#include "data/split_document.h"
#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/hdf5_file.h"
#include "tests/data/sample_documents.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

void write_file(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

/// A JSONL file of `count` samples with texts, conversations and pictures beside it, some of them broken if
/// asked for.
std::string some_samples(int count, bool with_broken = false) {
  std::mt19937 random(1);
  std::string lines;
  for (int i = 0; i < count; ++i) {
    const std::string words(3 + random() % 200, static_cast<char>('a' + random() % 26));
    switch (random() % (with_broken ? 5 : 4)) {
      case 0:
        lines += fmt::format(R"({{"text": "{} {}"}})", i, words);
        break;
      case 1:
        lines += fmt::format(R"({{"prompt": "{}", "completion": "{}"}})", i, words);
        break;
      case 2:
        lines += fmt::format(
            R"({{"messages": [{{"role": "user", "content": [{{"type": "image", "image": "p.png"}}, "{}"]}},)"
            R"({{"role": "assistant", "content": "{}"}}]}})",
            i, words);
        break;
      case 3:
        lines += fmt::format(R"({{"text": ["{}", {{"type": "audio", "audio": "sub/s.wav"}}]}})", i);
        break;
      default:
        lines += "broken " + words;
    }
    lines += '\n';
  }
  return lines;
}

class DataBuild : public ::testing::Test {
 protected:
  DataBuild() {
    fs::create_directories(folder_ / "in/sub");
    fs::copy_file(LAPIDARY_SOURCE_DIR "/tests/data/assets/rgb.png", folder_ / "in/p.png");
    std::string wav(
        "RIFF\x24\x0A\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3E\0\0\0\x7D\0\0\2\0\x10\0data\0\x0A\0\0", 44);
    write_file(folder_ / "in/sub/s.wav", wav + std::string(2560, '\x11'));  // 1280 samples, 2 frames
  }

  std::string input(const std::string& content, const std::string& name = "a.jsonl") {
    write_file(folder_ / "in" / name, content);
    return (folder_ / "in" / name).string();
  }

  BuildOptions options(const std::string& content, const std::string& output = "out") {
    BuildOptions o;
    o.inputs = {input(content)};
    o.output = (folder_ / output).string();
    o.media.image.any_budget = true;
    o.media.image.max_soft_tokens = 4;
    o.media.image.patch = 8;
    return o;
  }

  static BuildReport build(const BuildOptions& o,
                           const std::function<void(const BuildProgress&)>& progress = {}) {
    return build_dataset(o, ByteTokenizer(), progress);
  }

  /// Documents of a finished data set as text, trained tokens between [ and ].
  static std::vector<std::string> texts(const fs::path& data) {
    std::vector<std::string> result;
    for (const ShardRecord& shard : read_manifest(data).shards) {
      const Hdf5File file = Hdf5File::open(data / shard.file);
      const auto tokens = file.read<std::int32_t>("tokens");
      const auto trained = file.read<std::uint8_t>("trained");
      const auto offsets = file.read<std::int64_t>("document_offsets");
      for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
        std::string text;
        bool open = false;
        for (std::int64_t t = offsets[d]; t < offsets[d + 1]; ++t) {
          const auto at = static_cast<std::size_t>(t);
          if (open != (trained[at] == 1)) text += open ? "]" : "[";
          open = trained[at] == 1;
          text += ByteTokenizer().piece(tokens[at]);
        }
        result.push_back(text + (open ? "]" : ""));
      }
    }
    return result;
  }

  /// Names and contents of every file below.
  static std::string all_bytes(const fs::path& directory) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(directory))
      if (entry.is_regular_file()) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::string bytes;
    for (const fs::path& file : files)
      bytes += fs::relative(file, directory).string() + '\0' + read_text_file(file.string(), 1 << 30);
    return bytes;
  }

  TemporaryDirectory folder_;
};

TEST_F(DataBuild, WritesEverySampleInOrder) {
  BuildOptions o = options(R"({"text": "one"}

{"prompt": "two", "completion": "2"}
)");
  o.inputs.push_back(
      input(R"({"messages": [{"role": "user", "content": ["See ", {"type": "image", "image": "p.png"}]}, )"
            R"({"role": "assistant", "content": "Yes"}]})",
            "b.jsonl"));
  const BuildReport report = build(o);
  EXPECT_EQ(report.train.samples, 3);
  EXPECT_EQ(report.train.documents, 3);
  EXPECT_EQ(report.train.images, 1);
  EXPECT_EQ(report.train.image_tokens, 2);
  EXPECT_FALSE(report.resumed);
  const std::vector<std::string> expected = {
      "<bos>[one<eos>]", "<bos>two[2<eos>]",
      "<bos><|turn>user\nSee<|image><|image|><|image|><image|><turn|>\n"
      "<|turn>model\n<|channel>thought\n<channel|>[Yes<turn|>]\n"};
  EXPECT_EQ(texts(folder_ / "out/train"), expected);
  EXPECT_FALSE(fs::exists(folder_ / "out.building"));
  EXPECT_FALSE(fs::exists(folder_ / "out/validation"));
}

TEST_F(DataBuild, IsTheSameForAnyNumberOfThreads) {
  BuildOptions o = options(some_samples(400));
  o.validation = 0.25;
  o.shard_bytes = 60'000;
  std::string expected;
  for (const int threads : {1, 2, 7}) {
    fs::remove_all(folder_ / "out");
    o.threads = threads;
    const BuildReport report = build(o);
    EXPECT_EQ(report.train.samples + report.validation.samples, 400);
    EXPECT_NEAR(static_cast<double>(report.validation.samples), 100, 35);  // 4 standard deviations
    const std::string bytes = all_bytes(folder_ / "out");
    if (expected.empty()) expected = bytes;
    EXPECT_TRUE(bytes == expected) << threads;
  }
  EXPECT_GE(read_manifest(folder_ / "out/train").shards.size(), 3u);
}

TEST_F(DataBuild, EqualContentsFallOnOneSide) {
  std::string lines;
  for (int copy = 0; copy < 3; ++copy)
    for (int i = 0; i < 50; ++i) lines += fmt::format("{{\"text\": \"number {}\", \"id\": {}}}\n", i, copy);
  BuildOptions o = options(lines);
  o.validation = 0.3;
  const BuildReport report = build(o);
  EXPECT_EQ(report.train.samples % 3, 0);
  EXPECT_EQ(report.validation.samples % 3, 0);
  EXPECT_GT(report.validation.samples, 0);
  std::vector<std::string> held_out = texts(folder_ / "out/validation");
  for (const std::string& text : texts(folder_ / "out/train"))
    EXPECT_EQ(std::count(held_out.begin(), held_out.end(), text), 0) << text;
}

TEST_F(DataBuild, StopsAtTheFirstUnusableSampleWhateverTheThreads) {
  std::string lines = some_samples(60);
  lines += "{\"text\": 7}\n" + some_samples(40) + "not json\n";
  for (const int threads : {1, 4}) {
    BuildOptions o = options(lines);
    o.threads = threads;
    const std::string error = error_of([&] { build(o); });
    EXPECT_EQ(error.rfind((folder_ / "in/a.jsonl:61: ").string() + "text must be a string", 0), 0u) << error;
    EXPECT_FALSE(fs::exists(folder_ / "out"));
    fs::remove_all(folder_ / "out.building");
  }
}

TEST_F(DataBuild, CountsWhatItSkipsAndSaysWhy) {
  BuildOptions o = options(
      "{\"text\": \"good\"}\nnot json\n{\"text\": \"bad \xFF\xFE byte\"}\n"
      "{\"text\": [{\"type\": \"image\", \"image\": \"gone.png\"}]}\n"
      "{\"messages\": [{\"role\": \"user\", \"content\": \"?\"}]}\n"
      "{\"text\": \"0123456789012345678901234567890\"}\n");
  o.on_error = OnError::skip;
  o.max_tokens = 30;
  const BuildReport report = build(o);
  EXPECT_EQ(report.train.samples, 6);
  EXPECT_EQ(report.train.documents, 2);
  EXPECT_EQ(report.train.bad_lines, 1);
  EXPECT_EQ(report.train.bad_samples, 2);
  EXPECT_EQ(report.train.over_long, 1);
  EXPECT_EQ(report.train.utf8_repairs, 2);
  ASSERT_EQ(report.dropped_examples.size(), 4u);
  const std::string place = (folder_ / "in/a.jsonl").string();
  EXPECT_EQ(report.dropped_examples[0].rfind(place + ":2: not valid JSON", 0), 0u);
  EXPECT_NE(report.dropped_examples[1].find(":4: "), std::string::npos);
  EXPECT_NE(report.dropped_examples[1].find("in/gone.png"), std::string::npos) << report.dropped_examples[1];
  EXPECT_EQ(report.dropped_examples[2], place + ":5: no token of this sample is trained: it has no answer");
  EXPECT_EQ(report.dropped_examples[3], place + ":6: has 33 tokens, more than the 30 allowed");
  const nlohmann::json notes = read_manifest(folder_ / "out/train").notes;
  EXPECT_EQ(notes["counts"]["bad_samples"], 2);
  EXPECT_EQ(notes["dropped_examples"].size(), 4u);
  EXPECT_EQ(notes["settings"]["tokenizer"], "bytes");
  EXPECT_EQ(notes["settings"]["train_on"], "answers");
  EXPECT_EQ(notes["settings"]["empty_channel"], "trained_turns");
  // Beside the shards all of them are listed.
  std::ifstream log(folder_ / "out/train/dropped.jsonl");
  std::vector<std::pair<std::string, std::string>> listed;
  for (std::string line; std::getline(log, line);) {
    const nlohmann::json entry = nlohmann::json::parse(line);
    listed.emplace_back(entry["reason"], entry["message"]);
  }
  const std::vector<std::string> reasons = {"bad_lines", "bad_samples", "bad_samples", "over_long"};
  ASSERT_EQ(listed.size(), reasons.size());
  for (std::size_t i = 0; i < reasons.size(); ++i)
    EXPECT_EQ(listed[i], std::pair(reasons[i], report.dropped_examples[i]));
}

TEST_F(DataBuild, SplitsLongTexts) {
  BuildOptions o = options(R"({"text": "0123456789abcdefghijklmnopqrstuvwxyzABCD"})");
  o.max_tokens = 16;
  o.over_long = OverLong::split;
  const BuildReport report = build(o);
  EXPECT_EQ(report.train.split, 1);
  const std::vector<std::string> expected = {"<bos>[0123456789abcde]", "<bos>[fghijklmnopqrst]",
                                             "<bos>[uvwxyzABCD<eos>]"};
  EXPECT_EQ(texts(folder_ / "out/train"), expected);
}

TEST_F(DataBuild, TakesTokensAndSplitsThemToo) {
  // Bytes have ids from 4 on: "abcdefghijklmnopqr", of which the first three are not trained, and <eos>.
  std::string ids = "2", labels = "-100";
  for (int i = 0; i < 18; ++i) {
    ids += fmt::format(", {}", 4 + 'a' + i);
    labels += i < 3 ? ", -100" : fmt::format(", {}", 4 + 'a' + i);
  }
  BuildOptions o = options(fmt::format(
      "{{\"input_ids\": [{}, 1], \"labels\": [{}, 1]}}\n{{\"input_ids\": [2, 300]}}\n{{\"text\": \"a\"}}\n",
      ids, labels));
  o.max_tokens = 16;
  o.over_long = OverLong::split;
  o.on_error = OnError::skip;
  const BuildReport report = build(o);
  EXPECT_EQ(report.train.bad_samples, 1);
  EXPECT_EQ(texts(folder_ / "out/train"),
            (std::vector<std::string>{"<bos>abc[defghijklmno]", "<bos>[pqr<eos>]", "<bos>[a<eos>]"}));
}

TEST_F(DataBuild, SplitsConversationsBetweenTheirTurns) {
  const auto turn = [](const char* role, const std::string& text) {
    return fmt::format(R"({{"role": "{}", "content": "{}"}})", role, text);
  };
  BuildOptions o = options(fmt::format(R"({{"messages": [{}, {}, {}, {}, {}, {}]}})", turn("user", "one"),
                                       turn("assistant", "1"), turn("user", "two"), turn("assistant", "2"),
                                       turn("user", "three"), turn("assistant", std::string(40, '3'))));
  o.conversation.empty_channel = EmptyChannel::none;
  o.max_tokens = 50;
  o.over_long = OverLong::split;
  EXPECT_EQ(build(o).train.documents, 3);
  const std::vector<std::string> found = texts(folder_ / "out/train");
  EXPECT_EQ(found[0],
            "<bos><|turn>user\none<turn|>\n<|turn>model\n[1<turn|>]\n<|turn>user\ntwo<turn|>\n<|turn>model\n["
            "2<turn|>]\n");
  // A question and its answer that are too long together are cut where they must be.
  EXPECT_EQ(found[1].rfind("<bos><|turn>user\nthree<turn|>\n<|turn>model\n[333", 0), 0u) << found[1];
  EXPECT_EQ(found[2].rfind("<bos>[333", 0), 0u) << found[2];
}

TEST_F(DataBuild, ReadsGsm8k) {
  BuildOptions o = options(
      "{\"question\": \"1 + 1?\", \"answer\": \"1 + 1 = <<1+1=2>>2\\n#### 2\"}\n{\"text\": \"no\"}\n");
  o.form = InputForm::gsm8k;
  o.on_error = OnError::skip;
  o.conversation.empty_channel = EmptyChannel::none;
  EXPECT_EQ(build(o).train.bad_lines, 1);
  EXPECT_EQ(texts(folder_ / "out/train"),
            (std::vector<std::string>{
                "<bos><|turn>user\n1 + 1?<turn|>\n<|turn>model\n[1 + 1 = 2\n#### 2<turn|>]\n"}));
}

TEST_F(DataBuild, TheDataNamesItsTokenizerAndRefusesAnother) {
  const std::string small = LAPIDARY_SOURCE_DIR "/tests/data/assets/tokenizer.json";
  const std::string there = (folder_ / "here.json").string(), moved = (folder_ / "there.json").string();
  fs::copy_file(small, there);
  BuildOptions o = options("{\"text\": \"one and two\"}\n");
  build_dataset(o, *load_tokenizer(there));
  const fs::path data = folder_ / "out/train";
  EXPECT_EQ(tokenizer_of(data, "")->name(), there);
  EXPECT_NE(error_of([&] { tokenizer_of(data, "bytes"); }).find("was built with the tokenizer " + there),
            std::string::npos);
  fs::rename(there, moved);
  EXPECT_EQ(error_of([&] { tokenizer_of(data, ""); }),
            fmt::format(
                "{}: cannot open {}: No such file or directory, the tokenizer it was built with; --tokenizer "
                "names it where it is now",
                data.string(), there));
  EXPECT_EQ(tokenizer_of(data, moved)->name(), moved);
  std::ofstream(moved, std::ios::app) << "\n";  // the same ids, but who could know
  EXPECT_NE(error_of([&] { tokenizer_of(data, moved); }).find("is another"), std::string::npos);
  o = options("{\"text\": \"one and two\"}\n", "bytes");
  build(o);
  EXPECT_EQ(tokenizer_of(folder_ / "bytes/train", "")->name(), "bytes");
  EXPECT_NE(error_of([&] { read_manifest(folder_ / "bytes"); }).find("bytes/train is one"),
            std::string::npos);
}

TEST(SplitDocument, NeverCutsAMedium) {
  SampleMaker maker(4);
  for (int i = 0; i < 300; ++i) {
    const Document whole = maker.mixed(200);
    const std::int64_t most = 20 + i % 150;
    std::int64_t longest = 0;
    for (const DocumentImage& image : whole.images)
      longest = std::max<std::int64_t>(longest, image.columns * image.rows + 2);
    for (const DocumentSound& sound : whole.sounds)
      longest = std::max<std::int64_t>(longest, sound.frames + 2);
    const std::vector<Document> pieces = split_document(whole, most);
    if (longest >= most) {
      EXPECT_TRUE(pieces.empty() || static_cast<std::int64_t>(whole.tokens.size()) <= most);
      continue;
    }
    std::size_t images = 0, sounds = 0;
    for (const Document& piece : pieces) {
      EXPECT_NO_THROW(check_document(piece, sample_layout(), "piece"));
      EXPECT_LE(static_cast<std::int64_t>(piece.tokens.size()), most);
      EXPECT_EQ(piece.tokens.front(), whole.tokens.front());
      images += piece.images.size();
      sounds += piece.sounds.size();
    }
    EXPECT_LE(images, whole.images.size());
    EXPECT_LE(sounds, whole.sounds.size());
    EXPECT_EQ(std::accumulate(pieces.begin(), pieces.end(), std::int64_t{0},
                              [](std::int64_t sum, const Document& piece) {
                                return sum + std::count(piece.trained.begin(), piece.trained.end(), 1);
                              }),
              std::count(whole.trained.begin(), whole.trained.end(), 1));
  }
}

TEST_F(DataBuild, RefusesWhatItCannotDo) {
  BuildOptions o = options("{\"text\": \"a\"}\n");
  const auto error = [](const BuildOptions& bad) { return error_of([&] { build(bad); }); };
  BuildOptions bad = o;
  bad.inputs.clear();
  EXPECT_NE(error(bad).find("no input"), std::string::npos);
  bad = o;
  bad.inputs.push_back((folder_ / "none.jsonl").string());
  EXPECT_NE(error(bad).find("none.jsonl: cannot open"), std::string::npos);
  bad = o;
  bad.validation = 1;
  EXPECT_NE(error(bad).find("validation share is 1"), std::string::npos);
  bad = o;
  bad.media.image.any_budget = false;
  EXPECT_NE(error(bad).find("max_soft_tokens is 4"), std::string::npos);
  bad = o;
  bad.validation = 1e-9;
  EXPECT_NE(error(bad).find("holds none of the 1 samples"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder_ / "out.building"));
  bad = o;
  bad.inputs = {input("{\"text\": \"\"}\n", "empty.jsonl")};
  bad.on_error = OnError::skip;
  EXPECT_NE(error(bad).find("no document is left for training; 1 of 1 samples were dropped, the first: "),
            std::string::npos);
  fs::create_directories(folder_ / "out");
  EXPECT_NO_THROW(build(o));  // an empty directory may be there
  EXPECT_NE(error(o).find("exists already"), std::string::npos);
}

TEST_F(DataBuild, ContinuesAfterInterruptionsToTheSameBytes) {
  BuildOptions o = options(some_samples(300, true), "reference");
  o.on_error = OnError::skip;
  o.validation = 0.2;
  o.shard_bytes = 20'000;
  build(o);
  const std::string expected = all_bytes(folder_ / "reference");
  o.output = (folder_ / "out").string() + "/";
  std::mt19937 random(3);
  for (int round = 0; round < 4; ++round) {
    int interruptions = 0;
    for (bool done = false; !done; o.threads = 1 + o.threads % 3) {
      int calls = 0;  // 38 chunks in all; the last attempts are left alone
      const int most = interruptions < 4 ? static_cast<int>(random() % 38) : 1000;
      try {
        const BuildReport report = build(o, [&](const BuildProgress&) {
          if (calls++ == most) throw std::runtime_error("stop");
        });
        EXPECT_EQ(report.train.samples + report.validation.samples, 300);
        done = true;
      } catch (const std::runtime_error& e) {
        ASSERT_STREQ(e.what(), "stop");
        EXPECT_FALSE(fs::exists(folder_ / "out"));
        ++interruptions;
      }
    }
    EXPECT_EQ(interruptions, 4);
    EXPECT_TRUE(all_bytes(folder_ / "out") == expected) << round;
    fs::remove_all(folder_ / "out");
  }
}

TEST_F(DataBuild, RefusesToContinueWithOtherSettingsOrInputs) {
  BuildOptions o = options(some_samples(100));
  o.shard_bytes = 5'000;
  const auto stop = [](const BuildProgress&) { throw std::runtime_error("stop"); };
  EXPECT_THROW(build(o, stop), std::runtime_error);
  BuildOptions other = o;
  other.conversation.train_on = TrainOn::all;
  EXPECT_NE(error_of([&] { build(other); }).find("an interrupted build with other settings"),
            std::string::npos);
  other = o;
  other.inputs = {input(some_samples(100), "b.jsonl")};
  EXPECT_NE(error_of([&] { build(other); }).find("an interrupted build with other inputs"),
            std::string::npos);
  EXPECT_NO_THROW(build(o));
}

TEST_F(DataBuild, SurvivesBeingKilledAtAnyMoment) {
  using Clock = std::chrono::steady_clock;
  BuildOptions o = options(some_samples(200, true), "reference");
  o.on_error = OnError::skip;
  o.validation = 0.2;
  o.shard_bytes = 40'000;
  o.threads = 2;
  const Clock::time_point start = Clock::now();
  build(o);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const std::string expected = all_bytes(folder_ / "reference");
  o.output = (folder_ / "out").string();
  std::mt19937 random(9);
  int kills = 0;
  for (int round = 0; round < 5; ++round) {
    for (bool done = false; !done;) {
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        try {
          build(o);
        } catch (const std::exception& e) {
          fmt::print(stderr, "{}\n", e.what());
          _exit(1);
        }
        _exit(0);
      }
      std::this_thread::sleep_for(std::chrono::duration<double>(seconds * (random() % 1000) / 900));
      kill(child, SIGKILL);
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      kills += WIFSIGNALED(status);
      ASSERT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
      done = fs::exists(folder_ / "out");
      ASSERT_FALSE(done && fs::exists(folder_ / "out.building"));
    }
    ASSERT_TRUE(all_bytes(folder_ / "out") == expected) << round;
    fs::remove_all(folder_ / "out");
  }
  EXPECT_GT(kills, 0);
}

}  // namespace
}  // namespace lapidary
