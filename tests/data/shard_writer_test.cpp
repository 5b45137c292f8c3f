// The writer alone: what it puts on disk, that nothing half-done is visible, and that an interrupted build
// goes on.
#include "data/shard_writer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "data/shard_format.h"
#include "kernels/checksum.h"
#include "kernels/file.h"
#include "kernels/hdf5_file.h"
#include "tests/data/sample_documents.h"

namespace lapidary {
namespace {

std::vector<Document> some_documents(int count, unsigned seed = 1) {
  SampleMaker maker(seed);
  std::vector<Document> documents;
  for (int d = 0; d < count; ++d) documents.push_back(maker.mixed(20));
  return documents;
}

std::set<std::string> files_in(const std::filesystem::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.insert(entry.path().filename());
  return names;
}

std::string all_bytes(const std::filesystem::path& directory) {
  std::string bytes;
  for (const std::string& name : files_in(directory)) {
    bytes += name + read_text_file((directory / name).string(), 1 << 30);
  }
  return bytes;
}

TEST(ShardWriter, arrays_stand_where_the_manifest_says) {
  const TemporaryDirectory temporary;
  const std::vector<Document> documents = some_documents(40);
  write_data_set(temporary / "data", documents, 8'000);
  const Manifest manifest = read_manifest(temporary / "data");
  EXPECT_GE(manifest.shards.size(), 3u);
  EXPECT_EQ(manifest.counts.documents, 40);

  std::int64_t document = 0;
  for (const ShardRecord& shard : manifest.shards) {
    const std::string path = (temporary / "data" / shard.file).string();
    EXPECT_EQ(checksum_of_file(path), shard.checksum);
    const Hdf5File file = Hdf5File::open(path);
    EXPECT_EQ(file.integer_attribute("vocabulary"), 1010);
    EXPECT_EQ(file.text_attribute("format"), kShardFormatName);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(shard.counts.tokens));
    File::open_to_read(path).read_at(tokens.data(), 4 * tokens.size(), shard.places.at("tokens"));
    EXPECT_EQ(file.read<std::int32_t>("tokens"), tokens);
    const std::vector<std::int64_t> offsets = file.read<std::int64_t>("document_offsets");
    for (std::size_t d = 0; d + 1 < offsets.size(); ++d, ++document) {
      EXPECT_EQ(std::vector<std::int32_t>(tokens.begin() + offsets[d], tokens.begin() + offsets[d + 1]),
                documents[document].tokens);
    }
  }
  EXPECT_EQ(document, 40);
}

TEST(ShardWriter, leaves_only_shards_index_and_manifest) {
  const TemporaryDirectory temporary;
  write_data_set(temporary / "a/b/data", some_documents(10), 4'000);
  for (const std::string& name : files_in(temporary / "a/b/data")) {
    EXPECT_TRUE(name == "manifest.json" || name.ends_with(".h5")) << name;
  }
  EXPECT_NE(error_of([&] { ShardWriter(temporary / "a/b/data", sample_layout()); }).find("already holds"),
            std::string::npos);
}

TEST(ShardWriter, an_interrupted_build_continues_to_the_same_bytes) {
  const TemporaryDirectory temporary;
  const std::vector<Document> documents = some_documents(60);
  write_data_set(temporary / "whole", documents, 5'000);

  // Stopped again and again: each writer adds some documents beyond its last commit and is then destroyed.
  bool finished = false;
  for (int attempt = 0; attempt < 100 && !finished; ++attempt) {
    ShardWriter writer(temporary / "parts", sample_layout(), 5'000);
    std::size_t at = writer.progress().is_null() ? 0 : writer.progress().at("documents").get<std::size_t>();
    EXPECT_EQ(writer.documents(), static_cast<std::int64_t>(at));
    EXPECT_FALSE(std::filesystem::exists(temporary / "parts" / kManifestName));
    for (int added = 0; added < 17 && at < documents.size(); ++added) {
      writer.add(documents[at++]);
      if (writer.full()) writer.commit({{"documents", at}});
    }
    std::ofstream(temporary / "parts" / "shard-00099.h5.tmp") << "left over";
    if (at == documents.size()) {
      writer.finish(nlohmann::json::object());
      std::filesystem::remove(temporary / "parts" / "shard-00099.h5.tmp");
      finished = true;
    }
  }
  ASSERT_TRUE(finished);
  EXPECT_EQ(all_bytes(temporary / "parts"), all_bytes(temporary / "whole"));
}

TEST(ShardWriter, a_kill_while_finishing_repeats_the_last_shard) {
  const TemporaryDirectory temporary;
  const std::vector<Document> documents = some_documents(30);
  write_data_set(temporary / "whole", documents, 5'000);
  std::filesystem::copy(temporary / "whole", temporary / "killed");
  std::filesystem::remove(temporary / "killed" / kManifestName);
  // As finish() leaves it just before the manifest: every shard with its record, the last without progress.
  const Manifest manifest = read_manifest(temporary / "whole");
  std::int64_t before = 0;
  for (std::size_t s = 0; s < manifest.shards.size(); ++s) {
    before += manifest.shards[s].counts.documents;
    const bool last = s + 1 == manifest.shards.size();
    const nlohmann::json record = {
        {"shard", to_json(manifest.shards[s])},
        {"layout", to_json(manifest.layout)},
        {"progress", last ? nlohmann::json() : nlohmann::json{{"documents", before}}}};
    auto path = temporary / "killed" / shard_name(static_cast<std::int64_t>(s));
    std::ofstream(path.replace_extension(".json")) << record.dump();
  }
  {
    ShardWriter writer(temporary / "killed", sample_layout(), 5'000);
    auto at = writer.progress().at("documents").get<std::size_t>();
    EXPECT_EQ(static_cast<std::int64_t>(at), before - manifest.shards.back().counts.documents);
    while (at < documents.size()) writer.add(documents[at++]);
    writer.finish(nlohmann::json::object());
  }
  EXPECT_EQ(all_bytes(temporary / "killed"), all_bytes(temporary / "whole"));
}

TEST(ShardWriter, refuses_to_continue_on_damaged_or_different_shards) {
  const TemporaryDirectory temporary;
  SampleMaker maker(3);
  {
    ShardWriter writer(temporary / "data", sample_layout());
    writer.add(maker.text(50));
    writer.commit({{"documents", 1}});
  }
  TokenLayout other = sample_layout();
  other.vocabulary = 2000;
  const std::string layouts = error_of([&] { ShardWriter(temporary / "data", other); });
  EXPECT_NE(layouts.find("vocabulary 1010"), std::string::npos) << layouts;
  EXPECT_NE(layouts.find("vocabulary 2000"), std::string::npos) << layouts;
  std::filesystem::resize_file(temporary / "data" / "shard-00000.h5", 1000);
  EXPECT_NE(
      error_of([&] { ShardWriter(temporary / "data", sample_layout()); }).find("shard-00000.h5: 1000 bytes"),
      std::string::npos);
}

TEST(ShardWriter, documents_that_break_a_rule_are_named) {
  const TemporaryDirectory temporary;
  ShardWriter writer(temporary / "data", sample_layout());
  const auto refused = [&](const std::function<void(Document&)>& break_it, const std::string& expected) {
    SampleMaker maker(4);
    Document document = maker.text(10);
    maker.add_image(document, 3, 2);
    maker.add_sound(document, 4);
    document.source = "chat.jsonl:7";
    break_it(document);
    const std::string message = error_of([&] { writer.add(document); });
    EXPECT_TRUE(message.starts_with("chat.jsonl:7: ")) << message;
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  };
  refused([](Document& d) { d.tokens.clear(); }, "no tokens");
  refused([](Document& d) { d.trained.pop_back(); }, "marks of what is trained");
  refused([](Document& d) { d.tokens[3] = 1010; }, "token 3 has id 1010, expected 0 to 1009");
  refused([](Document& d) { d.tokens[3] = -1; }, "token 3 has id -1");
  refused([](Document& d) { d.trained[0] = 1; }, "token 0 is marked as trained");
  refused([](Document& d) { d.trained[2] = 2; }, "token 2 is marked 2");
  refused([](Document& d) { d.trained[12] = 1; }, "placeholder of image 0");
  refused([](Document& d) { d.images[0].columns = 4; }, "bytes of patches");
  refused([](Document& d) { d.images[0].rows = 0; }, "grid of 3 x 0");
  refused([](Document& d) { d.images[0].first_token = 10; }, "begins at token 10, whose id is 1000");
  refused([](Document& d) { d.images[0].first_token = 25; }, "takes tokens 25 to 30");
  refused([](Document& d) { d.images[0].first_token = -1; }, "takes tokens -1");
  refused([](Document& d) { d.images.clear(); }, "without an image or sound");
  refused([](Document& d) { d.sounds.clear(); }, "without an image or sound");
  refused([](Document& d) { d.sounds[0].samples.pop_back(); }, "samples, expected 20");
  refused([](Document& d) { d.sounds[0].frames = 0; }, "has 0 frames");
  refused([](Document& d) { d.images.push_back(d.images[0]); }, "expected it behind image 0");
  refused([](Document& d) { d.tokens[13] = 1006; }, "token 13 has id 1006, expected 1001");
}

TEST(ShardWriter, notes_with_invalid_utf8_do_not_break_the_manifest) {
  const TemporaryDirectory temporary;
  ShardWriter writer(temporary / "data", sample_layout());
  writer.add(SampleMaker(5).text(5));
  writer.finish({{"dropped", {{"reason", "caf\xe9"}, {"share", 0.1}}}});
  EXPECT_EQ(read_manifest(temporary / "data").notes.at("dropped").at("reason"), "caf\xef\xbf\xbd");
}

TEST(ShardWriter, a_directory_that_cannot_be_made_is_an_error) {
  EXPECT_NE(error_of([] { ShardWriter("/proc/none/data", sample_layout()); }).find("/proc/none/data"),
            std::string::npos);
}

TEST(Manifest, damage_is_found) {
  const TemporaryDirectory temporary;
  write_data_set(temporary / "data", some_documents(5));
  const std::string path = (temporary / "data" / kManifestName).string();
  const std::string good = read_text_file(path, 1 << 20);
  std::mt19937 random(6);
  int refused = 0;
  for (int trial = 0; trial < 300; ++trial) {
    std::string bad = good;
    bad[random() % bad.size()] = static_cast<char>(random());
    std::ofstream(path, std::ios::binary) << bad;
    Manifest read;
    const std::string message = error_of([&] { read = read_manifest(temporary / "data"); });
    if (message.empty()) {
      EXPECT_EQ(read.checksum,
                read_manifest(temporary / "data").checksum);  // white space, or the same byte again
    } else {
      ++refused;
      EXPECT_NE(message.find(path), std::string::npos) << message;
    }
  }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace lapidary
