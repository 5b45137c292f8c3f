// What was written comes back, in any order and in pieces; what is not as it was written is refused by name
// and never crashes.
#include "data/shard_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "data/checked_file.h"
#include "kernels/file.h"
#include "tests/data/forged_shards.h"
#include "tests/data/sample_documents.h"

namespace lapidary {
namespace {

void expect_equal(const Document& found, const Document& expected) {
  EXPECT_EQ(found.tokens, expected.tokens);
  EXPECT_EQ(found.trained, expected.trained);
  ASSERT_EQ(found.images.size(), expected.images.size());
  for (std::size_t i = 0; i < found.images.size(); ++i) {
    EXPECT_EQ(found.images[i].first_token, expected.images[i].first_token);
    EXPECT_EQ(found.images[i].columns, expected.images[i].columns);
    EXPECT_EQ(found.images[i].rows, expected.images[i].rows);
    EXPECT_EQ(found.images[i].patches, expected.images[i].patches);
  }
  ASSERT_EQ(found.sounds.size(), expected.sounds.size());
  for (std::size_t i = 0; i < found.sounds.size(); ++i) {
    EXPECT_EQ(found.sounds[i].first_token, expected.sounds[i].first_token);
    EXPECT_EQ(found.sounds[i].frames, expected.sounds[i].frames);
    EXPECT_EQ(found.sounds[i].samples, expected.sounds[i].samples);
  }
}

std::vector<Document> some_documents(int count, int most, unsigned seed) {
  SampleMaker maker(seed);
  std::vector<Document> documents;
  for (int d = 0; d < count; ++d) documents.push_back(maker.mixed(most));
  return documents;
}

TEST(DataSet, documents_come_back_in_any_order) {
  for (const std::int64_t shard_bytes : {2'000, 100'000, 1 << 28}) {
    const TemporaryDirectory temporary;
    const std::vector<Document> documents = some_documents(300, 30, 1);
    write_data_set(temporary / "data", documents, shard_bytes);
    DataSet set(temporary / "data");
    ASSERT_EQ(set.documents(), 300);
    set.check_sizes();
    std::mt19937 random(2);
    for (int trial = 0; trial < 20; ++trial) {
      std::vector<Piece> pieces;
      for (int i = 0; i < 50; ++i) {
        const auto d = static_cast<std::int64_t>(random() % documents.size());
        EXPECT_EQ(set.document_tokens()[d], static_cast<std::int32_t>(documents[d].tokens.size()));
        EXPECT_EQ(set.document_feature_kib()[d] > 0,
                  !documents[d].images.empty() || !documents[d].sounds.empty());
        pieces.push_back({d, 0, set.document_tokens()[d]});
      }
      const std::vector<Document> read = set.read(pieces, true);
      for (std::size_t i = 0; i < read.size(); ++i) {
        expect_equal(read[i], documents[pieces[i].document]);
        EXPECT_EQ(read[i].source, documents[pieces[i].document].source);
      }
    }
  }
}

TEST(DataSet, features_larger_than_a_segment_come_back) {
  const TemporaryDirectory temporary;
  TokenLayout layout = sample_layout();
  layout.patch_width = 6912;
  layout.frame_width = 640;
  SampleMaker maker(3, layout);
  std::vector<Document> documents;
  for (int d = 0; d < 12; ++d) {
    documents.push_back(maker.text(100));
    maker.add_image(documents.back(), maker.number(1, 40),
                    maker.number(1, 28));  // up to 7.7 MB: several reads
    maker.add_sound(documents.back(), maker.number(1, 750));
  }
  write_data_set(temporary / "data", documents, 20 << 20, layout);
  DataSet set(temporary / "data");
  EXPECT_GT(set.manifest().shards.size(), 1u);
  std::vector<Piece> pieces;
  for (const std::int64_t d : {7, 0, 11, 3, 2, 10}) pieces.push_back({d, 0, set.document_tokens()[d]});
  const std::vector<Document> read = set.read(pieces);
  for (std::size_t i = 0; i < read.size(); ++i) expect_equal(read[i], documents[pieces[i].document]);
}

TEST(DataSet, a_piece_of_a_text_starts_untrained) {
  const TemporaryDirectory temporary;
  SampleMaker maker(4);
  std::vector<Document> documents = {maker.text(1000), maker.text(5)};
  maker.add_image(documents[1], 2, 2);
  for (std::size_t t = 1; t < 1000; ++t) documents[0].trained[t] = 1;
  write_data_set(temporary / "data", documents);
  DataSet set(temporary / "data");
  const std::vector<Piece> pieces = {{0, 700, 1000}};
  const Document piece = set.read(pieces).front();
  EXPECT_EQ(piece.tokens,
            std::vector<std::int32_t>(documents[0].tokens.begin() + 700, documents[0].tokens.end()));
  EXPECT_EQ(piece.trained[0], 0);
  EXPECT_EQ(std::count(piece.trained.begin(), piece.trained.end(), 1), 299);
  const std::vector<Piece> cut = {{1, 2, 8}};
  EXPECT_NE(error_of([&] { set.read(cut); }).find("cannot be cut"), std::string::npos);
  const std::vector<Piece> outside = {{2, 0, 1}};
  EXPECT_NE(error_of([&] { set.read(outside); }).find("asked for"), std::string::npos);
}

TEST(DataSet, an_empty_data_set_can_be_opened) {
  const TemporaryDirectory temporary;
  write_data_set(temporary / "data", {});
  EXPECT_EQ(DataSet(temporary / "data").documents(), 0);
}

TEST(DataSet, something_else_is_refused) {
  const TemporaryDirectory temporary;
  EXPECT_NE(error_of([&] { DataSet(temporary / "absent"); }).find("no such folder"), std::string::npos);
  std::filesystem::create_directory(temporary / "empty");
  EXPECT_NE(error_of([&] { DataSet(temporary / "empty"); }).find("holds no manifest.json"),
            std::string::npos);
}

/// Reads everything that is in the data set.
void read_all(const std::filesystem::path& directory) {
  DataSet set(directory);
  set.check_sizes();
  std::vector<Piece> pieces;
  for (std::int64_t d = 0; d < set.documents(); ++d) pieces.push_back({d, 0, set.document_tokens()[d]});
  set.read(pieces, true);
}

TEST(DataSet, truncation_is_refused_wherever_it_happens) {
  const TemporaryDirectory temporary;
  write_data_set(temporary / "data", some_documents(40, 30, 5));
  const Manifest manifest = read_manifest(temporary / "data");
  const ShardRecord& shard = manifest.shards.front();
  std::vector<std::pair<std::string, std::int64_t>> cuts = {{shard.file, 0},
                                                            {shard.file, shard.bytes - 1},
                                                            {kIndexName, 0},
                                                            {kIndexName, manifest.index_bytes - 1},
                                                            {kIndexName, 512}};
  for (const auto& [array, place] : shard.places) {
    cuts.emplace_back(shard.file, place);
    cuts.emplace_back(shard.file, place + 1);
  }
  EXPECT_EQ(cuts.size(), 5 + 2 * 10u);  // every array of the format is there
  for (const auto& [file, size] : cuts) {
    const std::filesystem::path path = temporary / "data" / file;
    std::filesystem::copy(path, temporary / "kept");
    std::filesystem::resize_file(path, static_cast<std::uintmax_t>(size));
    const std::string message = error_of([&] { read_all(temporary / "data"); });
    EXPECT_NE(message.find(file), std::string::npos) << message;
    EXPECT_NE(message.find(std::to_string(size) + " bytes, expected"), std::string::npos) << message;
    std::filesystem::rename(temporary / "kept", path);
  }
  std::filesystem::remove(temporary / "data" / shard.file);
  EXPECT_NE(error_of([&] { read_all(temporary / "data"); }).find(shard.file), std::string::npos);
}

TEST(DataSet, flipped_bytes_never_reach_a_document) {
  const TemporaryDirectory temporary;
  const std::vector<Document> documents = some_documents(20, 20, 6);
  write_data_set(temporary / "data", documents, 6'000);
  const Manifest manifest = read_manifest(temporary / "data");
  std::mt19937 random(7);
  for (int trial = 0; trial < 1000; ++trial) {
    const std::size_t which = random() % (manifest.shards.size() + 1);
    const std::string file = which == manifest.shards.size() ? kIndexName : manifest.shards[which].file;
    const std::string path = (temporary / "data" / file).string();
    const std::string good = read_text_file(path, 1 << 26);
    std::string bad = good;
    for (unsigned flips = 1 + random() % 8; flips > 0; --flips) {
      char& byte = bad[random() % bad.size()];
      byte = static_cast<char>(byte ^ (1 + random() % 255));
    }
    if (bad == good) continue;
    File::open_to_write(path).write_at(bad.data(), bad.size(), 0);  // in place: a new file would be flushed
    const std::string message = error_of([&] { read_all(temporary / "data"); });
    EXPECT_NE(message.find(file), std::string::npos) << "trial " << trial << ": " << message;
    EXPECT_NE(message.find("damaged"), std::string::npos) << message;
    File::open_to_write(path).write_at(good.data(), good.size(), 0);
  }
  read_all(temporary / "data");
}

TEST(DataSet, mutated_shards_with_right_hashes_are_refused_or_read) {
  const TemporaryDirectory temporary("/dev/shm");  // a manifest is synced whenever it is written
  write_data_set(temporary / "data", some_documents(12, 20, 6));
  const Manifest manifest = read_manifest(temporary / "data");
  const ShardRecord& record = manifest.shards.at(0);
  const std::string good = read_text_file((temporary / "data" / record.file).string(), 1 << 26);
  std::mt19937 random(9);
  int refused = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    std::string bad = good;
    auto array = record.places.begin();
    std::advance(array, random() % record.places.size());
    for (unsigned changes = 1 + random() % 3; changes > 0; --changes) {
      // Small numbers at the front of a table are as dangerous as large ones anywhere.
      const std::size_t at = static_cast<std::size_t>(array->second) + random() % 256;
      if (at < bad.size()) bad[at] = static_cast<char>(random() % 2 == 0 ? random() % 4 : random());
    }
    forge_shard(temporary / "data",
                [&](File& shard, const ShardRecord&) { shard.write_at(bad.data(), bad.size(), 0); });
    const std::string message = error_of([&] { read_all(temporary / "data"); });
    if (message.empty()) continue;
    EXPECT_NE(message.find(record.file), std::string::npos) << "trial " << trial << ": " << message;
    ++refused;
  }
  EXPECT_GT(refused, 200);
}

TEST(CheckedFile, any_requests_are_served_whatever_their_order_and_overlap) {
  const TemporaryDirectory temporary;
  std::mt19937 random(8);
  std::string bytes(3'000'000, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  const std::string path = (temporary / "file").string();
  std::ofstream(path, std::ios::binary) << bytes;
  const FileHashes hashes = hash_with_segments(path);
  EXPECT_EQ(hashes.segments.size(), 12u);
  const CheckedFile file(path, hashes.bytes, hashes.segments);
  std::vector<std::byte> scratch;
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<std::string> parts(1 + random() % 20);
    std::vector<ReadRequest> requests;
    std::vector<std::string> expected;
    for (std::string& part : parts) {
      const std::size_t size = random() % (trial % 2 ? 2'000'000 : 1000),
                        at = random() % (bytes.size() - size + 1);
      part.resize(size);
      expected.push_back(bytes.substr(at, size));
      requests.push_back({static_cast<std::int64_t>(at), static_cast<std::int64_t>(size), part.data()});
    }
    file.read(requests, scratch);
    EXPECT_EQ(parts, expected);
  }
  std::vector<ReadRequest> beyond = {{2'999'999, 2, bytes.data()}};
  EXPECT_THROW(file.read(beyond, scratch), Error);
}

TEST(CheckedFile, neighbours_are_read_once) {
  const TemporaryDirectory temporary;
  const std::string path = (temporary / "file").string();
  std::ofstream(path, std::ios::binary) << std::string(10 * kSegmentBytes, 'x');
  const FileHashes hashes = hash_with_segments(path);
  const CheckedFile file(path, hashes.bytes, hashes.segments);
  std::vector<char> to(10 * kSegmentBytes);
  std::vector<ReadRequest> requests;
  for (std::int64_t at = 100; at + 1000 < 10 * kSegmentBytes; at += 1000)
    requests.push_back({at, 900, &to[at]});
  std::vector<std::byte> scratch;
  EXPECT_EQ(file.read(requests, scratch), 10 * kSegmentBytes);
  std::vector<ReadRequest> apart = {{0, 1, to.data()}, {9 * kSegmentBytes, 1, to.data()}};
  EXPECT_EQ(file.read(apart, scratch), 2 * kSegmentBytes);
}

}  // namespace
}  // namespace lapidary
