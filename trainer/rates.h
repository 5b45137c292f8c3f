// How fast devices have been measured to do what a training step consists of: the ground of a forecast.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

// Kinds beside those of operations (OpWork::kind, whose rates are FLOP/s where the kind is bound by matrix
// products, else bytes/s).
inline constexpr const char* kRateBetween = "between operations";    ///< operations/s that start
inline constexpr const char* kRateOffloaded = "AdamW over the bus";  ///< bytes/s of an offloaded optimizer
// "all-gather", "reduce-scatter", "all-reduce": bytes/s that a rank sends.

/// What one measurement found: a device doing the steps of one situation.
struct RateSet {
  std::string device;       ///< "NVIDIA H200"; as device_name() makes it
  std::string type;         ///< of weights and activations: "bf16"
  int ranks = 1;            ///< of one node: with several, communication took part of the device
  std::int64_t tokens = 0;  ///< of a micro-batch; 0: collectives alone
  std::string source;       ///< what measured it
  std::map<std::string, double> rates{};  ///< by kind
};

/// A Backend's description without what differs between equal devices.
std::string device_name(std::string_view description);

/// Measured on the project's own cards; docs/performance.md says how.
const std::vector<RateSet>& built_in_rates();

/// One set from its JSON text; `where` begins every message.
RateSet parse_rate_set(std::string_view text, const std::string& where);

/// A file that benchmarks wrote: one JSON object a line. Throws Error naming file, line and what is wrong.
std::vector<RateSet> read_rates(const std::string& path);
/// Adds a measurement to the file, which is made where there is none. Kinds measured in the same situation
/// before are replaced.
void save_rates(const std::string& path, const RateSet& measured);

}  // namespace lapidary
