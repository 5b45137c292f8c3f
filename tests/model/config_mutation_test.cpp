// Damaged config.json files by the thousand: an Error that names the file, or a model whose parameter table
// can be made.
#include <gtest/gtest.h>

#include "kernels/error.h"
#include "kernels/file.h"
#include "model/config.h"
#include "model/parameter_table.h"
#include "tests/model/mutate.h"

namespace lapidary {
namespace {

TEST(ConfigMutation, ErrorOrAModel) {
  std::mt19937 random(11);
  int refused = 0, accepted = 0;
  for (const char* file : {"configs/models/gemma4-12b.json", "tests/reference/text/config.json"}) {
    const std::string good = read_text_file(std::string(LAPIDARY_SOURCE_DIR) + "/" + file, 1 << 20);
    for (int i = 0; i < 5000; ++i) {
      const std::string text = mutate(good, random);
      try {
        const ParameterTable table = make_parameter_table(parse_model_config(text, "m.json"));
        ASSERT_GT(table.specs.size(), 10u);
        ASSERT_GT(table.stored_elements(), 0);
        ++accepted;
      } catch (const Error& e) {
        ASSERT_TRUE(std::string(e.what()).starts_with("m.json: ")) << e.what();
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 5000);
  EXPECT_GT(accepted, 100);  // changes to keys that nobody reads
}

}  // namespace
}  // namespace lapidary
