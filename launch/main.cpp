// The program `lapidary`: one process, or one rank of many.
#include <algorithm>
#include <cstdlib>
#include <iostream>

#include "launch/command_line.h"
#include "parallel/mpi_session.h"

namespace {

using lapidary::Command;
using lapidary::make_command;

std::vector<Command> commands_of_one() {
  using namespace lapidary;
  std::vector<Command> list{
      make_command("plan", "says what a run needs of memory, by number of ranks", run_plan),
      make_command("data build", "turns JSONL files and the media they name into shards", run_data_build),
      make_command("data inspect", "counts what a data set holds", run_data_inspect),
      make_command("data verify", "checks every file and document of a data set", run_data_verify),
      make_command("data show", "prints a packed row, with what is trained marked", run_data_show),
      make_command("checkpoint inspect", "prints what a checkpoint holds", run_checkpoint_inspect),
      make_command("config show", "prints the configuration that files, defaults and --set result in",
                   run_config_show),
      make_command("config check", "reports everything that is wrong with a configuration", run_config_check),
      make_command("config reference", "prints docs/configuration.md", run_config_reference),
  };
  list.back().hidden = true;
  return list;
}

std::vector<Command> all_commands(const lapidary::MpiSession& session) {
  using namespace lapidary;
  std::vector<Command> list{
      make_command("train", "trains a model, resuming where the run's folder says so", run_train, session),
      make_command("eval", "computes the held-out loss of a checkpoint", run_eval, session),
      make_command("parity", "compares the model with a reference that transformers computed",
                   run_parity_command, session),
  };
  for (Command& command : commands_of_one()) list.push_back(std::move(command));
  return list;
}

/// mpirun and srun tell the process so through its environment. A batch script has Slurm's variables too, but
/// no step.
bool started_by_launcher() {
  const char* const kSigns[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "SLURM_STEP_ID"};
  return std::any_of(std::begin(kSigns), std::end(kSigns),
                     [](const char* name) { return std::getenv(name) != nullptr; });
}

bool needs_no_ranks(const std::vector<std::string>& words) {
  if (words.empty()) return false;
  const std::vector<Command> list = commands_of_one();
  return std::any_of(list.begin(), list.end(),
                     [&](const Command& c) { return c.name.substr(0, c.name.find(' ')) == words[0]; });
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (!started_by_launcher() && needs_no_ranks(words)) {
    return lapidary::main_guarded([&] { return lapidary::dispatch(commands_of_one(), words, std::cout); },
                                  std::cerr);
  }
  return lapidary::run_guarded(argc, argv, [&](const lapidary::MpiSession& session) {
    return lapidary::dispatch(all_commands(session), words, std::cout);
  });
}
