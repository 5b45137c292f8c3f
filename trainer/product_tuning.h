// Which algorithm computes each of a run's matrix products: measured once a machine, kept in a file.
#pragma once
#include <string>

#include "parallel/host_group.h"
#include "trainer/instance.h"
#include "trainer/run_config.h"

namespace lapidary {

/// What run.products means: auto is $XDG_CACHE_HOME/lapidary/products.jsonl, ~/.cache where that is not set
/// (empty where neither is known).
std::string product_file(const ConfigPath& products);

/// Runs one training pass on `batch` in which every product that the file of run.products does not know is
/// measured; the first rank's findings are saved there and used by all. Gradients and totals are worthless
/// afterwards (begin_step() clears them); weights do not change. Does nothing for `none` and on devices
/// without a choice; without a known folder it measures and does not save. Collective.
void tune_products(Instance& instance, const Batch& batch, const ConfigPath& products, HostGroup& world);

}  // namespace lapidary
