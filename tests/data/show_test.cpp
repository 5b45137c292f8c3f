// What inspect, verify and show print, and that verify finds what the loader would trust.
#include "data/show.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <tuple>

#include "data/measure.h"
#include "data/shard_format.h"
#include "kernels/file.h"
#include "tests/data/forged_shards.h"
#include "tests/data/sample_documents.h"

namespace lapidary {
namespace {

/// Ids below 128 are characters, everything else is named by its number.
std::string decode(std::int32_t id) {
  return id < 128 ? std::string(1, static_cast<char>(id)) : "<" + std::to_string(id) + ">";
}

Document spelled(const std::string& text, std::size_t trained_from) {
  Document document;
  for (const char c : text) {
    document.tokens.push_back(static_cast<unsigned char>(c));
    document.trained.push_back(document.tokens.size() > trained_from ? 1 : 0);
  }
  return document;
}

TEST(ShowRow, marks_what_is_trained_and_where_media_stand) {
  const TemporaryDirectory temporary;
  SampleMaker maker(1);
  Document document = spelled("Look: ", 6);
  maker.add_image(document, 4, 3);
  for (const char c : std::string("hear ")) {
    document.tokens.push_back(c);
    document.trained.push_back(0);
  }
  maker.add_sound(document, 2);
  const Document answer = spelled("a\tcat\x1b\n", 0);
  for (const std::int32_t id : answer.tokens) {
    document.tokens.push_back(id);
    document.trained.push_back(1);
  }
  document.source = "chat.jsonl:7";
  write_data_set(temporary / "data", {document, spelled("0123456789", 4)});
  LoaderOptions options;
  options.sources = {{(temporary / "data").string()}};
  options.sequence_length = 64;
  options.shuffle = false;
  std::ostringstream out;
  show_row(options, 0, decode, out);
  EXPECT_EQ(out.str(),
            "row 0 (epoch 0): 46 tokens in 2 documents, 13 trained, 12 of images, 2 of sounds, 18 padding\n"
            "\n"
            "document 0 (chat.jsonl:7) at 0..35\n"
            "  Look: <1000>[image 4x3 at 7..18]<1002>hear <1003>[sound 2 frames at 26..27]<1005>"
            "«a\\tcat\\x1b\\n\n  »\n"
            "\n"
            "document 1 () at 36..45\n"
            "  0123«456789»\n");
  options.one_pass = true;
  EXPECT_NE(error_of([&] { show_row(options, 1, decode, out); }).find("the data ends after 1 rows"),
            std::string::npos);
  EXPECT_THROW(show_row(options, -1, decode, out), Error);
}

TEST(ShowRow, names_the_piece_of_a_long_text) {
  const TemporaryDirectory temporary;
  write_data_set(temporary / "data", {spelled("abcdefghijklmnopqrstuvwxyz", 1)});
  LoaderOptions options;
  options.sources = {{(temporary / "data").string()}};
  options.sequence_length = 10;
  std::ostringstream out;
  show_row(options, 1, decode, out);
  EXPECT_NE(out.str().find("tokens 10 to 19 of 26 at 0..9\n  k«lmnopqrst»\n"), std::string::npos)
      << out.str();
}

TEST(InspectDataSet, prints_counts_lengths_and_packing) {
  const TemporaryDirectory temporary;
  std::vector<Document> documents(1500, spelled(std::string(100, 'x'), 40));
  SampleMaker maker(2);
  maker.add_image(documents[3], 2, 5);
  maker.add_sound(documents[4], 9);
  {
    ShardWriter writer(temporary / "data", sample_layout());
    for (const Document& document : documents) writer.add(document);
    writer.finish({{"dropped", {{"too long", 3}}}});
  }
  std::ostringstream out;
  inspect_data_set(temporary / "data", 1000, out);
  const std::string text = out.str();
  for (const std::string expected :
       {"documents   1,500\n", "tokens      150,023, trained 90,000 (60.0 %)\n",
        "images      1, 10 soft tokens", "sounds      1, 9 soft tokens", "vocabulary  1,010\n",
        "             64 .. 127                   1,500  ####",
        "packing     151 rows of 1,000 tokens an epoch, 99.35 % filled\n", "\"too long\": 3"}) {
    EXPECT_NE(text.find(expected), std::string::npos) << expected << "\nin\n" << text;
  }
  std::ostringstream shorter;
  inspect_data_set(temporary / "data", 105, shorter);
  EXPECT_NE(shorter.str().find("2 documents with images or sounds are longer than a row"), std::string::npos);
  write_data_set(temporary / "empty", {});
  inspect_data_set(temporary / "empty", 100, out);
  const auto shard = temporary / "data/shard-00000.h5";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  EXPECT_NE(error_of([&] { inspect_data_set(temporary / "data", 1000, out); }).find("truncated or replaced"),
            std::string::npos);
}

TEST(MeasureLoader, reads_until_the_time_or_the_data_ends) {
  const TemporaryDirectory temporary;
  SampleMaker maker(5);
  std::vector<Document> documents;
  for (int d = 0; d < 50; ++d) documents.push_back(maker.mixed(10));
  write_data_set(temporary / "data", documents);
  LoaderOptions options;
  options.sources = {{(temporary / "data").string()}};
  options.sequence_length = 512;
  options.one_pass = true;
  const LoaderSpeed whole = measure_loader(options, 1000);
  EXPECT_EQ(whole.documents, 50);
  EXPECT_EQ(whole.stats.tokens, whole.documents_tokens);
  EXPECT_EQ(whole.tokens, whole.stats.tokens + whole.stats.padding);
  std::int64_t patches = 0, frames = 0;
  for (const Document& document : documents) {
    for (const DocumentImage& image : document.images) patches += image.columns * image.rows;
    for (const DocumentSound& sound : document.sounds) frames += sound.frames;
  }
  EXPECT_EQ(whole.patches, patches);
  EXPECT_EQ(whole.frames, frames);
  EXPECT_GT(whole.resident_bytes, 1 << 20);
  options.one_pass = false;
  const LoaderSpeed some = measure_loader(options, 0.05);
  EXPECT_GE(some.seconds, 0.05);
  EXPECT_GE(some.first_step_seconds, some.open_seconds);
}

TEST(VerifyDataSet, finds_nothing_in_good_data_and_names_damage) {
  const TemporaryDirectory temporary;
  SampleMaker maker(3);
  std::vector<Document> documents;
  for (int d = 0; d < 50; ++d) documents.push_back(maker.mixed(20));
  write_data_set(temporary / "data", documents, 10'000);
  std::ostringstream good;
  EXPECT_EQ(verify_data_set(temporary / "data", good), 0) << good.str();
  EXPECT_NE(good.str().find("shard-00001.h5: "), std::string::npos);
  EXPECT_EQ(good.str().find("BAD"), std::string::npos);

  std::fstream file(temporary / "data" / "shard-00001.h5", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(3000);
  file.put('\x55').flush();
  std::filesystem::resize_file(temporary / "data" / "shard-00000.h5", 2000);
  std::ostringstream bad;
  EXPECT_EQ(verify_data_set(temporary / "data", bad), 2);
  EXPECT_NE(bad.str().find("shard-00000.h5: 2000 bytes, expected"), std::string::npos) << bad.str();
  EXPECT_NE(bad.str().find("shard-00001.h5: checksum"), std::string::npos) << bad.str();
}

TEST(VerifyDataSet, finds_what_hashes_cannot) {
  const std::vector<std::tuple<std::string, std::int64_t, char, std::string>> faults = {
      {"tokens", 3, 1, "token 0 has id"},
      {"trained", 0, 1, "token 0 is marked as trained"},
      {"document_offsets", 8, 3, "tokens, the index says"},
      {"document_counts", 4, 99, "targets"},
      {"images", 8, 1, "image 0"},
      {"images", 16, 9, "soft tokens"},
      {"images", 0, 120, "not in order or out of range"},
      {"sounds", 7, -1, "not in order or out of range"},
      {"sounds", 16, 9, "soft tokens"},
      {"source_offsets", 8 * 20, 1, "source_bytes"}};
  for (const auto& fault : faults) {
    const auto& [array, byte, value, expected] = fault;
    const TemporaryDirectory temporary;
    SampleMaker maker(4);
    std::vector<Document> documents;
    for (int d = 0; d < 20; ++d) {
      documents.push_back(maker.text(30));
      maker.add_image(documents.back(), 2, 3);
      maker.add_sound(documents.back(), 4);
    }
    write_data_set(temporary / "data", documents);
    forge_shard(temporary / "data", [&fault](File& shard, const ShardRecord& record) {
      shard.write_at(&std::get<2>(fault), 1, record.places.at(std::get<0>(fault)) + std::get<1>(fault));
    });
    std::ostringstream out;
    EXPECT_GE(verify_data_set(temporary / "data", out), 1) << array << " byte " << byte;
    EXPECT_NE(out.str().find(expected), std::string::npos) << array << " byte " << byte << ": " << out.str();
  }
}

}  // namespace
}  // namespace lapidary
