#include "trainer/loss_curve.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <limits>

#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/number_text.h"
#include "trainer/console.h"

namespace lapidary {
namespace {

using Points = std::vector<MetricsHistory::Point>;

// Pixels.
constexpr double kLeft = 70, kTop = 50, kWidth = 800, kHeight = 340, kLine = 18;
constexpr std::size_t kListedRestarts = 10;
constexpr const char* kTrainColor = "#2563a8";
constexpr const char* kValidationColor = "#c2410c";

std::string escape(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return escaped;
}

// 1, 2 or 5 times a power of ten, so that about `wanted` of them cover `span`.
double tick_distance(double span, int wanted) {
  const double raw = span / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (raw <= factor * power) return factor * power;
  return 10.0 * power;
}

struct Axis {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  double share(double value) const { return (value - low) / (high - low); }
  std::vector<double> ticks(int wanted) const {
    std::vector<double> at;
    const double distance = tick_distance(high - low, wanted);
    for (double k = std::ceil(low / distance); k * distance <= high; ++k) at.push_back(k * distance);
    return at;
  }
};

class LossCurve {
 public:
  explicit LossCurve(const MetricsHistory& history) : history_(history) {
    for (const Points* points : {&history.train, &history.validation}) {
      for (const auto& point : *points) {
        x_.include(static_cast<double>(point.step));
        if (std::isfinite(point.loss)) y_.include(point.loss);
      }
    }
    require(y_.low <= y_.high, "there is no finite loss to draw");
    x_.low = 0;
    x_.high = std::max(x_.high, 1.0);
    const double margin = std::max({0.05 * (y_.high - y_.low), 1e-3 * std::abs(y_.high), 1e-6});
    y_.low -= margin;
    y_.high += margin;
  }

  std::string draw(const std::string& title) {
    axes();
    curve(history_.train, kTrainColor, 1.2, false);
    curve(history_.validation, kValidationColor, 2.0, true);
    const double below = restarts(kTop + kHeight + 55);
    legend();
    const double width = kLeft + kWidth + 30;
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
        "height=\"{1:.0f}\" "
        "font-family=\"sans-serif\" font-size=\"12\">\n"
        "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        "<text x=\"{2:.0f}\" y=\"22\" font-size=\"15\">{3}</text>\n{4}</svg>\n",
        width, below + 10, kLeft, escape(title), body_);
  }

 private:
  double x(double step) const { return kLeft + x_.share(step) * kWidth; }
  double y(double loss) const { return kTop + (1 - y_.share(loss)) * kHeight; }

  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(body_), format, std::forward<Args>(args)...);
    body_ += '\n';
  }

  void axes() {
    for (const double loss : y_.ticks(6)) {
      add("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#e0e0e0\"/>", kLeft,
          y(loss), kLeft + kWidth, y(loss));
      add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:.6g}</text>", kLeft - 8, y(loss) + 4, loss);
    }
    for (const double step : x_.ticks(8)) {
      if (step != std::floor(step)) continue;
      add("<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" stroke=\"#606060\"/>", x(step),
          kTop + kHeight, kTop + kHeight + 5);
      add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", x(step), kTop + kHeight + 19,
          with_thousands(static_cast<std::int64_t>(step)));
    }
    add("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#606060\"/>", kLeft, kTop,
        kWidth, kHeight);
    add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">step</text>", kLeft + kWidth / 2,
        kTop + kHeight + 36);
    add("<text x=\"16\" y=\"{0:.1f}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {0:.1f})\">loss, nats "
        "a "
        "token</text>",
        kTop + kHeight / 2);
  }

  // Runs of finite points become lines; a point between two gaps, or alone, a dot.
  void curve(const Points& points, const char* color, double width, bool dots) {
    std::vector<std::pair<double, double>> run;
    const auto flush = [&] {
      if (run.size() > 1) {
        std::string path;
        for (const auto& [px, py] : thin(run)) path += fmt::format("{:.1f},{:.1f} ", px, py);
        add("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"/>", path, color, width);
      }
      if (run.size() == 1 || (dots && run.size() <= 100))
        for (const auto& [px, py] : run)
          add("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>", px, py, color);
      run.clear();
    };
    for (const auto& point : points) {
      if (std::isfinite(point.loss)) {
        run.emplace_back(x(static_cast<double>(point.step)), y(point.loss));
      } else {
        flush();
      }
    }
    flush();
  }

  // At most two points a pixel column: where the curve is lowest and highest.
  static std::vector<std::pair<double, double>> thin(const std::vector<std::pair<double, double>>& run) {
    if (run.size() <= 2 * static_cast<std::size_t>(kWidth)) return run;
    std::vector<std::pair<double, double>> kept;
    for (auto begin = run.begin(); begin != run.end();) {
      const double column = std::floor(begin->first);
      const auto end =
          std::find_if(begin, run.end(), [&](const auto& p) { return std::floor(p.first) != column; });
      auto [low, high] =
          std::minmax_element(begin, end, [](const auto& a, const auto& b) { return a.second < b.second; });
      if (high < low) std::swap(low, high);  // in order of steps
      kept.push_back(*low);
      if (high != low) kept.push_back(*high);
      begin = end;
    }
    return kept;
  }

  // Marks in the plot and lines of text below it; where the next line would go.
  double restarts(double baseline) {
    std::size_t listed = 0;
    for (std::size_t i = 1; i < history_.starts.size(); ++i) {
      const auto& start = history_.starts[i];
      const double at = x(std::min(static_cast<double>(start.step), x_.high));
      add("<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\" stroke=\"#909090\" stroke-dasharray=\"4 "
          "3\"/>",
          at, kTop, kTop + kHeight);
      if (++listed > kListedRestarts) continue;
      const auto again = start.lost_steps > 0 ? fmt::format(", {} steps done again", start.lost_steps) : "";
      add("<text x=\"{}\" y=\"{}\">restart {} after step {}{}</text>", kLeft, baseline, i,
          with_thousands(start.step), again);
      baseline += kLine;
    }
    if (listed > kListedRestarts) {
      add("<text x=\"{}\" y=\"{}\">and {} more</text>", kLeft, baseline, listed - kListedRestarts);
      baseline += kLine;
    }
    return baseline;
  }

  static std::string describe(const char* name, const Points& points) {
    const auto gaps =
        std::count_if(points.begin(), points.end(), [](const auto& p) { return !std::isfinite(p.loss); });
    const auto last =
        std::find_if(points.rbegin(), points.rend(), [](const auto& p) { return std::isfinite(p.loss); });
    std::string text = name;
    if (last != points.rend()) text += fmt::format(", last {:.4f}", last->loss);
    if (gaps > 0) text += fmt::format(", {} not finite", gaps);
    return text;
  }

  void legend() {
    double at = kLeft;
    for (const auto& [points, color, name] :
         {std::tuple{&history_.train, kTrainColor, "training loss"},
          std::tuple{&history_.validation, kValidationColor, "held-out loss"}}) {
      if (points->empty()) continue;
      add("<line x1=\"{0:.1f}\" y1=\"36\" x2=\"{1:.1f}\" y2=\"36\" stroke=\"{2}\" stroke-width=\"3\"/>", at,
          at + 24, color);
      add("<text x=\"{:.1f}\" y=\"40\">{}</text>", at + 30, describe(name, *points));
      at += 330;
    }
    if (history_.starts.size() > 1)
      add("<text x=\"{:.1f}\" y=\"40\" fill=\"#606060\">dashed: {} restarts</text>", at,
          history_.starts.size() - 1);
  }

  const MetricsHistory& history_;
  Axis x_, y_;
  std::string body_;
};

}  // namespace

std::string draw_loss_curve(const MetricsHistory& history, const std::string& title) {
  return LossCurve(history).draw(title);
}

void write_loss_curve(const std::string& metrics_path, const std::string& svg_path) {
  const MetricsHistory history = read_metrics(metrics_path);
  require(!history.train.empty() || !history.validation.empty(), "{}: there is no loss to draw yet",
          metrics_path);
  const auto run = std::filesystem::absolute(metrics_path).parent_path().filename().string();
  std::string svg;
  try {
    svg = draw_loss_curve(history, run);
  } catch (const Error& e) {
    fail("{}: {}", metrics_path, e.what());
  }
  publish_text_file(svg_path, svg);
}

}  // namespace lapidary
