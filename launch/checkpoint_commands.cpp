// lapidary checkpoint inspect.
#include <iostream>

#include "launch/commands.h"
#include "trainer/checkpoint.h"

namespace lapidary {

int run_checkpoint_inspect(const CheckpointInspectArguments& arguments) {
  inspect_checkpoint(arguments.checkpoint, true, std::cout);
  return 0;
}

}  // namespace lapidary
