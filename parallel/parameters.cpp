#include "parallel/parameters.h"

#include <algorithm>

#include "kernels/check.h"

namespace lapidary {

namespace {

std::int64_t round_up(std::int64_t n) {
  return (n + UnitLayout::kAlignment - 1) / UnitLayout::kAlignment * UnitLayout::kAlignment;
}

// A joined parameter continues the rows of the one before it: same unit, same columns.
void check_joined(const std::vector<ParameterSpec>& parameters, std::size_t index) {
  const ParameterSpec& spec = parameters[index];
  require(index > 0, "{} is joined, but no parameter comes before it", spec.name);
  const ParameterSpec& before = parameters[index - 1];
  require(before.unit == spec.unit, "{} is joined to {}, which lies in another unit ({}, not {})", spec.name,
          before.name, before.unit, spec.unit);
  const bool same_columns =
      spec.shape.size() == before.shape.size() && !spec.shape.empty() &&
      std::equal(spec.shape.begin() + 1, spec.shape.end(), before.shape.begin() + 1, before.shape.end());
  require(same_columns, "{} is joined to {}, whose rows are of another shape", spec.name, before.name);
}

}  // namespace

std::int64_t ParameterSpec::numel() const {
  std::int64_t n = 1;
  for (const std::int64_t extent : shape) n *= extent;
  return n;
}

std::int64_t UnitLayout::shard(int ranks) const {
  require(ranks >= 1, "{}: a unit is split among at least one rank, not {}", name, ranks);
  return round_up((numel + ranks - 1) / ranks);
}

UnitLayout make_unit_layout(const std::vector<ParameterSpec>& parameters, int unit, const std::string& name) {
  UnitLayout layout;
  layout.name = name;
  std::int64_t end = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const ParameterSpec& spec = parameters[i];
    if (spec.unit != unit) continue;
    require(spec.numel() > 0, "{}: a parameter needs at least one element", spec.name);
    if (spec.joined) {
      check_joined(parameters, i);
    } else {
      end = round_up(end);
    }
    layout.entries.push_back({static_cast<int>(i), end, spec.numel()});
    end += spec.numel();
  }
  require(!layout.entries.empty(), "{}: no parameter belongs to unit {}", name, unit);
  layout.numel = round_up(end);
  return layout;
}

std::vector<ShardSlice> shard_slices(const UnitLayout& layout, int rank, int ranks) {
  require(rank >= 0 && rank < ranks, "{}: rank {} of {}", layout.name, rank, ranks);
  const std::int64_t begin = rank * layout.shard(ranks);
  const std::int64_t end = begin + layout.shard(ranks);
  std::vector<ShardSlice> slices;
  for (const UnitLayout::Entry& entry : layout.entries) {
    const std::int64_t first = std::max(begin, entry.offset);
    const std::int64_t last = std::min(end, entry.offset + entry.count);
    if (first >= last) continue;
    slices.push_back({entry.parameter, first - entry.offset, last - first, first - begin});
  }
  return slices;
}

}  // namespace lapidary
