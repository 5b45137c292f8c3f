#include "trainer/loss_curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <regex>
#include <sstream>

#include "kernels/error.h"

namespace lapidary {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

// Tags are closed, and no coordinate is anything but a number.
void expect_well_formed(const std::string& svg) {
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-z]+)([^>]*?)(/?)>");
  for (auto it = std::sregex_iterator(svg.begin(), svg.end(), tag); it != std::sregex_iterator(); ++it) {
    if ((*it)[1].length() > 0) {
      ASSERT_FALSE(open.empty());
      EXPECT_EQ(open.back(), (*it)[2]);
      open.pop_back();
    } else if ((*it)[4].length() == 0) {
      open.push_back((*it)[2]);
    }
  }
  EXPECT_TRUE(open.empty());
  const std::regex coordinate(" (?:x|y|x1|x2|y1|y2|cx|cy)=\"([^\"]*)\"");
  for (auto it = std::sregex_iterator(svg.begin(), svg.end(), coordinate); it != std::sregex_iterator(); ++it)
    EXPECT_TRUE(std::regex_match((*it)[1].str(), std::regex("-?[0-9]+(\\.[0-9]+)?"))) << (*it)[0];
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("http"), svg.find("http://www.w3.org/2000/svg"));  // nothing is loaded from elsewhere
}

MetricsHistory falling(int steps) {
  MetricsHistory history;
  history.starts = {{0, 0}};
  for (int step = 1; step <= steps; ++step) history.train.push_back({step, 2 + 3 * std::exp(-step / 50.0)});
  for (int step = 10; step <= steps; step += 10)
    history.validation.push_back({step, 2.2 + 3 * std::exp(-step / 50.0)});
  return history;
}

// The drawn heights, smaller is higher up.
std::vector<double> heights(const std::string& svg) {
  std::smatch points;
  EXPECT_TRUE(std::regex_search(svg, points, std::regex("polyline points=\"([^\"]*)\"")));
  std::vector<double> read;
  std::istringstream stream(points[1].str());
  double x = 0, y = 0;
  for (char comma = 0; stream >> x >> comma >> y;) read.push_back(y);
  return read;
}

TEST(LossCurve, BothCurvesAreDrawnAndNamed) {
  const std::string svg = draw_loss_curve(falling(200), "a <run> & \"more\"");
  expect_well_formed(svg);
  EXPECT_EQ(count(svg, "<polyline"), 2u);
  EXPECT_NE(svg.find("a &lt;run&gt; &amp; &quot;more&quot;"), std::string::npos);
  EXPECT_NE(svg.find("training loss, last 2.05"), std::string::npos);
  EXPECT_NE(svg.find("held-out loss, last 2.25"), std::string::npos);
  const auto drawn = heights(svg);
  EXPECT_EQ(drawn.size(), 200u);
  EXPECT_TRUE(std::is_sorted(drawn.begin(), drawn.end()));  // a falling loss goes down the page
}

TEST(LossCurve, RestartsAreMarkedAndListed) {
  auto history = falling(100);
  history.starts.push_back({40, 12});
  history.starts.push_back({80, 0});
  std::string svg = draw_loss_curve(history, "run");
  expect_well_formed(svg);
  EXPECT_EQ(count(svg, "stroke-dasharray"), 2u);
  EXPECT_NE(svg.find("restart 1 after step 40, 12 steps done again"), std::string::npos);
  EXPECT_NE(svg.find("restart 2 after step 80<"), std::string::npos);
  for (int i = 0; i < 20; ++i) history.starts.push_back({90, 0});
  svg = draw_loss_curve(history, "run");
  expect_well_formed(svg);
  EXPECT_NE(svg.find("and 12 more"), std::string::npos);
}

TEST(LossCurve, LossesThatAreNotFiniteAreGaps) {
  auto history = falling(100);
  history.train[50].loss = kNan;
  history.train[70].loss = std::numeric_limits<double>::infinity();
  const std::string svg = draw_loss_curve(history, "run");
  expect_well_formed(svg);
  EXPECT_EQ(count(svg, "<polyline"), 4u);
  EXPECT_NE(svg.find(", 2 not finite"), std::string::npos);
}

TEST(LossCurve, OnePointAndEqualPointsAndExtremePoints) {
  for (const double loss : {0.0, 5.0, -2.0, 1e-9, 1e300}) {
    MetricsHistory one;
    one.train.push_back({1, loss});
    const std::string svg = draw_loss_curve(one, "run");
    expect_well_formed(svg);
    EXPECT_EQ(count(svg, "<circle"), 1u);
    one.train.push_back({2, loss});
    expect_well_formed(draw_loss_curve(one, "run"));
  }
  MetricsHistory zero;
  zero.validation.push_back({0, 5.5});
  expect_well_formed(draw_loss_curve(zero, "before the first step"));
}

TEST(LossCurve, LongRunsKeepTheirPeaksAndStaySmall) {
  MetricsHistory history = falling(200'000);
  history.train[123'456].loss = 40;
  const std::string svg = draw_loss_curve(history, "run");
  EXPECT_LT(svg.size(), 100'000u);
  const auto drawn = heights(svg);
  EXPECT_LT(*std::min_element(drawn.begin() + 10, drawn.end()),
            drawn.front());  // the spike towers over the start
}

TEST(LossCurve, NothingToDrawIsAnError) {
  EXPECT_THROW(draw_loss_curve({}, "run"), Error);
  MetricsHistory nans;
  nans.train = {{1, kNan}, {2, kNan}};
  EXPECT_THROW(draw_loss_curve(nans, "run"), Error);
  const auto folder = std::filesystem::path(testing::TempDir()) / "lapidary_loss_curve";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  const auto metrics = (folder / "metrics.jsonl").string(), svg = (folder / "loss.svg").string();
  std::ofstream(metrics) << "";
  EXPECT_THROW(write_loss_curve(metrics, svg), Error);
  EXPECT_THROW(write_loss_curve((folder / "none.jsonl").string(), svg), Error);
  EXPECT_FALSE(std::filesystem::exists(svg));
  std::ofstream(metrics) << "{\"event\":\"step\",\"step\":1,\"loss\":3}\n";
  write_loss_curve(metrics, svg);
  write_loss_curve(metrics, svg);  // replaces
  EXPECT_GT(std::filesystem::file_size(svg), 500u);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace lapidary
