// Where every parameter lies: which unit, where in it, and its tensor inside a unit's flat memory.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "parallel/parameters.h"

namespace lapidary {

class UnitTable {
 public:
  /// One unit per name; parameters of other units (the vocabulary table's -1) are left out.
  UnitTable(const std::vector<ParameterSpec>& parameters, const std::vector<std::string>& unit_names);

  int units() const { return static_cast<int>(layouts_.size()); }
  const UnitLayout& layout(int unit) const { return layouts_[static_cast<std::size_t>(unit)]; }
  const std::string& name(int unit) const { return layout(unit).name; }
  /// Elements of the units before this one: independent of the number of ranks.
  std::int64_t first_index(int unit) const;
  /// The largest unit when each is cut into `ranks` equal shards, all shards together.
  std::int64_t largest(int ranks) const;

  /// The unit that a parameter belongs to; throws Error if it belongs to none.
  int unit_of(int parameter) const;
  /// The parameter in its own shape, inside the whole unit's memory.
  Tensor view(const Tensor& unit, int parameter) const;
  /// `count` joined parameters beginning with `first` as one matrix [sum of rows, columns].
  Tensor view(const Tensor& unit, int first, int count) const;
  /// The stretches of a unit's `whole` memory that belong to no parameter of two or more dimensions: vectors,
  /// and the padding between and behind.
  std::vector<Tensor> between_matrices(const Tensor& whole, int unit) const;

 private:
  std::vector<ParameterSpec> parameters_;
  std::vector<UnitLayout> layouts_;
  std::vector<std::int64_t> offsets_;  ///< of every parameter in its unit
};

}  // namespace lapidary
