// The description of a model's parameters that drives allocation, sharding, initialisation, decay groups,
// import and checkpoints, and the layout of a unit of them in one flat buffer.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lapidary {

enum class Init : std::uint8_t { normal, ones, zeros };

struct ParameterSpec {
  std::string name;  ///< on disk, as Hugging Face names it
  std::vector<std::int64_t> shape;
  Init init = Init::normal;
  double std = 0.02;      ///< of Init::normal
  bool decay = true;      ///< AdamW's weight decay applies: two or more dimensions
  bool trainable = true;  ///< false: loaded and saved, never updated (layer_scalar)
  int unit = 0;           ///< the unit that is gathered and released together
  bool joined = false;    ///< lies directly behind the parameter before it, so that both form one matrix
  std::int64_t numel() const;
};

/// What a unit looks like in memory: its parameters end to end, each (unless joined) on a multiple of
/// kAlignment elements. Offsets depend on the parameters alone, never on the number of ranks; only the
/// padding at the end does.
struct UnitLayout {
  static constexpr std::int64_t kAlignment = 128;
  struct Entry {
    int parameter = 0;        ///< index into the parameter table
    std::int64_t offset = 0;  ///< elements from the unit's start
    std::int64_t count = 0;
  };
  std::string name;  ///< for messages: "layer 7"
  std::vector<Entry> entries;
  std::int64_t numel = 0;  ///< up to the end of the last parameter, rounded up to kAlignment

  /// Elements each of `ranks` holds: equal on all ranks, a multiple of kAlignment; ranks * shard >= numel.
  std::int64_t shard(int ranks) const;
};

/// A run of one parameter's elements (row-major) inside a rank's flat shard.
struct ShardSlice {
  int parameter = 0;
  std::int64_t parameter_begin = 0;  ///< first element, counted in the whole parameter
  std::int64_t count = 0;
  std::int64_t offset = 0;  ///< where it lies in the shard
};

UnitLayout make_unit_layout(const std::vector<ParameterSpec>& parameters, int unit, const std::string& name);
/// The slices of the shard that rank `rank` of `ranks` holds.
std::vector<ShardSlice> shard_slices(const UnitLayout& layout, int rank, int ranks);

}  // namespace lapidary
