// How many tokens, and how many layers that keep more, still fit: the memory plan asked again with other
// sizes.
#include <algorithm>
#include <functional>

#include "trainer/plan.h"

namespace lapidary {

namespace {

/// The largest n of 1 to `most` whose need is at most `memory`, 0 where there is none. need() never falls and
/// is nearly a straight line, so that a few guesses along it find the place.
std::int64_t largest_that_fits(const std::function<std::size_t(std::int64_t)>& need, std::size_t memory,
                               std::int64_t most = std::int64_t{1} << 20) {
  std::int64_t low = 1, high = 0;  // fits, does not
  auto low_need = static_cast<double>(need(1)), high_need = 0.0;
  const auto limit = static_cast<double>(memory);
  if (low_need > limit) return 0;
  while (high == 0) {
    if (low == most) return low;
    const std::int64_t next = std::min(2 * low, most);
    const auto bytes = static_cast<double>(need(next));
    if (bytes > limit) {
      high = next, high_need = bytes;
    } else {
      low = next, low_need = bytes;
    }
  }
  for (bool halve = false; high - low > 1; halve = !halve) {
    const double share = halve ? 0.5 : (limit - low_need) / (high_need - low_need);
    const std::int64_t guess = low + static_cast<std::int64_t>(share * static_cast<double>(high - low));
    const std::int64_t middle = std::clamp(guess, low + 1, high - 1);
    const auto bytes = static_cast<double>(need(middle));
    if (bytes > limit) {
      high = middle, high_need = bytes;
    } else {
      low = middle, low_need = bytes;
    }
  }
  return low;
}

}  // namespace

Room find_room(const RunConfig& config, int ranks, int ranks_per_node, Device device, std::size_t memory) {
  RunSetup setup = make_run_setup(config, ranks, 0, ranks_per_node, true);
  const auto need = [&](std::int64_t rows, std::int64_t length) {
    setup.options.model.capacity = rows * length;
    return plan_memory(setup.model, setup.table, setup.options, setup.mesh, device).total();
  };
  Room out;
  out.rows = largest_that_fits([&](std::int64_t n) { return need(n, config.data.sequence_length); }, memory);
  out.row_length =
      Room::kRowStep *
      largest_that_fits([&](std::int64_t n) { return need(config.train.rows_per_rank, n * Room::kRowStep); },
                        memory);
  setup.options.model.capacity = config.train.rows_per_rank * config.data.sequence_length;
  out.richer_layers = largest_that_fits(
      [&](std::int64_t n) {
        setup.options.model.richer_layers = n;
        return plan_memory(setup.model, setup.table, setup.options, setup.mesh, device).total();
      },
      memory, static_cast<std::int64_t>(setup.model.layers.size()));
  return out;
}

}  // namespace lapidary
