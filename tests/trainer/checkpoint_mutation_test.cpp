// Damaged HDF5 files. With the checksum that the manifest records nothing of them is ever opened; with a
// checksum that fits the damage (a forgery) loading still never runs HDF5, and verify runs it in a process of
// its own: it says what it found, whatever the library did. LAPIDARY_MUTATIONS: how many of each (default:
// few).
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "kernels/checksum.h"
#include "kernels/file.h"
#include "tests/model/mutate.h"
#include "tests/trainer/checkpoint_fixture.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

int mutations(int usual) {
  const char* asked = std::getenv("LAPIDARY_MUTATIONS");
  return asked != nullptr ? std::atoi(asked) : usual;
}

class CheckpointMutation : public testing::Test {
 protected:
  CheckpointMutation() {
    holding_.fill(1);
    path_ = write_checkpoint(folder_.path(), 1, holding_.tensors(), R"({"a":1})", alone_);
    manifest_ = read_manifest(path_);
    for (const CheckpointManifest::File& file : manifest_.files)
      good_[file.name] = read_text_file(path_ + "/" + file.name, 1 << 26);
  }
  void put(const std::string& name, const std::string& bytes) {
    std::ofstream(path_ + "/" + name, std::ios::binary) << bytes;  // no fsync: it is read at once
  }
  /// Overwrites, or (seldom) anything that mutate() does.
  std::string damage(const std::string& good) {
    std::string bytes = good;
    if (random_() % 8 == 0) return mutate(bytes, random_);
    for (std::size_t n = 1 + random_() % 8; n > 0; --n)
      bytes[at_metadata(bytes.size())] = static_cast<char>(random_());
    return bytes;
  }
  /// Places near the ends, where HDF5's own structures are, more often than places among the values.
  std::size_t at_metadata(std::size_t size) {
    return random_() % 2 == 0 ? random_() % std::min<std::size_t>(size, 4096) : random_() % size;
  }
  /// The manifest of what is there now.
  void forge(const std::string& name, const std::string& bytes) {
    CheckpointManifest manifest = manifest_;
    for (CheckpointManifest::File& file : manifest.files) {
      if (file.name != name) continue;
      file.bytes = static_cast<std::int64_t>(bytes.size());
      file.checksum = checksum_of(bytes);
    }
    put(CheckpointManifest::kFileName, to_text(manifest));
  }

  const TemporaryFolder folder_;
  HostGroup alone_;
  Holding holding_{test_state(), 0, 1, 1};
  std::string path_;
  CheckpointManifest manifest_;
  std::map<std::string, std::string> good_;
  std::mt19937 random_{2024};
};

TEST_F(CheckpointMutation, TheChecksumKeepsDamageFromHdf5) {
  for (const auto& [name, good] : good_) {
    for (int i = mutations(500); i > 0; --i) {
      const std::string bytes = damage(good);
      if (bytes == good) continue;
      put(name, bytes);
      const std::string message = message_of([&] { open_checkpoint(path_, alone_); });
      ASSERT_TRUE(contains(message, path_ + "/" + name + ": ")) << message;
    }
    put(name, good);
  }
  EXPECT_EQ(message_of([&] { open_checkpoint(path_, alone_); }), "no error");
}

TEST_F(CheckpointMutation, AForgedChecksumHarmsNobody) {
  std::map<std::string, int> verdicts;
  for (const auto& [name, good] : good_) {
    for (int i = mutations(150); i > 0; --i) {
      const std::string bytes = damage(good);
      put(name, bytes);
      forge(name, bytes);
      const std::string loaded =
          message_of([&] { read_checkpoint(open_checkpoint(path_, alone_), holding_.tensors(), alone_); });
      ASSERT_TRUE(loaded == "no error" || contains(loaded, path_)) << loaded;
      std::ostringstream out;
      const bool sound = verify_checkpoint(path_, out);
      const bool crashed = contains(out.str(), "ended by signal") || contains(out.str(), "did not end");
      ++verdicts[sound ? "sound" : crashed ? "HDF5 crashed or hung" : "refused"];
      ASSERT_TRUE(contains(out.str(), "step 1 is ") || contains(out.str(), path_)) << out.str();
    }
    put(name, good);
    forge(name, good);
  }
  std::string text;
  for (const auto& [verdict, count] : verdicts) text += fmt::format("{}: {}; ", verdict, count);
  RecordProperty("verdicts", text);
  std::printf("%s\n", text.c_str());
  EXPECT_GT(verdicts["refused"], 0);
  std::ostringstream out;
  EXPECT_TRUE(verify_checkpoint(path_, out)) << out.str();
}

}  // namespace
}  // namespace lapidary
