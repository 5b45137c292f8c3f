#include "trainer/product_tuning.h"

#include <cstdlib>

#include "kernels/check.h"

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

void tune_products(Instance& instance, const Batch& batch, const ConfigPath& products, HostGroup& world) {
  Backend& backend = instance.stream().backend();
  if (backend.device() != Device::cuda || products.is("none")) return;
  const std::string file = product_file(products);
  const auto load = [&] { backend.load_products(file); };
  if (!file.empty()) world.all_or_error("reading the matrix products' algorithms", load);
  backend.measure_products(true);
  instance.begin_step();
  instance.run_training(batch, 1.0, true);
  backend.synchronize(instance.stream());
  backend.measure_products(false);
  if (file.empty()) return;
  // Every rank measured what it did not know; all use what the first one found, now and after a restart.
  world.all_or_error("saving the matrix products' algorithms", [&] {
    if (world.rank() == 0) backend.save_products(file);
  });
  world.all_or_error("reading the matrix products' algorithms", load);
}

}  // namespace lapidary
