#include "trainer/product_tuning.h"

#include <cstdlib>
#include <ostream>

#include "kernels/build_info.h"
#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/commit.h"
#include "kernels/stopwatch.h"

namespace lapidary {

std::string product_file(const ConfigPath& products) {
  if (!products.is("auto")) return products.resolve();
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  if (const std::string cache = variable("XDG_CACHE_HOME"); !cache.empty())
    return cache + "/lapidary/products.jsonl";
  if (const std::string home = variable("HOME"); !home.empty())
    return home + "/.cache/lapidary/products.jsonl";
  return "";
}

std::string product_signature(const RunSetup& setup, const Batch& batch) {
  std::string text = fmt::format("{} {} {}", kVersion, kCommit, kCompiler);
  const auto add = [&](auto... numbers) { ((text += fmt::format(" {}", numbers)), ...); };
  for (const ParameterSpec& spec : setup.table.specs) {
    add(spec.unit);
    for (const std::int64_t size : spec.shape) add(size);
  }
  const ModelOptions& model = setup.options.model;
  const ShardingOptions& sharding = setup.options.sharding;
  add(static_cast<int>(model.type), static_cast<int>(model.activations), model.richer_layers, model.capacity,
      model.loss.scratch_bytes, model.loss.label_smoothing, model.loss.z_loss);
  add(sharding.zero, static_cast<int>(sharding.weights), static_cast<int>(sharding.gradients));
  add(setup.mesh.world, setup.mesh.shard, setup.mesh.vocabulary);
  add(batch.tokens(), batch.rows, batch.patches.count, batch.frames.count);
  return checksum_of(text);
}

void tune_products(Instance& instance, const RunSetup& setup, const Batch& batch, const ConfigPath& products,
                   HostGroup& world, std::ostream& notes) {
  Backend& backend = instance.stream().backend();
  if (backend.device() != Device::cuda || products.is("none")) return;
  const std::string file = product_file(products), run = product_signature(setup, batch);
  const auto load = [&] { backend.load_products(file); };
  if (!file.empty()) world.all_or_error("reading the matrix products' algorithms", load);
  const std::int64_t known = !file.empty() && backend.knows_products(run) ? 1 : 0;
  if (world.all_reduce(known, HostGroup::Reduce::min, "matrix products that are known") == 1) return;
  const bool leads = world.rank() == 0;
  if (leads)
    notes << fmt::format(
                 "Measuring which algorithms compute the matrix products fastest: once for these sizes, {}\n",
                 file.empty() ? "kept nowhere, as no cache folder is known" : "kept in " + file)
          << std::flush;
  const auto start = Clock::now();
  backend.measure_products(true);
  instance.begin_step();
  instance.run_training(batch, 1.0, true);
  backend.synchronize(instance.stream());
  backend.measure_products(false);
  if (leads) notes << fmt::format("Measured in {:.1f} s\n", seconds_since(start)) << std::flush;
  if (file.empty()) return;
  // Every rank measured what it did not know; all use what the first one found, now and after a restart.
  world.all_or_error("saving the matrix products' algorithms", [&] {
    if (world.rank() == 0) backend.save_products(file, run);
  });
  world.all_or_error("reading the matrix products' algorithms", load);
}

}  // namespace lapidary
