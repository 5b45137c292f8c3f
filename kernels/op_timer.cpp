#include "kernels/op_timer.h"

#include <algorithm>
#include <utility>

namespace lapidary {

void OpTimer::begin(const Stream& stream, const OpWork& work) {
  if (depth_++ > 0) return;
  intervals_.push_back({work, stream.backend().record_timed(stream), {}});
}

void OpTimer::end(const Stream& stream) {
  if (--depth_ > 0) return;
  intervals_.back().to = stream.backend().record_timed(stream);
}

void OpTimer::add(const OpWork& work, double seconds) {
  const auto [at, fresh] = lines_.try_emplace(work.label, Line{work, 0, 0});
  Line& line = at->second;
  if (!fresh) {
    line.work.flops += work.flops;
    line.work.bytes += work.bytes;
  }
  ++line.count;
  line.seconds += seconds;
}

void OpTimer::count(const OpWork& work) {
  const double seconds = forecasts() ? forecast_.operation(work) : 0;
  clock_ += seconds;
  add(work, seconds);
}

std::vector<OpTimer::Line> OpTimer::collect(const Stream& stream) {
  stream.backend().synchronize(stream);
  for (const Interval& i : intervals_) add(i.work, stream.backend().seconds_between(i.from, i.to));
  intervals_.clear();
  std::vector<Line> out;
  for (auto& [label, line] : std::exchange(lines_, {})) out.push_back(std::move(line));
  std::ranges::stable_sort(out, std::greater{}, &Line::seconds);
  return out;
}

double OpTimer::transfer_seconds(const std::string& collective, double bytes) const {
  return forecast_.transfer ? forecast_.transfer(collective, bytes) : 0;
}

void OpTimer::wait_until(double end) {
  if (end <= clock_) return;
  waited_ += end - clock_;
  clock_ = end;
}

}  // namespace lapidary
