#include "parallel/unit_table.h"

#include <algorithm>

#include "kernels/check.h"

namespace lapidary {

namespace {

Tensor with_shape(const Tensor& flat, const std::vector<std::int64_t>& shape) {
  switch (shape.size()) {
    case 1:
      return flat;
    case 2:
      return flat.reshape({shape[0], shape[1]});
    case 3:
      return flat.reshape({shape[0], shape[1], shape[2]});
    default:
      return flat.reshape({shape[0], shape[1], shape[2], shape[3]});
  }
}

}  // namespace

UnitTable::UnitTable(const std::vector<ParameterSpec>& parameters, const std::vector<std::string>& unit_names)
    : parameters_(parameters), offsets_(parameters.size(), 0) {
  require(!unit_names.empty(), "a model needs at least one unit of parameters");
  for (const ParameterSpec& spec : parameters) {
    require(!spec.shape.empty() && spec.shape.size() <= 4, "{} has {} dimensions, expected 1 to 4", spec.name,
            spec.shape.size());
    require(spec.unit < static_cast<int>(unit_names.size()), "{} belongs to unit {} of {}", spec.name,
            spec.unit, unit_names.size());
  }
  for (const std::string& name : unit_names) {
    layouts_.push_back(make_unit_layout(parameters, units(), name));
    for (const auto& entry : layouts_.back().entries) {
      offsets_[static_cast<std::size_t>(entry.parameter)] = entry.offset;
    }
  }
}

std::int64_t UnitTable::first_index(int unit) const {
  std::int64_t index = 0;
  for (int before = 0; before < unit; ++before) index += layout(before).numel;
  return index;
}

std::int64_t UnitTable::largest(int ranks) const {
  std::int64_t most = 0;
  for (const UnitLayout& layout : layouts_) most = std::max(most, ranks * layout.shard(ranks));
  return most;
}

int UnitTable::unit_of(int parameter) const {
  require(parameter >= 0 && static_cast<std::size_t>(parameter) < parameters_.size(), "parameter {} of {}",
          parameter, parameters_.size());
  const ParameterSpec& spec = parameters_[static_cast<std::size_t>(parameter)];
  require(spec.unit >= 0, "{} belongs to no unit", spec.name);
  return spec.unit;
}

Tensor UnitTable::view(const Tensor& unit, int parameter) const {
  const ParameterSpec& spec = parameters_[static_cast<std::size_t>(parameter)];
  return with_shape(unit.flat_range(offsets_[static_cast<std::size_t>(parameter)], spec.numel()), spec.shape);
}

Tensor UnitTable::view(const Tensor& unit, int first, int count) const {
  const ParameterSpec& spec = parameters_[static_cast<std::size_t>(first)];
  require(count >= 1 && first + count <= static_cast<int>(parameters_.size()),
          "{} and {} parameters behind it: the table ends before", spec.name, count - 1);
  std::int64_t rows = spec.shape[0];
  for (int next = first + 1; next < first + count; ++next) {
    const ParameterSpec& joined = parameters_[static_cast<std::size_t>(next)];
    require(joined.joined, "{} is not joined to {}", joined.name, spec.name);
    rows += joined.shape[0];
  }
  const std::int64_t columns = spec.numel() / spec.shape[0];
  return unit.flat_range(offsets_[static_cast<std::size_t>(first)], rows * columns).reshape({rows, columns});
}

std::vector<Tensor> UnitTable::between_matrices(const Tensor& whole, int unit) const {
  std::vector<Tensor> out;
  std::int64_t end = 0;  // of the matrix before
  const auto add_up_to = [&](std::int64_t begin) {
    if (begin > end) out.push_back(whole.flat_range(end, begin - end));
  };
  for (const auto& entry : layout(unit).entries) {  // in the order of their offsets
    if (parameters_[static_cast<std::size_t>(entry.parameter)].shape.size() < 2) continue;
    add_up_to(entry.offset);
    end = entry.offset + entry.count;
  }
  add_up_to(whole.numel());
  return out;
}

}  // namespace lapidary
