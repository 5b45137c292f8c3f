// Files, checksums and strict JSON: the ground under every format.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "kernels/checksum.h"
#include "kernels/error.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

class FileTest : public testing::Test {
 protected:
  FileTest() {
    std::string pattern = testing::TempDir() + "lapidary-file-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~FileTest() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string folder_;
};

template <class F>
Error error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e;
  }
  return Error("no error");
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_F(FileTest, WritesAndReadsAtOffsets) {
  File file = File::create(path("a"));
  file.write_at("world", 5, 6);
  file.write_at("hello ", 6, 0);
  file.sync();
  EXPECT_EQ(file.size(), 11);
  std::string text(11, '?');
  file.read_at(text.data(), 11, 0);
  EXPECT_EQ(text, "hello world");
  file.close();
  EXPECT_EQ(read_text_file(path("a"), 11), "hello world");
}

TEST_F(FileTest, MakesFoldersAndReplacesTexts) {
  create_directories(path("a/b/c"));
  create_directories(path("a/b/c/"));
  EXPECT_TRUE(std::filesystem::is_directory(path("a/b/c")));
  for (const char* text : {"old", "new"}) {
    std::ofstream(path("a/f.new")) << "left by a program that was killed";
    publish_text_file(path("a/f"), text);
    EXPECT_EQ(read_text_file(path("a/f"), 10), text);
    EXPECT_FALSE(std::filesystem::exists(path("a/f.new")));
  }
  const Error blocked = error_of([&] { create_directories(path("a/f/d")); });
  EXPECT_TRUE(contains(blocked.what(), "cannot create folder " + path("a/f") + ": Not a directory"))
      << blocked.what();
}

TEST_F(FileTest, NamesTheFileAndWhatIsWrong) {
  write_new_text_file(path("a"), "hello");
  const File file = File::open_to_read(path("a"));
  char buffer[8];
  const Error cut = error_of([&] { file.read_at(buffer, 8, 2); });
  EXPECT_TRUE(contains(cut.what(), path("a") + ": the file ends at byte 5, expected 8 bytes from byte 2"))
      << cut.what();
  const Error large = error_of([&] { read_text_file(path("a"), 4); });
  EXPECT_TRUE(contains(large.what(), "5 bytes, expected at most 4")) << large.what();
  const Error missing = error_of([&] { File::open_to_read(path("b")); });
  EXPECT_TRUE(contains(missing.what(), path("b") + ": No such file")) << missing.what();
  EXPECT_EQ(missing.code(), ExitCode::bad_input);
  const Error twice = error_of([&] { write_new_text_file(path("a"), "x"); });
  EXPECT_TRUE(contains(twice.what(), "File exists")) << twice.what();
}

TEST_F(FileTest, AFullDiskIsAnIoError) {
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Error full = error_of([&] { write_new_text_file(path("a"), std::string(2000, 'x')); });
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_TRUE(contains(full.what(), "cannot write " + path("a"))) << full.what();
  EXPECT_EQ(full.code(), ExitCode::peer_lost);
}

TEST_F(FileTest, PublishReplacesWhole) {
  write_new_text_file(path("new"), "2");
  write_new_text_file(path("old"), "1");
  publish(path("new"), path("old"));
  EXPECT_EQ(read_text_file(path("old"), 10), "2");
  EXPECT_FALSE(std::filesystem::exists(path("new")));
  write_new_text_file(path("newer"), "3");
  EXPECT_TRUE(contains(error_of([&] { publish_new(path("newer"), path("old")); }).what(), "File exists"));
  EXPECT_EQ(read_text_file(path("old"), 10), "2");
  publish_new(path("newer"), path("other"));
  EXPECT_EQ(read_text_file(path("other"), 10), "3");
  EXPECT_NE(error_of([&] { publish(path("absent"), path("old")); }).what(), std::string("no error"));
}

TEST_F(FileTest, ChecksumIsXxh3AndDoesNotDependOnThePieces) {
  // The first value is XXH3-128 of nothing, the second of "a", as xxhsum -H2 prints them.
  EXPECT_EQ(checksum_of(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(checksum_of("a"), "a96faf705af16834e6c632b61e964e1f");
  std::string text(9 << 20, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 2654435761u >> 13);
  Checksum pieces;
  for (std::size_t at = 0, n = 1; at < text.size(); at += n, n = n * 3 + 1)
    pieces.add(text.data() + at, std::min(n, text.size() - at));
  EXPECT_EQ(pieces.hex(), checksum_of(text));
  write_new_text_file(path("a"), text);
  EXPECT_EQ(checksum_of_file(path("a")), checksum_of(text));
}

TEST(Json, RefusesWhatOthersLetPass) {
  const auto message = [](const std::string& text) {
    return std::string(error_of([&] { parse_json(text, "f"); }).what());
  };
  EXPECT_EQ(message("{\"a\": [1, {\"a\": 2}], \"b\": {\"a\": 1}}"), "no error");
  EXPECT_EQ(message("{\"a\": 1, \"b\": {\"c\": 1, \"c\": 2}}"), "f: key \"c\" appears twice in one object");
  EXPECT_TRUE(contains(message("{\"a\": 1,}"), "f: not valid JSON"));
  EXPECT_TRUE(contains(message("{\"a\": 1} x"), "f: not valid JSON"));
  EXPECT_TRUE(contains(message("{\"a\": \"\xff\"}"), "f: not valid JSON"));
  EXPECT_TRUE(contains(message("{\"a\": 1e999}"), "f: not valid JSON"));
  EXPECT_TRUE(contains(message("{\"a\": NaN}"), "f: not valid JSON"));
  EXPECT_EQ(message(std::string(64, '[') + std::string(64, ']')), "no error");
  EXPECT_EQ(message(std::string(65, '[') + std::string(65, ']')), "f: nested deeper than 64 levels");
  EXPECT_EQ(message(std::string(1000000, '[')), "f: nested deeper than 64 levels");
  EXPECT_LT(message("{\"a\": \"" + std::string(100000, 'x')).size(), 400u);
}

TEST(Json, MembersAreChecked) {
  const nlohmann::json object =
      parse_json(R"({"n": 3, "negative": -3, "half": 0.5, "huge": 9223372036854775808, "text": "t"})", "f");
  EXPECT_EQ(json_count(object, "n", "f"), 3);
  EXPECT_EQ(json_string(object, "text", "f"), "t");
  for (const char* key : {"negative", "half", "huge", "text", "absent"})
    EXPECT_NE(error_of([&] { json_count(object, key, "f"); }).what(), std::string("no error")) << key;
  EXPECT_TRUE(
      contains(error_of([&] { json_string(object, "n", "f"); }).what(), "\"n\" is number, expected string"));
}

TEST(Json, ShapesAreMultipliedWithCare) {
  EXPECT_EQ(checked_product(as_counts(parse_json("[]", "f"), "f"), "f"), 1);
  EXPECT_EQ(checked_product(as_counts(parse_json("[3, 0, 5]", "f"), "f"), "f"), 0);
  EXPECT_EQ(checked_product({std::int64_t{1} << 31, std::int64_t{1} << 31}, "f"), std::int64_t{1} << 62);
  EXPECT_EQ(std::string(error_of([] {
                          checked_product({1L << 32, 1L << 31}, "f");
                        }).what()),
            "f: the product of [4294967296, 2147483648] does not fit 64 bits");
  for (const char* bad : {"[1, -2]", "[1.0]", "[\"1\"]", "[[1]]", "3", "[null]"})
    EXPECT_NE(error_of([&] { as_counts(parse_json(bad, "f"), "f"); }).what(), std::string("no error")) << bad;
}

}  // namespace
}  // namespace lapidary
