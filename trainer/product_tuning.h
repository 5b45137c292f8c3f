// Which algorithm computes each of a run's matrix products: measured once a machine, kept in a file.
#pragma once
#include <iosfwd>
#include <string>

#include "parallel/host_group.h"
#include "trainer/instance.h"
#include "trainer/run_config.h"
#include "trainer/run_setup.h"

namespace lapidary {

/// What run.products means: auto is $XDG_CACHE_HOME/lapidary/products.jsonl, ~/.cache where that is not set
/// (empty where neither is known).
std::string product_file(const ConfigPath& products);

/// What decides which products a run computes: the program, the model, memory and sharding, and the sizes of
/// a micro-batch.
std::string product_signature(const RunSetup& setup, const Batch& batch);

/// Unless the file of run.products knows all of the run's products: runs one training pass on `batch` in
/// which every product that the file does not know is measured; the first rank's findings are saved there and
/// used by all. Gradients and totals are worthless afterwards (begin_step() clears them); weights do not
/// change. Does nothing for `none` and on devices without a choice; without a known folder it measures and
/// does not save. As it may take half a minute, rank 0 tells `notes` before and after. Collective.
void tune_products(Instance& instance, const RunSetup& setup, const Batch& batch, const ConfigPath& products,
                   HostGroup& world, std::ostream& notes);

}  // namespace lapidary
