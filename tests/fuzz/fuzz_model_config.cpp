// Any bytes as a config.json: an Error, or a model whose parameter table can be made.
#include <cstdlib>

#include "kernels/check.h"
#include "model/config.h"
#include "model/parameter_table.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace lapidary;
  try {
    const ParameterTable table =
        make_parameter_table(parse_model_config({reinterpret_cast<const char*>(data), size}, "x"));
    if (table.stored_elements() <= 0) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
