// Wrong configurations and what the user is told: file, line, column, key, what was found, what was expected.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "trainer/config_reader.h"

namespace lapidary {
namespace {

// Files are written to a fresh folder that becomes the working directory, so that messages name them as
// "run.yaml".
class ConfigErrors : public testing::Test {
 protected:
  void SetUp() override {
    before_ = std::filesystem::current_path();
    folder_ = std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    std::filesystem::current_path(folder_);
    ::unsetenv("LAPIDARY_FAULTS");
    ::unsetenv("LAPIDARY_NO_SUCH");
  }
  void TearDown() override {
    std::filesystem::current_path(before_);
    std::filesystem::remove_all(folder_);
  }

  static void write(const std::string& name, const std::string& text) {
    std::ofstream(name, std::ios::binary) << text;
  }

  static std::string message(const ConfigSources& sources) {
    try {
      load_config(sources);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::bad_input);
      return e.what();
    }
    return "no error";
  }

  // Everything that a run needs, by --set, so that a file shows only its mistake.
  static std::vector<std::string> needed() {
    return {"run.directory=out", "model.config=config.json", "data.train=[shards]", "train.steps=100"};
  }

  static std::string file_message(const std::string& yaml) {
    write("run.yaml", yaml);
    return message({{"run.yaml"}, needed()});
  }

  std::filesystem::path before_, folder_;
};

struct WrongFile {
  const char* yaml;
  const char* message;
};

const WrongFile kWrongFiles[] = {
    // Unknown keys, with the known one that was probably meant.
    {"optimizer:\n  learning_rte: 1e-5\n",
     "run.yaml:2:3: optimizer.learning_rte: unknown key; did you mean optimizer.lr?"},
    {"optimizer:\n  lr: 1e-5\n  learning_rate: 1e-5\n",
     "run.yaml:3:3: optimizer.learning_rate: unknown key; did you mean optimizer.lr?"},
    {"optimizer:\n  beta3: 0.9\n",
     "run.yaml:2:3: optimizer.beta3: unknown key; did you mean optimizer.beta1?"},
    {"optimizer:\n  max_grad_norm: 1\n",
     "run.yaml:2:3: optimizer.max_grad_norm: unknown key; did you mean optimizer.clip_norm?"},
    {"train:\n  lr: 1e-5\n", "run.yaml:2:3: train.lr: unknown key; did you mean optimizer.lr?"},
    {"train:\n  batch_size: 8\n",
     "run.yaml:2:3: train.batch_size: unknown key; did you mean train.rows_per_step?"},
    {"data: {seq_len: 8}\n", "run.yaml:1:8: data.seq_len: unknown key; did you mean data.sequence_length?"},
    {"loss:\n  temperature: 1\n",
     "run.yaml:2:3: loss.temperature: unknown key; loss has label_smoothing, z_loss, scratch"},
    {"optimizer:\n  LR: 1\n",
     "run.yaml:2:3: optimizer.LR: unknown key; optimizer has lr, beta1, beta2, epsilon, "
     "weight_decay, clip_norm, state, offload"},
    {"optimizer:\n  lr:\n    peak: 1\n",
     "run.yaml:3:5: optimizer.lr: expected a number such as 0.1 or 1e-5, found keys and values"},
    {"optimiser:\n  lr: 1\n", "run.yaml:1:1: \"optimiser\": unknown section; did you mean optimizer?"},
    {"learning_rate: 1e-5\n", "run.yaml:1:1: \"learning_rate\": unknown section; did you mean optimizer.lr?"},
    {"optimizer.lr: 1e-5\n",
     "run.yaml:1:1: optimizer.lr: a dotted key is for --set; here write \"optimizer:\" and below it \"lr:\""},
    {"wandb:\n  project: x\n",
     "run.yaml:1:1: \"wandb\": unknown section; the sections are run, model, data, train, optimizer, "
     "schedule, loss, "
     "parallel, memory, validation, checkpoint, log"},
    {"<<: {lr: 1}\n",
     "run.yaml:1:1: \"<<\": unknown section; the sections are run, model, data, train, optimizer, "
     "schedule, loss, parallel, memory, validation, checkpoint, log"},
    // Repeated keys.
    {"optimizer:\n  lr: 1e-5\n  beta1: 0.9\n  lr: 2e-5\n",
     "run.yaml:4:3: optimizer.lr: given twice; first in line 2"},
    {"loss: {z_loss: 0, z_loss: 0.1}\n", "run.yaml:1:19: loss.z_loss: given twice; first in line 1"},
    {"log:\n  every: 1\nrun:\n  seed: 3\nlog:\n  every: 2\n",
     "run.yaml:5:1: log: given twice; first in line 1"},
    // Numbers.
    {"optimizer:\n  lr: fast\n",
     "run.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found \"fast\""},
    {"optimizer:\n  lr: '1e-5'\n",
     "run.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found \"1e-5\", which is text"},
    {"optimizer:\n  lr: 1,5\n",
     "run.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found \"1,5\""},
    {"optimizer:\n  lr: 1e-5x\n",
     "run.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found \"1e-5x\""},
    {"optimizer:\n  lr:\n",
     "run.yaml:2:3: optimizer.lr: expected a number such as 0.1 or 1e-5, found nothing"},
    {"optimizer:\n  lr: ~\n",
     "run.yaml:2:3: optimizer.lr: expected a number such as 0.1 or 1e-5, found nothing"},
    {"optimizer:\n  lr: [1e-5]\n",
     "run.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found a list"},
    {"optimizer:\n  lr: .nan\n",
     "run.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found \".nan\""},
    {"optimizer:\n  lr: nan\n",
     "run.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found \"nan\""},
    {"optimizer:\n  lr: inf\n",
     "run.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found \"inf\""},
    {"optimizer:\n  lr: 1e999\n", "run.yaml:2:7: optimizer.lr: 1e999 does not fit a float64"},
    {"optimizer:\n  lr: 0\n", "run.yaml:2:7: optimizer.lr: 0 is out of range, expected above 0 to 1"},
    {"optimizer:\n  lr: -1e-5\n",
     "run.yaml:2:7: optimizer.lr: -1e-05 is out of range, expected above 0 to 1"},
    {"optimizer:\n  beta1: 1\n",
     "run.yaml:2:10: optimizer.beta1: 1 is out of range, expected from 0 to below 1"},
    {"schedule:\n  final_ratio: 1.5\n",
     "run.yaml:2:16: schedule.final_ratio: 1.5 is out of range, expected from 0 to 1"},
    {"run:\n  seed: 1.5\n", "run.yaml:2:9: run.seed: expected a whole number such as 2, found \"1.5\""},
    {"run:\n  seed: -1\n", "run.yaml:2:9: run.seed: -1 is out of range, expected from 0 to 9007199254740992"},
    {"run:\n  seed: 99999999999999999999\n", "run.yaml:2:9: run.seed: 99999999999999999999 is too large"},
    {"run:\n  seed: 10K\n", "run.yaml:2:9: run.seed: expected a whole number such as 2, found \"10K\""},
    {"parallel:\n  zero: 1\n", "run.yaml:2:9: parallel.zero: 1 is out of range, expected from 2 to 3"},
    {"parallel:\n  shard: ${N}\n",
     "run.yaml:2:10: parallel.shard: found \"${N}\"; ${NAME} is replaced in paths only, "
     "expected a whole number such as 2"},
    // What YAML readers do not agree on.
    {"run:\n  seed: 010\n",
     "run.yaml:2:9: run.seed: found 010, which some YAML readers take for octal; write 10"},
    {"run:\n  seed: 00\n",
     "run.yaml:2:9: run.seed: found 00, which some YAML readers take for octal; write 0"},
    {"log:\n  every: 0100\n",
     "run.yaml:2:10: log.every: found 0100, which some YAML readers take for octal; write 100"},
    {"run:\n  seed: 0x1F\n", "run.yaml:2:9: run.seed: found 0x1F; write the number in decimal digits"},
    {"run:\n  seed: 0o17\n", "run.yaml:2:9: run.seed: found 0o17; write the number in decimal digits"},
    {"log:\n  every: 1:30\n",
     "run.yaml:2:10: log.every: expected a count such as 2000, 10K, 1.5M or 2B, found \"1:30\""},
    {"log:\n  every: 1_000\n",
     "run.yaml:2:10: log.every: expected a count such as 2000, 10K, 1.5M or 2B, found \"1_000\""},
    {"checkpoint:\n  fallback: yes\n",
     "run.yaml:2:13: checkpoint.fallback: found yes, which YAML readers do not agree on; write true or "
     "false"},
    {"checkpoint:\n  fallback: off\n",
     "run.yaml:2:13: checkpoint.fallback: found off, which YAML readers do not agree on; write true or "
     "false"},
    {"checkpoint:\n  fallback: True\n",
     "run.yaml:2:13: checkpoint.fallback: found True, which YAML readers do not agree on; write true or "
     "false"},
    {"checkpoint:\n  fallback: 1\n",
     "run.yaml:2:13: checkpoint.fallback: expected true or false, found \"1\""},
    {"checkpoint:\n  fallback: 'true'\n",
     "run.yaml:2:13: checkpoint.fallback: expected true or false, found \"true\", which is text"},
    // Units.
    {"loss:\n  scratch: 256\n",
     "run.yaml:2:12: loss.scratch: expected bytes with their unit, such as 256MiB or 4GiB, found \"256\""},
    {"loss:\n  scratch: 256mib\n",
     "run.yaml:2:12: loss.scratch: expected bytes with their unit, such as 256MiB or 4GiB, found \"256mib\""},
    {"loss:\n  scratch: 1KiB\n",
     "run.yaml:2:12: loss.scratch: 1KiB is out of range, expected from 1MiB to 1TiB"},
    {"loss:\n  scratch: 0\n", "run.yaml:2:12: loss.scratch: 0B is out of range, expected from 1MiB to 1TiB"},
    {"loss:\n  scratch: 0.3B\n",
     "run.yaml:2:12: loss.scratch: expected bytes with their unit, such as 256MiB or 4GiB, "
     "whole and below 2^63, found \"0.3B\""},
    {"loss:\n  scratch: 99999999999TiB\n",
     "run.yaml:2:12: loss.scratch: expected bytes with their unit, such as 256MiB or 4GiB, whole and below "
     "2^63, found "
     "\"99999999999TiB\""},
    {"log:\n  every: 2.5\n",
     "run.yaml:2:10: log.every: expected a count such as 2000, 10K, 1.5M or 2B, whole and below "
     "2^63, found \"2.5\""},
    {"log:\n  every: 10 K K\n",
     "run.yaml:2:10: log.every: expected a count such as 2000, 10K, 1.5M or 2B, found \"10 K K\""},
    {"log:\n  every: 0\n", "run.yaml:2:10: log.every: 0 is out of range, expected from 1 to 1B"},
    {"run:\n  stop_after: 3600\n",
     "run.yaml:2:15: run.stop_after: expected a time with its unit, such as 30s, 5m or 2h, found \"3600\""},
    {"run:\n  stop_after: -5m\n",
     "run.yaml:2:15: run.stop_after: -5m is out of range, expected from 0s to 1000d"},
    // Words.
    {"schedule:\n  kind: cosin\n",
     "run.yaml:2:9: schedule.kind: expected one of constant, linear, cosine, found \"cosin\"; did you mean "
     "cosine?"},
    {"schedule:\n  kind: wsd\n",
     "run.yaml:2:9: schedule.kind: expected one of constant, linear, cosine, found \"wsd\""},
    {"run:\n  device: GPU\n", "run.yaml:2:11: run.device: expected one of auto, cpu, cuda, found \"GPU\""},
    {"run:\n  precision: fp32\n",
     "run.yaml:2:14: run.precision: expected one of bf16, float32, found \"fp32\""},
    {"model:\n  image_attention: [all]\n",
     "run.yaml:2:20: model.image_attention: expected one of sliding, all, found a list"},
    // Paths.
    {"run:\n  directory:\n",
     "run.yaml:2:3: run.directory: expected a path, found nothing (a plain ~ is nothing)"},
    {"run:\n  directory: ''\n", "run.yaml:2:14: run.directory: expected a path, found empty text"},
    {"run:\n  directory: ~/out\n",
     "run.yaml:2:14: run.directory: \"~/out\": ~ is not replaced here; write ${HOME}"},
    {"run:\n  directory: $HOME/out\n",
     "run.yaml:2:14: run.directory: \"$HOME/out\": a variable is written ${NAME}"},
    {"run:\n  directory: \"${HOME/out\"\n",
     "run.yaml:2:14: run.directory: \"${HOME/out\": a variable is written ${NAME}"},
    {"model:\n  weights: ${LAPIDARY_NO_SUCH}/hf\n",
     "run.yaml:2:12: model.weights: ${LAPIDARY_NO_SUCH}/hf: the environment variable LAPIDARY_NO_SUCH is not "
     "set"},
    {"checkpoint:\n  resume: [auto]\n",
     "run.yaml:2:11: checkpoint.resume: expected auto, none, weights-only, or a path, found a list"},
    // Lists of sources.
    {"data:\n  train: {path: shards}\n",
     "run.yaml:2:10: data.train: expected a path or a list such as [folder, {path: other, weight: 2}], found "
     "keys and values"},
    {"data:\n  train: ~/shards\n",
     "run.yaml:2:10: data.train: \"~/shards\": ~ is not replaced here; write ${HOME}"},
    {"data:\n  train:\n",
     "run.yaml:2:3: data.train: expected a path or a list such as [folder, {path: other, weight: 2}], "
     "found nothing"},
    {"data:\n  train:\n    - a\n    - [b]\n",
     "run.yaml:4:7: data.train: expected a path or {path: ..., weight: ...}, found a list"},
    {"data:\n  train:\n    - path: a\n      wieght: 2\n",
     "run.yaml:4:15: data.train: unknown key \"wieght\"; a source has path and weight"},
    {"data:\n  train:\n    - {path: a, weight: 0}\n",
     "run.yaml:3:25: data.train: weight 0 is out of range, expected above 0 to 1000000"},
    {"data:\n  train:\n    - {path: a, weight: much}\n",
     "run.yaml:3:25: data.train: expected a number such as 0.1 or 1e-5, found \"much\""},
    {"data:\n  train:\n    - {weight: 2}\n", "run.yaml:3:7: data.train: a source needs its path"},
    // Structure.
    {"train: 100\n", "run.yaml:1:8: train: expected keys of this section, found \"100\""},
    {"- train\n- run\n",
     "run.yaml:1:1: expected sections such as \"train:\" with keys below them, found a list"},
    {"just some words\n",
     "run.yaml:1:1: expected sections such as \"train:\" with keys below them, found \"just some words\""},
    {"log:\n  every: 1\n---\nlog:\n  every: 2\n", "run.yaml:4:1: a second document begins here"},
    {"log: &a\n  every: 1\n", "run.yaml:1:6: log: anchors are not taken here; write the value out"},
    {"run:\n  seed: &s 1\nlog:\n  every: *s\n",
     "2 errors in the configuration:\n"
     "  run.yaml:2:9: run.seed: anchors are not taken here; write the value out\n"
     "  run.yaml:4:10: log.every: aliases are not taken here; write the value out"},
    {"run:\n  seed: !!int 1\n",
     "run.yaml:2:9: run.seed: the tag \"tag:yaml.org,2002:int\" is not taken here"},
    {"log:\n  every: 1\nrun:\n  directory: \"open\n",
     "run.yaml:4:14: run.directory: the quote is not closed"},
    {"run:\n  directory: 'it''s open\n", "run.yaml:2:14: run.directory: the quote is not closed"},
    {"log:\n  every: 1\n\x04run: 3\n", "run.yaml:3: byte 0x04: this is not a text file in UTF-8"},
    {"? [a, b]\n: 1\n", "run.yaml:1:3: a key must be a word, found a list"},
    // Values that do not go together.
    {"schedule:\n  warmup_steps: 101\n",
     "run.yaml:2:17: schedule.warmup_steps: 101 is more than train.steps, 100"},
    {"train:\n  rows_per_rank: 16\n",
     "run.yaml:2:18: train.rows_per_rank: 16 is more than train.rows_per_step, 8"},
    {"validation:\n  every: 10\n",
     "run.yaml:2:10: validation.every: is 10, but data.validation lists nothing"},
    {"data:\n  validation: [shards]\n",
     "run.yaml:2:15: data.validation: shards is in data.train too: nothing is held out"},
    {"data:\n  validation: [a, a]\n", "run.yaml:2:15: data.validation: a is listed twice"},
    {"checkpoint:\n  every: 100\n  keep_every: 250\n",
     "run.yaml:3:15: checkpoint.keep_every: 250 is no multiple of checkpoint.every, 100: there would be no "
     "such "
     "checkpoints to keep"},
    {"run:\n  precision: float32\noptimizer:\n  state: split\n",
     "run.yaml:4:10: optimizer.state: with run.precision float32 the weights are float32, expected float32 "
     "here too"},
    {"run:\n  precision: float32\nparallel:\n  gradient_dtype: bf16\n",
     "run.yaml:4:19: parallel.gradient_dtype: is bf16, but run.precision is float32"},
    {"parallel:\n  shard: 8\n  vocabulary: 3\n",
     "run.yaml:3:15: parallel.vocabulary: 3 does not divide parallel.shard, 8: a vocabulary group is part of "
     "a shard "
     "group"},
    {"fault:\n  kind: kill\n",
     "run.yaml:2:3: fault.kind: faults are for tests and need LAPIDARY_FAULTS=1 in the "
     "environment"},
};

TEST_F(ConfigErrors, EachMistakeHasItsMessage) {
  EXPECT_GE(std::size(kWrongFiles), 60u);
  for (const auto& wrong : kWrongFiles)
    EXPECT_EQ(file_message(std::string(wrong.yaml)), wrong.message) << wrong.yaml;
}

struct WrongSetting {
  const char* setting;
  const char* message;
};

const WrongSetting kWrongSettings[] = {
    {"optimizer.lr", "--set optimizer.lr: expected KEY=VALUE, such as optimizer.lr=1e-5"},
    {"=1", "--set =1: expected KEY=VALUE, such as optimizer.lr=1e-5"},
    {"optimizer.lr=",
     "--set optimizer.lr=: optimizer.lr: expected a number such as 0.1 or 1e-5, found nothing"},
    {"optimizer.lr=fast",
     "--set optimizer.lr=fast: optimizer.lr: expected a number such as 0.1 or 1e-5, found \"fast\""},
    {"optimizer.learning_rte=1",
     "--set optimizer.learning_rte=1: optimizer.learning_rte: unknown key; did you mean optimizer.lr?"},
    {"lr=1", "--set lr=1: \"lr\": unknown section; did you mean optimizer.lr?"},
    {"data.train.0=a", "--set data.train.0=a: data.train.0: unknown key; did you mean data.train?"},
    {"loss={z_loss: 0, z_loss: 1}", "--set loss={z_loss: 0, z_loss: 1}: z_loss: given twice"},
    {"log.every=[", "--set log.every=[: this is not YAML: "},
    {"schedule.warmup_steps=2K",
     "--set schedule.warmup_steps=2K: schedule.warmup_steps: 2000 is more than "
     "train.steps, 100"},
};

TEST_F(ConfigErrors, EachWrongSettingHasItsMessage) {
  for (const auto& wrong : kWrongSettings) {
    auto settings = needed();
    settings.emplace_back(wrong.setting);
    const std::string got = message({{}, settings});
    EXPECT_EQ(got.substr(0, std::string(wrong.message).size()), wrong.message);
  }
}

TEST_F(ConfigErrors, AllMistakesAreReportedInOrder) {
  write("base.yaml", "optimizer:\n  lr: fast\n  bta1: 0.9\n");
  write("site.yaml", "run:\n  seed: 010\n");
  EXPECT_EQ(
      message({{"base.yaml", "site.yaml"}, {"model.config=c.json", "log.every=0", "data.train=[a]"}}),
      "6 errors in the configuration:\n"
      "  base.yaml:2:7: optimizer.lr: expected a number such as 0.1 or 1e-5, found \"fast\"\n"
      "  base.yaml:3:3: optimizer.bta1: unknown key; did you mean optimizer.beta1?\n"
      "  site.yaml:2:9: run.seed: found 010, which some YAML readers take for octal; write 10\n"
      "  --set log.every=0: log.every: 0 is out of range, expected from 1 to 1B\n"
      "  configuration: run.directory: not given; expected path: folder of the run: resolved configuration, "
      "metrics.jsonl, checkpoints\n"
      "  configuration: train.steps: not given; expected count of steps, from 1 to 1B: updates of "
      "the "
      "weights in the whole run, those before a resume included");
}

TEST_F(ConfigErrors, RequiredKeysAreNamedWithTheOnlyFile) {
  write("run.yaml", "log: {every: 5}\n");
  const std::string got = message({{"run.yaml"}, {"run.directory=out", "data.train=[a]", "train.steps=1"}});
  EXPECT_EQ(
      got,
      "run.yaml: model.config: not given; expected path: config.json of a Hugging Face folder: the shape of "
      "the model");
}

TEST_F(ConfigErrors, FilesThatCannotBeRead) {
  EXPECT_EQ(message({{"missing.yaml"}, {}}), "cannot open missing.yaml: No such file or directory");
  std::filesystem::create_directory("folder.yaml");
  EXPECT_NE(message({{"folder.yaml"}, {}}).find("folder.yaml"), std::string::npos);
  write("large.yaml", "# " + std::string(1'000'000, 'x'));
  EXPECT_EQ(message({{"large.yaml"}, {}}), "large.yaml: 1000002 bytes, expected at most 1000000");
}

TEST_F(ConfigErrors, WhatIsNotYamlNamesLineAndColumn) {
  for (const char* text : {"log:\n\tevery: 1\n", "log:\n  every: [1, 2\nrun: 3\n", "log: {every: 1\n",
                           "a: b: c\n", "log:\n  every: \"\\q\"\n"}) {
    const std::string got = file_message(std::string(text));
    EXPECT_TRUE(got.starts_with("run.yaml:")) << got;
    EXPECT_NE(got.find(": this is not YAML: "), std::string::npos) << got;
  }
}

TEST_F(ConfigErrors, HostileFilesEndQuicklyWithAMessage) {
  EXPECT_EQ(file_message("log: " + std::string(400'000, '[')), "run.yaml:1:14: nested deeper than 16 levels");
  EXPECT_EQ(file_message("log: " + std::string(400'000, '{')), "run.yaml:1:21: nested deeper than 16 levels");
  std::string many = "optimizer:\n";
  for (int i = 0; i < 50'000; ++i) many += "  key" + std::to_string(i) + ": 1\n";
  EXPECT_TRUE(file_message(many).starts_with("50 errors in the configuration, the rest was not read:\n"))
      << file_message(many);
  std::string same = "optimizer:\n";
  for (int i = 0; i < 50'000; ++i) same += "  lr: 1\n";
  EXPECT_TRUE(file_message(same).starts_with("50 errors in the configuration")) << file_message(same);
  std::string binary(5'000, '\0');
  for (std::size_t i = 0; i < binary.size(); ++i) binary[i] = static_cast<char>(i * 37 % 256);
  EXPECT_TRUE(file_message(binary).starts_with("run.yaml:")) << file_message(binary);
  EXPECT_TRUE(file_message("run:\n  device: " + std::string(100'000, 'x') + "\n").size() < 300);
}

TEST_F(ConfigErrors, DamagedFilesAreErrorsOrConfigurations) {
  std::string whole =
      "run: {directory: \"${HOME}/out\", seed: 7, stop_after: 1.5h}\nmodel:\n  config: 'c.json'\n"
      "data:\n  train:\n    - path: a\n      weight: 2\n    - [b]\ntrain: {steps: 10K}\n# end\n"
      "optimizer:\n  lr: 1e-5\n  state: &x split\n? k\n: |\n  block\n";
  for (const auto& wrong : kWrongFiles) whole += wrong.yaml;
  std::mt19937 random(3);
  const std::string noise =
      ":-?,[]{}#&*!|>'\"%@`~ \n\t\r0e.\\x$" + std::string(1, '\0') + "\x04\x85\xff\xef\xbb\xbf";
  int errors = 0;
  constexpr int kTries = 3000;
  for (int i = 0; i < kTries; ++i) {
    const auto begin = random() % whole.size();
    std::string text = whole.substr(begin, 1 + random() % 600);
    for (auto n = random() % 6; n > 0; --n) {
      const auto at = random() % text.size();
      if (random() % 3 == 0) text.erase(at, random() % 5);
      text.insert(std::min(at, text.size()), 1 + random() % 3, noise[random() % noise.size()]);
    }
    try {
      parse_saved_config(text, "damaged.yaml");
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("damaged.yaml"), std::string::npos) << e.what();
      ++errors;
    }
  }
  EXPECT_GT(errors, kTries * 9 / 10);  // required keys are always missing in a piece
}

TEST_F(ConfigErrors, FaultsAreForTests) {
  const std::vector<std::string> fault{"fault.kind=kill", "fault.step=5"};
  auto settings = needed();
  settings.insert(settings.end(), fault.begin(), fault.end());
  EXPECT_TRUE(message({{}, settings}).starts_with("2 errors"));
  ::setenv("LAPIDARY_FAULTS", "0", 1);
  EXPECT_TRUE(message({{}, settings}).starts_with("2 errors"));
  ::setenv("LAPIDARY_FAULTS", "1", 1);
  EXPECT_EQ(message({{}, settings}), "no error");
  settings.emplace_back("fault.step=101");
  EXPECT_EQ(message({{}, settings}), "--set fault.step=101: fault.step: 101 is after train.steps, 100");
}

}  // namespace
}  // namespace lapidary
