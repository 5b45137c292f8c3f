// The parameter table against the specification's accounting of the 12B.
#include "model/parameter_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace lapidary {
namespace {

ModelConfig config_12b() {
  return read_model_config(std::string(LAPIDARY_SOURCE_DIR) + "/configs/models/gemma4-12b.json");
}

TEST(ParameterTable, CountsOfThe12BAreTheSpecifications) {
  const ParameterTable t = make_parameter_table(config_12b());
  EXPECT_EQ(t.specs.size(), 677u);
  EXPECT_EQ(std::count_if(t.specs.begin(), t.specs.end(), [](const ParameterSpec& s) { return s.trainable; }),
            629);
  EXPECT_EQ(t.trainable_elements(), 11'959'730'176);
  EXPECT_EQ(t.stored_elements(), 11'959'730'224);
  std::set<std::string> names;
  for (const ParameterSpec& s : t.specs) names.insert(s.name);
  EXPECT_EQ(names.size(), t.specs.size());
}

TEST(ParameterTable, MatricesDecayAndVectorsDoNot) {
  for (const ParameterSpec& s : make_parameter_table(config_12b()).specs)
    EXPECT_EQ(s.decay, s.shape.size() >= 2) << s.name;
}

TEST(ParameterTable, JoinedMatricesShareTheirColumns) {
  const ParameterTable t = make_parameter_table(config_12b());
  for (std::size_t i = 1; i < t.specs.size(); ++i) {
    if (t.specs[i].joined) {
      EXPECT_EQ(t.specs[i].shape[1], t.specs[i - 1].shape[1]) << t.specs[i].name;
    }
  }
  const LayerParameters& full = t.layers[5];
  EXPECT_EQ(full.qkv_count, 2);
  EXPECT_EQ(t.specs[static_cast<std::size_t>(full.q)].shape[0], 8192);
}

TEST(ParameterTable, NamesGoBothWays) {
  const ParameterTable t = make_parameter_table(config_12b());
  int renamed = 0;
  for (const ParameterSpec& s : t.specs) {
    const std::string memory = in_memory_name(s.name);
    renamed += memory != s.name;
    EXPECT_EQ(on_disk_name(memory), s.name);
    EXPECT_EQ(on_disk_name(s.name), s.name);
  }
  EXPECT_EQ(renamed, 10);
  EXPECT_EQ(in_memory_name("model.embed_vision.embedding_projection.weight"),
            "model.embed_vision.multimodal_embedder.embedding_projection.weight");
  EXPECT_EQ(in_memory_name("model.vision_embedder.patch_ln1.bias"), "model.embed_vision.patch_ln1.bias");
}

}  // namespace
}  // namespace lapidary
