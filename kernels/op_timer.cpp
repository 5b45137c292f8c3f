#include "kernels/op_timer.h"

#include <algorithm>

namespace lapidary {

void OpTimer::begin(const Stream& stream, const std::string& label, double flops) {
  if (depth_++ > 0) return;
  intervals_.push_back({label, flops, stream.backend().record_timed(stream), {}});
}

void OpTimer::end(const Stream& stream) {
  if (--depth_ > 0) return;
  intervals_.back().to = stream.backend().record_timed(stream);
}

std::vector<OpTimer::Line> OpTimer::collect(const Stream& stream) {
  stream.backend().synchronize(stream);
  std::map<std::string, Line> lines;
  for (const Interval& i : intervals_) {
    Line& line = lines[i.label];
    line.label = i.label;
    ++line.count;
    line.seconds += stream.backend().seconds_between(i.from, i.to);
    line.flops += i.flops;
  }
  intervals_.clear();
  std::vector<Line> out;
  for (auto& [label, line] : lines) out.push_back(std::move(line));
  std::ranges::sort(out, std::greater{}, &Line::seconds);
  return out;
}

}  // namespace lapidary
