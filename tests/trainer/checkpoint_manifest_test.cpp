// The manifest comes back as it was, and anything else is refused; ranges of arrays become blocks.
#include "trainer/checkpoint_manifest.h"

#include <array>
#include <functional>
#include <numeric>

#include "kernels/checksum.h"
#include "tests/trainer/checkpoint_fixture.h"
#include "trainer/checkpoint_files.h"

namespace lapidary {
namespace {

CheckpointManifest example() {
  CheckpointManifest m;
  m.step = 60;
  m.ranks = 2;
  m.program = "lapidary \"0\"";
  m.metric = 0.1;
  m.state = {{"seed", 18446744073709551615u}, {"loss", 0.1 + 0.2}, {"nested", {{"a", {1, -2}}}}};
  m.files = {{"shard-00000.h5", 1000, std::string(32, 'a')}, {"shard-00001.h5", 900, std::string(32, 'b')}};
  m.tensors = {{"w", "weight", DType::bf16, {4, 5}, {{1, 0, 7, 100}, {0, 7, 13, 64}}},
               {"w", "exp_avg", DType::f32, {4, 5}, {{0, 0, 20, 920}}}};
  return m;
}

std::string with_checksum(std::string text) {  // for text that was changed on purpose
  text.resize(text.size() - 35);
  return text + checksum_of(text) + "\"}\n";
}

TEST(CheckpointManifest, ComesBack) {
  const CheckpointManifest before = example();
  const std::string text = to_text(before);
  const CheckpointManifest after = parse_manifest(text, "m");
  EXPECT_EQ(to_text(after), text);
  EXPECT_EQ(after.state, before.state);
  EXPECT_EQ(after.state["loss"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(after.metric, 0.1);
  ASSERT_NE(after.find("w", "exp_avg"), nullptr);
  EXPECT_EQ(after.find("w", "exp_avg")->slices[0].offset, 920);
  EXPECT_EQ(after.find("w", "exp_avg_sq"), nullptr);
  EXPECT_EQ(after.bytes(), 1900);
}

TEST(CheckpointManifest, AnyChangedByteIsFound) {
  const std::string text = to_text(example());
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (const int change : {1, 32, 128}) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ change);
      ASSERT_NE(message_of([&] { parse_manifest(damaged, "m"); }), "no error") << i;
    }
    ASSERT_NE(message_of([&] { parse_manifest(text.substr(0, i), "m"); }), "no error") << i;
  }
  EXPECT_NE(message_of([&] { parse_manifest(text + "\n", "m"); }), "no error");
}

// The right checksum does not make nonsense true.
TEST(CheckpointManifest, NonsenseIsRefused) {
  const std::string text = to_text(example());
  const auto message = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    const std::size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    changed.replace(at, from.size(), to);
    return message_of([&] { parse_manifest(with_checksum(changed), "m"); });
  };
  const std::vector<std::array<std::string, 3>> cases = {
      {"\"version\":1", "\"version\":2", "format version 2, this program reads version 1"},
      {"lapidary checkpoint", "other", "format \"other\", expected"},
      {"\"step\":60", "\"step\":-60", "\"step\" is number, expected"},
      {"\"step\":60", "\"stop\":60", "\"step\" is missing"},
      {"\"step\":60", "\"step\":60,\"step\":61", "appears twice"},
      {"\"state\":{", "\"state\":[{},{", "not valid JSON"},
      {"shard-00000.h5", "../shard.h5", "is not the name of a file"},
      {"shard-00000.h5", "manifest.json", "is not the name of a file"},
      {"bf16", "f8", "dtype \"f8\" is unknown"},
      {"[4,5]", "[4,5,0]", "expected 1 to 8 dimensions"},
      {"[4,5]", "[4294967296,4294967296]", "does not fit 64 bits"},
      {"[4,5]", "[4611686018427387904]", "is too large"},
      {"[4,5]", "[4,6]", "nobody has elements [20, 24)"},
      {"[0,7,13,64]", "[0,6,14,64]", "element 6 is there twice"},
      {"[0,7,13,64]", "[0,8,12,64]", "nobody has elements [7, 8)"},
      {"[0,7,13,64]", "[0,7,14,64]", "elements [7, 7 + 14) of 20"},
      {"[0,7,13,64]", "[0,7,13]", "expected [file, begin, count, offset]"},
      {"[0,7,13,64]", "[2,7,13,64]", "file number 2 of 2"},
      {"[0,7,13,64]", "[0,7,13,980]", "lie outside shard-00000.h5"},
      {"[0,7,13,64]", "[0,7,13,9223372036854775807]", "lie outside shard-00000.h5"},
      {"\"exp_avg\"", "\"weight\"", "is there twice"},
      {"\"exp_avg\"", "\"a b\"", "expected lower-case letters"},
  };
  for (const auto& [from, to, expected] : cases)
    EXPECT_TRUE(contains(message(from, to), expected)) << to << ": " << message(from, to);
}

TEST(CheckpointManifest, MutationsNeverCrash) {
  std::mt19937 random(3);
  const std::string text = to_text(example());
  int refused = 0;
  for (int i = 0; i < 5000; ++i) {
    std::string mutant = text.substr(0, text.size() - 35);
    for (std::size_t n = 1 + random() % 4; n > 0; --n) {
      const std::size_t at = random() % mutant.size();
      if (random() % 2 == 0)
        mutant[at] = static_cast<char>(random() % 128);
      else
        mutant.replace(at, random() % 9, mutant.substr(random() % mutant.size(), random() % 17));
    }
    const std::string message =
        message_of([&] { parse_manifest(mutant + checksum_of(mutant) + "\"}\n", "m"); });
    refused += message != "no error" ? 1 : 0;
  }
  EXPECT_GT(refused, 3000);
}

// Blocks of a random range: together, in order, exactly its elements; never more than 2 * dimensions - 1.
TEST(CheckpointBlocks, CoverTheRangeInOrder) {
  std::mt19937 random(5);
  for (int i = 0; i < 3000; ++i) {
    std::vector<std::int64_t> shape(1 + random() % 4);
    for (auto& d : shape) d = 1 + static_cast<std::int64_t>(random() % 6);
    const auto elements = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    const auto begin = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(elements));
    const auto count = 1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(elements - begin));
    const auto blocks = blocks_of_range(shape, begin, count);
    ASSERT_LE(blocks.size(), 2 * shape.size() - 1);
    std::int64_t next = begin;
    for (const Hdf5Block& block : blocks) {
      std::vector<std::int64_t> at(shape.size(), 0);  // walks the block in row-major order
      for (bool more = true; more;) {
        std::int64_t flat = 0;
        for (std::size_t d = 0; d < shape.size(); ++d) flat = flat * shape[d] + block.start[d] + at[d];
        ASSERT_EQ(flat, next++);
        more = false;
        for (std::size_t d = shape.size(); d-- > 0 && !more; more = at[d] != 0)
          at[d] = (at[d] + 1) % block.count[d];
      }
    }
    ASSERT_EQ(next, begin + count);
  }
}

}  // namespace
}  // namespace lapidary
