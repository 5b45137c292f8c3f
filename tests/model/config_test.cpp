// config.json in both of its forms, and refusals that name the key.
#include "model/config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/error.h"

namespace lapidary {
namespace {

using Json = nlohmann::json;
const std::string k12b = std::string(LAPIDARY_SOURCE_DIR) + "/configs/models/gemma4-12b.json";

Json load_12b() {
  return Json::parse(std::ifstream(k12b));
}

/// Reads a changed copy of the 12B's file.
ModelConfig read(const Json& json) {
  const auto path =
      std::filesystem::temp_directory_path() / ("lapidary-config-" + std::to_string(getpid()) + ".json");
  std::ofstream(path) << json;
  struct Remove {
    std::filesystem::path path;
    ~Remove() { std::filesystem::remove(path); }
  } remove{path};
  return read_model_config(path.string());
}

std::string refusal(const Json& json) {
  try {
    read(json);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST(ModelConfig, ReadsThe12B) {
  const ModelConfig c = read_model_config(k12b);
  EXPECT_EQ(c.vocabulary, 262144);
  EXPECT_EQ(c.width, 3840);
  EXPECT_EQ(c.mlp_width, 15360);
  ASSERT_EQ(c.layers.size(), 48u);
  for (std::size_t i = 0; i < 48; ++i) EXPECT_EQ(c.layers[i].full, i % 6 == 5) << i;
  EXPECT_EQ(c.layers[0].qkv_width(), 8192);
  EXPECT_EQ(c.layers[5].qkv_width(), 8704);
  EXPECT_TRUE(c.layers[5].shared_kv);
  EXPECT_EQ(c.window, 1024);
  EXPECT_EQ(c.soft_cap, 30.0);
  EXPECT_EQ(c.vision.patch_width(), 6912);
  EXPECT_EQ(c.audio.frame_width, 640);
}

TEST(ModelConfig, BothFormsOfTheFileMeanTheSame) {
  Json saved = load_12b();
  Json& text = saved["text_config"];
  text.erase("global_head_dim");
  text.erase("num_global_key_value_heads");
  for (int i = 5; i < 48; i += 6) {
    const std::string key = (i < 10 ? "0" : "") + std::to_string(i);
    text["per_layer_config"][key] = {{"head_dim", 512}, {"num_key_value_heads", 1}};
  }
  const ModelConfig a = read_model_config(k12b), b = read(saved);
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].head_dim, b.layers[i].head_dim) << i;
    EXPECT_EQ(a.layers[i].kv_heads, b.layers[i].kv_heads) << i;
    EXPECT_EQ(a.layers[i].shared_kv, b.layers[i].shared_kv) << i;
  }
}

TEST(ModelConfig, RotaryFrequenciesAreTheSpecifications) {
  const ModelConfig c = read_model_config(k12b);
  const auto sliding = c.rope_frequencies(false), full = c.rope_frequencies(true);
  ASSERT_EQ(sliding.size(), 128u);
  ASSERT_EQ(full.size(), 64u);  // of 256 pairs; the others do not turn
  EXPECT_FLOAT_EQ(sliding[1], 0.9305720f);
  EXPECT_FLOAT_EQ(sliding[64], 0.01f);
  EXPECT_FLOAT_EQ(sliding[127], 1.0746078e-4f);
  EXPECT_FLOAT_EQ(full[1], 0.9474635f);
  EXPECT_FLOAT_EQ(full[32], 0.1778279f);
  EXPECT_FLOAT_EQ(full[63], 0.03337625f);
}

// What transformers takes where a file leaves something out or gives it in another form.
TEST(ModelConfig, ReadsOptionalKeysAsTransformersDoes) {
  Json json = load_12b();
  Json& text = json["text_config"];
  text["eos_token_id"] = {106, 1};
  text["rope_parameters"]["full_attention"] = {{"rope_type", "proportional"}, {"rope_theta", 1000.0}};
  const ModelConfig c = read(json);
  EXPECT_EQ(c.eos_id, 106);
  EXPECT_EQ(c.rope_frequencies(true).size(), 256u);  // without partial_rotary_factor every pair turns
  text.erase("rope_parameters");
  text.erase("use_bidirectional_attention");
  EXPECT_EQ(read(json).rope_frequencies(true).size(), 64u);
}

TEST(ModelConfig, EmbeddingScaleFollowsTheWeightsType) {
  const ModelConfig c = read_model_config(k12b);
  EXPECT_EQ(c.embedding_scale(true), 62.0);
  EXPECT_NEAR(c.embedding_scale(false), 61.967733, 1e-5);
}

TEST(ModelConfig, RefusesWhatItCannotCompute) {
  const auto with = [](const char* section, const char* key, const Json& value) {
    Json json = load_12b();
    (section ? json[section] : json)[key] = value;
    return refusal(json);
  };
  EXPECT_NE(with(nullptr, "model_type", "gemma3").find("model_type is gemma3, expected gemma4_unified"),
            std::string::npos);
  EXPECT_NE(
      refusal({{"model_type", "llama"}, {"vocab_size", 32000}}).find("model_type is llama"),  // no sections
      std::string::npos);
  EXPECT_NE(with("text_config", "num_kv_shared_layers", 4).find("num_kv_shared_layers is 4"),
            std::string::npos);
  EXPECT_NE(with("text_config", "hidden_size", "wide")
                .find("text_config.hidden_size is \"wide\", expected an integer"),
            std::string::npos);
  EXPECT_NE(with("text_config", "hidden_size", -3).find("hidden_size is -3"), std::string::npos);
  EXPECT_NE(with("text_config", "hidden_activation", "silu").find("silu, expected gelu_pytorch_tanh"),
            std::string::npos);
  EXPECT_NE(with("text_config", "use_bidirectional_attention", nullptr).find("not \"vision\""),
            std::string::npos);
  EXPECT_NE(with("text_config", "eos_token_id", Json::array()).find("eos_token_id is []"), std::string::npos);
  EXPECT_NE(with("text_config", "num_key_value_heads", 7).find("16 query heads on 7 key heads"),
            std::string::npos);
  EXPECT_NE(with("text_config", "layer_types", Json::array({"full_attention"})).find("has 1 entries"),
            std::string::npos);
  EXPECT_NE(
      with("text_config", "per_layer_config", Json{{"99", Json::object()}}).find("layer number below 48"),
      std::string::npos);
  EXPECT_NE(with("vision_config", "model_patch_size", 32).find("patch_size * pooling_kernel_size = 48"),
            std::string::npos);
  EXPECT_NE(with(nullptr, "image_token_id", 262144).find("image_token_id is 262144"), std::string::npos);
  Json missing = load_12b();
  missing["text_config"].erase("vocab_size");
  EXPECT_NE(refusal(missing).find("text_config.vocab_size is missing"), std::string::npos)
      << refusal(missing);
  EXPECT_NE(refusal(Json::array()).find("expected an object"), std::string::npos);
}

TEST(ModelConfig, NamesAFileThatIsNotThere) {
  try {
    read_model_config("/no/such/config.json");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("/no/such/config.json"), std::string::npos);
  }
}

}  // namespace
}  // namespace lapidary
