#include "trainer/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/error.h"
#include "kernels/number_text.h"
#include "trainer/evaluate.h"
#include "trainer/metrics_history.h"

namespace lapidary {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class MetricsTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ =
        std::filesystem::path(testing::TempDir()) /
        (std::string("metrics_") + testing::UnitTest::GetInstance()->current_test_info()->name() + ".jsonl");
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }

  MetricsOptions options(std::int64_t start_step) const {
    MetricsOptions made;
    made.path = path_.string();
    made.total_steps = 100;
    made.start_step = start_step;
    made.device = "cpu";
    return made;
  }

  static StepRecord record(std::int64_t step, double loss) {
    StepRecord made;
    made.step = step;
    made.loss = loss;
    made.grad_norm = 0.5;
    made.lr = 1e-5;
    made.tokens = 4096;
    made.target_tokens = 4000;
    made.seconds = 0.5;
    made.data_wait_seconds = 0.05;
    made.flops = 1e12;
    return made;
  }

  std::vector<nlohmann::json> lines() const {
    std::ifstream file(path_);
    std::vector<nlohmann::json> read;
    for (std::string line; std::getline(file, line);) read.push_back(nlohmann::json::parse(line));
    return read;
  }

  void append(const std::string& text) const {
    std::ofstream(path_, std::ios::app | std::ios::binary) << text;
  }

  std::filesystem::path path_;
  std::ostringstream console_;
};

TEST_F(MetricsTest, EveryLineIsAnObjectThatHoldsTheExactNumbers) {
  Metrics metrics(options(0), console_);
  auto r = record(1, 0.1 + 0.2);
  r.data_hash = 0xabcdef;
  metrics.step(r);
  metrics.validation(1, {.loss = 5.25, .nll = 5, .accuracy = 0.25, .entropy = 4.5, .tokens = 777}, 2.5);
  metrics.checkpoint(1, "run/step-1", 0.25, 1.5);
  metrics.end(1, "finished");
  const auto read = lines();  // before the file is closed: every line is already there
  ASSERT_EQ(read.size(), 5u);
  EXPECT_EQ(read[0]["event"], "start");
  EXPECT_EQ(read[0]["restarts"], 0);
  EXPECT_EQ(read[1]["loss"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(read[1]["tokens_per_second"], 8192);
  EXPECT_EQ(read[1]["data_hash"], "0000000000abcdef");
  EXPECT_FALSE(read[1].contains("mfu"));
  EXPECT_EQ(read[2]["validation_loss"], 5.25);
  EXPECT_EQ(read[2]["nll"], 5);
  EXPECT_EQ(read[2]["accuracy"], 0.25);
  EXPECT_EQ(read[2]["entropy"], 4.5);
  EXPECT_EQ(read[2]["target_tokens"], 777);
  EXPECT_EQ(read[3]["path"], "run/step-1");
  EXPECT_EQ(read[4]["reason"], "finished");
  EXPECT_EQ(read[4]["step_seconds"], 0.5);
  EXPECT_GE(read[4]["seconds"].get<double>(), 0);
  EXPECT_NE(console_.str().find("step 1: finished, 0s after the start"), std::string::npos) << console_.str();
  for (const auto& line : read) {
    EXPECT_TRUE(line["event"].is_string() && line["step"].is_number_integer() && line["time"].is_number());
  }
}

TEST_F(MetricsTest, ShareOfPeakIsGivenWhereThePeakIsKnown) {
  auto with_peak = options(0);
  with_peak.peak_flops = 8e12;
  Metrics metrics(with_peak, console_);
  metrics.step(record(1, 3));
  EXPECT_EQ(lines()[1]["mfu"], 0.25);  // 1e12 in 0.5 s of 8e12 a second
  EXPECT_NE(console_.str().find("25.0%"), std::string::npos);
}

TEST_F(MetricsTest, NumbersThatAreNotFiniteAreNull) {
  Metrics metrics(options(0), console_);
  metrics.step(record(1, kNan));
  metrics.step(record(2, std::numeric_limits<double>::infinity()));
  EXPECT_TRUE(lines()[1]["loss"].is_null());
  const auto history = read_metrics(path_.string());
  ASSERT_EQ(history.train.size(), 2u);
  EXPECT_TRUE(std::isnan(history.train[0].loss) && std::isnan(history.train[1].loss));
}

TEST_F(MetricsTest, AResumeTakesBackWhatCameAfterIt) {
  {
    Metrics first(options(0), console_);
    for (int step = 1; step <= 8; ++step) first.step(record(step, 10 - step));
    first.validation(5, {.loss = 5.5, .tokens = 1}, 1);
    first.validation(8, {.loss = 4.5, .tokens = 1}, 1);
  }
  {
    Metrics second(options(5), console_);
    second.step(record(6, 106));
    second.step(record(7, 107));
  }
  const auto history = read_metrics(path_.string());
  ASSERT_EQ(history.train.size(), 7u);
  for (int step = 1; step <= 7; ++step) {
    EXPECT_EQ(history.train[static_cast<std::size_t>(step - 1)].step, step);
    EXPECT_EQ(history.train[static_cast<std::size_t>(step - 1)].loss, step <= 5 ? 10 - step : 100 + step);
  }
  ASSERT_EQ(history.validation.size(), 1u);
  ASSERT_EQ(history.starts.size(), 2u);
  EXPECT_EQ(history.starts[1].step, 5);
  EXPECT_EQ(history.starts[1].lost_steps, 3);
  Metrics third(options(0), console_);  // from the beginning again, in the same folder
  EXPECT_TRUE(read_metrics(path_.string()).train.empty());
  const auto read = lines();
  EXPECT_EQ(read.size(), 1u + 8 + 2 + 1 + 2 + 1);  // nothing was removed
  EXPECT_EQ(read.back()["restarts"], 2);
  EXPECT_EQ(read.back()["lost_steps"], 7);
}

TEST_F(MetricsTest, AKilledRunsHalfLineIsIgnoredAndThenCutOff) {
  {
    Metrics metrics(options(0), console_);
    metrics.step(record(1, 1));
    metrics.step(record(2, 2));
  }
  const std::string whole = [&] {
    std::stringstream text;
    text << std::ifstream(path_).rdbuf();
    return text.str();
  }();
  // Killed after any byte of the last line.
  const auto last_line = whole.rfind('\n', whole.size() - 2) + 1;
  for (std::size_t size = last_line; size <= whole.size(); ++size) {
    std::ofstream(path_, std::ios::binary) << whole.substr(0, size);
    EXPECT_EQ(read_metrics(path_.string()).train.size(), size == whole.size() ? 2u : 1u);
    Metrics resumed(options(1), console_);
    resumed.step(record(2, 22));
    const auto read = lines();  // throws on a line that is not JSON
    EXPECT_EQ(read.back()["loss"], 22);
    EXPECT_EQ(read_metrics(path_.string()).damaged_lines, 0);
  }
  append(std::string(10'000, 'x'));  // longer than any block that is searched for the end
  Metrics resumed(options(2), console_);
  EXPECT_EQ(lines().back()["event"], "start");
}

TEST_F(MetricsTest, LinesThatAreNoRecordAreCountedAndSkipped) {
  append(
      "{\"event\":\"step\",\"step\":1,\"loss\":3}\n\n[1,2]\n{\"event\":\"step\"}\n{\"event\":5,\"step\":1}"
      "\n\xff\xfe\n"
      "{\"event\":\"step\",\"step\":\"2\",\"loss\":3}\n{\"event\":\"news\",\"step\":2}\n"
      "{\"event\":\"step\",\"step\":2,\"loss\":\"low\"}\n");
  const auto history = read_metrics(path_.string());
  EXPECT_EQ(history.train.size(), 2u);
  EXPECT_TRUE(std::isnan(history.train[1].loss));
  EXPECT_EQ(history.damaged_lines, 6);
}

TEST_F(MetricsTest, MissingAndUnwritableFilesAreErrors) {
  EXPECT_THROW(read_metrics("/nowhere/metrics.jsonl"), Error);
  auto nowhere = options(0);
  nowhere.path = "/nowhere/metrics.jsonl";
  EXPECT_THROW(Metrics(nowhere, console_), Error);
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(ConsoleTest, ColumnsAreAlignedWhateverTheNumbers) {
  std::ostringstream out;
  Console console(out, 2000, true);
  for (const double value : {0.0, 1.23456789, 12.5, 999.99, 12345.0, 1e300, kNan, -0.5}) {
    ConsoleRow row{1999, value, value, 1e-5, 1234567.8, 0.4123, 0.001, 86400.0 * 3};
    console.row(row);
    row.mfu.reset();
    row.seconds_left.reset();
    console.row(row);
  }
  const auto lines = split(out.str());
  ASSERT_EQ(lines.size(), 17u);
  for (const auto& line : lines) EXPECT_EQ(line.size(), lines[0].size()) << line;
  EXPECT_EQ(lines[0], "     step      loss      norm        lr     tokens/s     MFU    data    left");
  EXPECT_EQ(lines[3], "1999/2000    1.2346    1.2346  1.00e-05    1,234,568   41.2%    0.1%   3d00h");
  EXPECT_EQ(out.str().find('\r'), std::string::npos);
}

TEST(ConsoleTest, TheHeaderComesBack) {
  std::ostringstream out;
  Console console(out, 100, false);
  for (int step = 1; step <= 41; ++step) console.row({step});
  console.note("saved");
  console.row({42});
  const auto lines = split(out.str());
  ASSERT_EQ(lines.size(), 46u);
  for (const std::size_t header : {0u, 41u, 44u})
    EXPECT_NE(lines[header].find("tokens/s"), std::string::npos);
  EXPECT_EQ(lines[0].find("MFU"), std::string::npos);
}

TEST(ConsoleTest, NumbersForPeople) {
  EXPECT_EQ(with_thousands(0), "0");
  EXPECT_EQ(with_thousands(999), "999");
  EXPECT_EQ(with_thousands(1000), "1,000");
  EXPECT_EQ(with_thousands(-123456), "-123,456");
  EXPECT_EQ(with_thousands(1234567), "1,234,567");
  EXPECT_EQ(format_duration(0.4), "0s");
  EXPECT_EQ(format_duration(59.6), "1m00s");
  EXPECT_EQ(format_duration(3725), "1h02m");
  EXPECT_EQ(format_duration(86400 * 2 + 3600 * 5), "2d05h");
  EXPECT_EQ(format_duration(-3), "0s");
}

TEST_F(MetricsTest, TimeLeftFollowsTheStepsAfterTheFirst) {
  Metrics metrics(options(0), console_);
  auto slow = record(1, 1);
  slow.seconds = 100;  // the first step warms up
  metrics.step(slow);
  metrics.step(record(2, 1));
  metrics.step(record(3, 1));
  const auto lines = split(console_.str());
  EXPECT_TRUE(lines[1].ends_with(" 2h45m")) << lines[1];   // 99 steps of 100 s
  EXPECT_TRUE(lines[3].ends_with("    49s")) << lines[3];  // 97 of half a second
}

}  // namespace
}  // namespace lapidary
