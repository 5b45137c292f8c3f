// Which algorithm computes each of a run's matrix products: measured once a machine, kept in a file.
#pragma once
#include <string>

#include "parallel/host_group.h"
#include "trainer/instance.h"

namespace lapidary {

/// $XDG_CACHE_HOME/lapidary/products.jsonl, ~/.cache where that is not set; empty where neither is known.
std::string default_product_file();

/// Runs one training pass on `batch` in which every product that `file` does not know is measured; the first
/// rank's findings are saved there and used by all. Gradients and totals are worthless afterwards
/// (begin_step() clears them); weights do not change. Does nothing on devices without a choice; without a
/// file name it measures and does not save. Collective.
void tune_products(Instance& instance, const Batch& batch, const std::string& file, HostGroup& world);

}  // namespace lapidary
