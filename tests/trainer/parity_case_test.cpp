// Reference cases as files: where soft tokens go, and what does not fit is refused.
#include "trainer/parity_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <vector>

#include "tests/model/safetensors_writer.h"
#include "tests/temporary_folder.h"

namespace lapidary {
namespace {

const std::string kEdges = std::string(LAPIDARY_SOURCE_DIR) + "/tests/reference/edges";

using Values = std::vector<std::int64_t>;

/// A copy of the case whose inputs are stored anew: integers as `change` leaves them, each under the name
/// that `rename` gives it.
class ChangedCase {
 public:
  explicit ChangedCase(const std::function<void(const std::string&, Values&)>& change,
                       const std::function<std::string(const std::string&)>& rename = {}) {
    for (const char* file : {"config.json", "case.json", "outputs.safetensors"})
      std::filesystem::copy(kEdges + "/" + file, folder_ / file);
    const Safetensors inputs(kEdges + "/inputs.safetensors");
    std::vector<StoredTensor> tensors = inputs.tensors();
    if (rename) {
      for (StoredTensor& t : tensors) t.name = rename(t.name);
    }
    SafetensorsWriter writer(folder_ / "inputs.safetensors", tensors);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const StoredTensor& from = inputs.tensors()[i];
      std::vector<char> bytes(static_cast<std::size_t>(from.bytes()));
      inputs.read_bytes(from, 0, from.elements, bytes.data());
      if (from.type == StoredType::i64) {
        Values values = inputs.read_all<std::int64_t>(from.name);
        change(from.name, values);
        writer.write(i, 0, from.elements, values.data());
      } else {
        writer.write(i, 0, from.elements, bytes.data());
      }
    }
    writer.commit();
  }
  std::string refusal() const {
    return message_of([&] { ParityCase{folder_.path()}; });
  }

 private:
  TemporaryFolder folder_;
};

void nothing(const std::string&, Values&) {}

TEST(ParityCase, DealsSoftTokensToPlaceholdersInOrder) {
  const ParityCase reference(kEdges);
  const ModelConfig& c = reference.config();
  const Batch all = reference.batch({0, 1, 2}), last = reference.batch({2});
  for (const Batch* batch : {&all, &last}) {
    for (const std::int32_t at : batch->patches.token) {
      const std::int32_t id = batch->ids[static_cast<std::size_t>(at)];
      EXPECT_TRUE(id == c.image_id || id == c.video_id) << at;
    }
    for (const std::int32_t at : batch->frames.token)
      EXPECT_EQ(batch->ids[static_cast<std::size_t>(at)], c.audio_id) << at;
    check_batch(*batch, static_cast<std::int32_t>(c.vocabulary), c.soft_ids(), "edges");
  }
  EXPECT_EQ(all.patches.count, 6 + 4 + 6 + 6 + 4 + 6);
  EXPECT_EQ(all.frames.count, 3);
  // The last row's features are the end of all rows' features, behind those of rows that were not asked for.
  ASSERT_EQ(last.patches.count, 10);
  EXPECT_TRUE(
      std::equal(last.patches.values.rbegin(), last.patches.values.rend(), all.patches.values.rbegin()));
  EXPECT_TRUE(std::equal(last.patch_xy.rbegin(), last.patch_xy.rend(), all.patch_xy.rbegin()));
}

TEST(ParityCase, RefusesPlaceholdersAndFeaturesThatDoNotMatch) {
  EXPECT_EQ(ChangedCase(nothing).refusal(), "no error");
  const std::int32_t image = read_model_config(kEdges + "/config.json").image_id;
  const ChangedCase fewer([&](const std::string& name, Values& values) {
    if (name == "input_ids") *std::find(values.begin(), values.end(), image) = 5;
  });
  EXPECT_TRUE(contains(fewer.refusal(), "20 image patches for 19 placeholders")) << fewer.refusal();
  const ChangedCase padding([](const std::string& name, Values& values) {
    if (name == "image_position_ids") values[1] = -1;
  });
  EXPECT_TRUE(contains(padding.refusal(), "19 image patches for 20 placeholders")) << padding.refusal();
}

TEST(ParityCase, RefusesInputsThatItWouldLeaveOut) {
  const ChangedCase other(nothing, [](const std::string& name) {
    return name == "position_ids" ? std::string("attention_mask") : name;
  });
  EXPECT_TRUE(contains(other.refusal(), "attention_mask is not an input that this comparison knows"))
      << other.refusal();
}

}  // namespace
}  // namespace lapidary
