// Checkpoints that released programs wrote stay readable: corpus/ has one for each format version there ever
// was.
#include <set>
#include <sstream>

#include "tests/trainer/checkpoint_fixture.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

TEST(CheckpointCorpus, EveryFormatVersionIsReadAndSound) {
  constexpr std::int64_t kStep = 7;
  std::set<std::string> versions;
  for (const auto& entry : fs::directory_iterator(LAPIDARY_SOURCE_DIR "/tests/trainer/corpus")) {
    if (!entry.is_directory()) continue;
    versions.insert(entry.path().filename());
    HostGroup alone;
    Holding holding(test_state(), 0, 1, 1);
    holding.clear();
    const auto found = restore_newest_checkpoint(entry.path(), false, holding.tensors(), alone);
    ASSERT_TRUE(found) << entry.path();
    EXPECT_EQ(found->manifest.step, kStep);
    EXPECT_EQ(found->manifest.ranks, 3);
    EXPECT_EQ(found->manifest.metric, 1.5);
    EXPECT_EQ(found->manifest.state.dump(), R"({"position":[1,2]})");
    EXPECT_EQ(holding.wrong(kStep), 0) << entry.path();
    std::ostringstream out;
    EXPECT_TRUE(verify_checkpoint(found->path, out)) << out.str();
  }
  // A program that writes a new version adds its folder here and keeps the old ones.
  std::set<std::string> expected;
  for (int version = 1; version <= CheckpointManifest::kVersion; ++version)
    expected.insert(fmt::format("format-{}", version));
  EXPECT_EQ(versions, expected);
}

}  // namespace
}  // namespace lapidary
