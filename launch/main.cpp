// The program `lapidary`: one process, or one rank of many.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <iostream>

#include "launch/command_line.h"
#include "parallel/mpi_session.h"

namespace {

constexpr std::array<const char*, 3> kCommandsOfRanks = {"train", "eval", "parity"};

std::vector<lapidary::Command> commands(const lapidary::MpiSession* session) {
  using namespace lapidary;
  std::vector<Command> list{
      make_command("train", "trains a model, resuming where the run's folder says so", run_train, session),
      make_command("eval", "computes the held-out loss of a checkpoint", run_eval, session),
      make_command("plan", "says what a run takes of memory, disk and time, by number of ranks", run_plan),
      make_command("config check", "reports everything that is wrong with a configuration", run_config_check),
      make_command("config show", "prints the configuration that files, defaults and --set result in",
                   run_config_show),
      make_command("data build", "turns JSONL files and the media they name into shards", run_data_build),
      make_command("data inspect", "counts what a data set holds", run_data_inspect),
      make_command("data show", "prints a packed row, with what is trained marked", run_data_show),
      make_command("data verify", "checks every file and document of a data set", run_data_verify),
      make_command("checkpoint inspect", "prints what a checkpoint holds", run_checkpoint_inspect),
      make_command("checkpoint verify", "checks every file of checkpoints", run_checkpoint_verify),
      make_command("checkpoint diff", "compares two checkpoints, or one and a Hugging Face folder",
                   run_checkpoint_diff),
      make_command("checkpoint import", "makes a checkpoint from a Hugging Face folder",
                   run_checkpoint_import, session),
      make_command("checkpoint export", "makes a Hugging Face folder from a checkpoint",
                   run_checkpoint_export, session),
      make_command("checkpoint average", "writes the mean of several checkpoints' weights",
                   run_checkpoint_average),
      make_command("checkpoint reshard", "writes a checkpoint again in other pieces", run_checkpoint_reshard),
      make_command("bench step", "times training steps of a configuration on random text", run_bench_step,
                   session),
      make_command("bench gemm", "times a configuration's matrix products", run_bench_gemm),
      make_command("bench ops", "times what memory bounds in a configuration's step, beside copies",
                   run_bench_ops),
      make_command("bench comm", "times the gathers and reductions of a configuration's units",
                   run_bench_comm, session),
      make_command("bench attention", "times attention of both kinds of layer under several masks",
                   run_bench_attention),
      make_command("bench loss", "times the loss head against its matrix products", run_bench_loss, session),
      make_command("bench data", "measures how fast a rank's loader is", run_bench_data),
      make_command("parity", "compares the model with a reference that transformers computed",
                   run_parity_command, session),
      make_command("config reference", "prints docs/configuration.md", run_config_reference),
  };
  list.back().hidden = true;
  return list;
}

/// mpirun and srun tell the process so through its environment. A batch script has Slurm's variables too, but
/// no step.
bool started_by_launcher() {
  constexpr std::array<const char*, 4> kSigns = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK",
                                                 "SLURM_STEP_ID"};
  return std::any_of(kSigns.begin(), kSigns.end(),
                     [](const char* name) { return std::getenv(name) != nullptr; });
}

bool is_of_ranks(const std::vector<std::string>& words) {
  if (words.size() > 1 && words[0] == "bench")
    return words[1] == "step" || words[1] == "loss" || words[1] == "comm";
  return !words.empty() &&
         std::find(kCommandsOfRanks.begin(), kCommandsOfRanks.end(), words[0]) != kCommandsOfRanks.end();
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (!is_of_ranks(words) && !started_by_launcher()) {
    return lapidary::main_guarded([&] { return lapidary::dispatch(commands(nullptr), words, std::cout); },
                                  std::cerr);
  }
  return lapidary::run_guarded(argc, argv, [&](const lapidary::MpiSession& session) {
    return lapidary::dispatch(commands(&session), words, std::cout);
  });
}
