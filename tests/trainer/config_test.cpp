// Configurations that are right: defaults, overriding, round trips through YAML, the locale, the reference
// page.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <locale>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "trainer/config_reader.h"
#include "trainer/config_text.h"
#include "trainer/options.h"

namespace lapidary {
namespace {

RunConfig minimal() {
  RunConfig config;
  config.run.directory.text = "out";
  config.model.config.text = "config.json";
  config.data.train = {{{"shards"}, 1.0}};
  config.train.steps = 100;
  return config;
}

std::vector<std::string> needed() {
  return {"run.directory=out", "model.config=config.json", "data.train=[shards]", "train.steps=100"};
}

RunConfig with(std::vector<std::string> settings) {
  auto all = needed();
  all.insert(all.end(), settings.begin(), settings.end());
  return load_config({{}, all});
}

class Folder {
 public:
  Folder() : path_(std::filesystem::path(testing::TempDir()) / "lapidary_config_test") {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directory(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

TEST(Config, WhatIsNotGivenHasTheDefault) {
  EXPECT_EQ(with({}), minimal());
  const Folder folder;
  EXPECT_EQ(load_config({{folder.write("empty.yaml", "")}, needed()}), minimal());
  EXPECT_EQ(
      load_config({{folder.write("comments.yaml", "---\n# nothing\noptimizer:\n  # lr: 1\n")}, needed()}),
      minimal());
}

TEST(Config, LaterFilesWinAndSettingsComeLast) {
  const Folder folder;
  const auto base =
      folder.write("base.yaml",
                   "run: {directory: a, seed: 7}\nmodel: {config: c.json}\n"
                   "data:\n  train: [one, two]\ntrain: {steps: 2K}\noptimizer: {lr: 1e-3, beta1: 0.8}\n");
  const auto site =
      folder.write("site.yaml", "data:\n  train:\n    - {path: three, weight: 2}\noptimizer: {lr: 1e-4}\n");
  const RunConfig c =
      load_config({{base, site}, {"optimizer.lr=1e-6", "optimizer.lr=2e-6", "loss={z_loss: 1e-4}"}});
  EXPECT_EQ(c.run.seed, 7);
  EXPECT_EQ(c.train.steps, 2000);
  EXPECT_EQ(c.optimizer.lr, 2e-6);
  EXPECT_EQ(c.optimizer.beta1, 0.8);
  EXPECT_EQ(c.loss.z_loss, 1e-4);
  ASSERT_EQ(c.data.train.size(), 1u);
  EXPECT_EQ(c.data.train[0].path.text, "three");
  EXPECT_EQ(c.data.train[0].weight, 2.0);
}

TEST(Config, DifferingKeysAreNamedWithBothValues) {
  const RunConfig before = with({"optimizer.lr=1e-4", "data.validation=[a, b]"});
  EXPECT_TRUE(differing_keys(before, before).empty());
  EXPECT_EQ(differing_keys(with({"optimizer.lr=2e-4", "data.validation=[a, c]", "checkpoint.staging=1GiB"}),
                           before),
            (std::vector<std::string>{"data.validation lists others", "optimizer.lr 0.0002, was 0.0001",
                                      "checkpoint.staging 1GiB, was 64GiB"}));
  EXPECT_EQ(differing_keys(with({"optimizer.lr=1e-4"}), before),
            (std::vector<std::string>{"data.validation lists others"}));
}

TEST(Config, ValuesWithUnits) {
  const auto bytes = [](const std::string& text) { return with({"loss.scratch=" + text}).loss.scratch; };
  EXPECT_EQ(bytes("256MiB"), 256LL << 20);
  EXPECT_EQ(bytes("256 MiB"), 256LL << 20);
  EXPECT_EQ(bytes("\"4GiB\""), 4LL << 30);
  EXPECT_EQ(bytes("1.5GiB"), 3LL << 29);
  EXPECT_EQ(bytes("2048KiB"), 2LL << 20);
  EXPECT_EQ(bytes("1048576B"), 1LL << 20);
  EXPECT_EQ(bytes("2MB"), 2'000'000);
  EXPECT_EQ(bytes("1TiB"), 1LL << 40);
  const auto count = [](const std::string& text) { return with({"train.steps=" + text}).train.steps; };
  EXPECT_EQ(count("2000"), 2000);
  EXPECT_EQ(count("10K"), 10'000);
  EXPECT_EQ(count("10k"), 10'000);
  EXPECT_EQ(count("1.25M"), 1'250'000);
  EXPECT_EQ(count("1B"), 1'000'000'000);
  const auto time = [](const std::string& text) { return with({"run.stop_after=" + text}).run.stop_after; };
  EXPECT_EQ(time("30s"), 30);
  EXPECT_EQ(time("5m"), 300);
  EXPECT_EQ(time("1.5h"), 5400);
  EXPECT_EQ(time("2d"), 172'800);
  EXPECT_EQ(time("250ms"), 0.25);
  EXPECT_EQ(time("0"), 0);
}

TEST(Config, WordsAndPathsThatLookLikeOtherThings) {
  EXPECT_EQ(with({"run.directory=010"}).run.directory.text, "010");
  EXPECT_EQ(with({"run.directory=yes"}).run.directory.text, "yes");
  EXPECT_EQ(with({"run.directory='null'"}).run.directory.text, "null");
  EXPECT_EQ(with({"run.directory=a b"}).run.directory.text, "a b");
  EXPECT_EQ(with({"run.directory=läufe/ı"}).run.directory.text, "läufe/ı");
  EXPECT_EQ(with({"run.device=cuda"}).run.device, DeviceChoice::cuda);
  EXPECT_EQ(with({"model.image_attention=all"}).model.image_attention, ImageAttention::all);
  EXPECT_TRUE(with({"checkpoint.resume=none"}).checkpoint.resume.is("none"));
}

TEST(Config, ASourceAloneIsAListOfOne) {
  EXPECT_EQ(with({"data.train=shards"}), with({}));
  EXPECT_EQ(with({"data.train=[{path: shards}]"}), with({}));
}

TEST(Config, VariablesInPathsAreResolvedWhenUsedAndSavedAsWritten) {
  ::setenv("LAPIDARY_TEST_SCRATCH", "/scratch/me", 1);
  const RunConfig c = with(
      {"run.directory=${LAPIDARY_TEST_SCRATCH}/run-${LAPIDARY_TEST_SCRATCH}", "model.weights=${HOME}/hf"});
  EXPECT_EQ(c.run.directory.resolve(), "/scratch/me/run-/scratch/me");
  const std::string yaml = config_to_yaml(c);
  EXPECT_NE(yaml.find("\"${LAPIDARY_TEST_SCRATCH}/run-${LAPIDARY_TEST_SCRATCH}\""), std::string::npos);
  EXPECT_EQ(yaml.find("/scratch/me"), std::string::npos);
  ::unsetenv("LAPIDARY_TEST_SCRATCH");
  EXPECT_EQ(parse_saved_config(yaml, "saved.yaml"), c);  // on a machine without the variable
  EXPECT_THROW(c.run.directory.resolve(), Error);
}

// A value that a user could give, for each kind of key.
class RandomConfigs {
 public:
  explicit RandomConfigs(std::uint32_t seed) : random_(seed) {}

  RunConfig next() {
    do {
      config_ = minimal();
      for (const auto& option : option_table()) {
        if (pick(3) == 0) std::visit([&](const auto& member) { set(option, member); }, option.member);
      }
    } while (!find_conflicts(config_).empty());
    return config_;
  }

 private:
  int pick(int n) { return static_cast<int>(random_() % static_cast<std::uint32_t>(n)); }

  // Small and large values alike; both bounds now and then.
  double within(const Range& range) {
    const int kind = pick(4);
    if (kind == 0 && !range.low_open) return range.low;
    if (kind == 1 && !range.high_open) return range.high;
    const double u = (random_() % 999'999 + 0.5) / 1e6;
    if (kind == 2) return range.low + u * (range.high - range.low);
    return std::min(range.high, range.low + u * std::min(range.high - range.low, 100.0));
  }

  std::string text() {
    static const std::vector<std::string> parts{"runs", "/",  " ", "a\"b", "\\", "${HOME}", "ü", "null", "-",
                                                "#",    ": ", "'", "{",    "[",  "\t",      "0", "&",    "*",
                                                "!",    "%",  "@", "`",    "~",  ",",       "|"};
    std::string made = parts[static_cast<std::size_t>(pick(3))].substr(0, 1) + "x";
    if (pick(2) == 0) made.clear();
    for (int n = 1 + pick(5); n > 0; --n)
      made += parts[static_cast<std::size_t>(pick(static_cast<int>(parts.size())))];
    return made[0] == '~' ? "x" + made : made;
  }

  void set(const Option& o, const Member<std::int64_t>& m) {
    m.set(config_, static_cast<std::int64_t>(within(o.range)));
  }
  void set(const Option& o, const Member<double>& m) {
    const double value = within(o.range);
    m.set(config_, o.type == OptionType::seconds ? std::round(value * 1000) / 1000 : value);
  }
  void set(const Option&, const Member<bool>& m) { m.set(config_, pick(2) == 0); }
  void set(const Option& o, const Member<int>& m) { m.set(config_, pick(static_cast<int>(o.words.size()))); }
  void set(const Option&, const Member<ConfigPath>& m) { m.set(config_, {text()}); }
  void set(const Option& o, const Member<std::vector<ConfiguredSource>>& m) {
    std::vector<ConfiguredSource> sources;
    for (int n = pick(4) + (o.required ? 1 : 0); n > 0; --n)
      sources.push_back({{text()}, pick(2) == 0 ? 1.0 : (pick(1000) + 1) / 7.0});
    m.set(config_, sources);
  }

  std::mt19937 random_;
  RunConfig config_;
};

TEST(Config, EveryConfigurationReadsBackAsItWasWritten) {
  RandomConfigs configs(20240817);
  std::set<std::string> different;
  for (int i = 0; i < 2000; ++i) {
    const RunConfig config = configs.next();
    const std::string yaml = config_to_yaml(config);
    ASSERT_EQ(parse_saved_config(yaml, "saved.yaml"), config) << yaml;
    const std::string changed = changed_to_yaml(config);
    ASSERT_EQ(parse_saved_config(changed, "saved.yaml"), config) << changed;
    for (const auto& option : option_table())
      if (write_option(option, config) != write_option(option, RunConfig{})) different.insert(option.path);
  }
  EXPECT_EQ(different.size(), option_table().size())
      << "a key was never tried with another value than its default";
}

TEST(Config, DefaultsAreAllowedValues) {
  for (const auto& option : option_table()) {
    if (option.required) continue;
    RunConfig config = minimal();
    ConfigProblems problems;
    const auto node = parse_yaml(write_option(option, RunConfig{}), "default", false, problems);
    EXPECT_TRUE(read_option(option, node, config).empty()) << option.path;
  }
}

TEST(Config, EveryKeyBelongsToASectionAndExplainsItself) {
  std::set<std::string> sections, paths;
  for (const auto& section : option_sections()) sections.insert(section.name);
  for (const auto& option : option_table()) {
    EXPECT_TRUE(sections.contains(option.section())) << option.path;
    EXPECT_TRUE(paths.insert(option.path).second) << option.path;
    EXPECT_FALSE(option.help.empty()) << option.path;
    EXPECT_FALSE(option.help.ends_with(".")) << option.path;
    EXPECT_EQ(config_help().find("  " + option.path + " [") != std::string::npos, !option.hidden)
        << option.path;
    EXPECT_EQ(suggest_option(option.path) == option.path, !option.hidden) << option.path;
  }
}

struct Comma : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

TEST(Config, TheLocaleChangesNothing) {
  const std::string expected = config_to_yaml(with({"optimizer.lr=1.5e-4", "train.steps=1.25M"}));
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Comma));
  const RunConfig c = with({"optimizer.lr=1.5e-4", "train.steps=1.25M"});
  const std::string yaml = config_to_yaml(c);
  const RunConfig again = parse_saved_config(yaml, "saved.yaml");
  std::locale::global(before);
  EXPECT_EQ(c.optimizer.lr, 1.5e-4);
  EXPECT_EQ(c.train.steps, 1'250'000);
  EXPECT_EQ(yaml, expected);
  EXPECT_EQ(again, c);
}

TEST(Config, TheReferencePageIsUpToDate) {
  std::ifstream file(LAPIDARY_SOURCE_DIR "/docs/configuration.md", std::ios::binary);
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_EQ(page.str(), config_reference()) << "docs/configuration.md differs from the option table: "
                                               "lapidary config reference > docs/configuration.md";
}

}  // namespace
}  // namespace lapidary
