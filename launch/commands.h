// Every subcommand of the program: the arguments it was given, and the function that does it. Arguments are
// checked for their form when they are read (command_arguments.cpp); each run_* returns the program's exit
// code or throws Error.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/build.h"
#include "kernels/device.h"
#include "trainer/checkpoint_tools.h"
#include "trainer/config_reader.h"
#include "trainer/plan.h"
#include "trainer/run_config.h"
#include "trainer/step_bench.h"

namespace lapidary {

class CommandSyntax;
class MpiSession;

/// -c, --set and --dump-config, which all commands that need a configuration share.
struct ConfigArguments {
  ConfigSources sources;
  bool dump = false;  ///< print what it resolves to instead of doing anything; main sees to that
};

/// lapidary train
struct TrainArguments {
  ConfigArguments config;
  std::string resume;  ///< as checkpoint.resume, which it sets; empty: the configuration's
};
int run_train(const TrainArguments& arguments, const MpiSession& session);

/// lapidary eval
struct EvalArguments {
  ConfigArguments config;
  std::string checkpoint;  ///< a checkpoint's folder; empty: the run's newest
};
int run_eval(const EvalArguments& arguments, const MpiSession& session);

/// lapidary plan
struct PlanArguments {
  ConfigArguments config;
  PlanOptions options;
  std::int64_t memory = 0;  ///< bytes a rank's device has; 0: unknown
  std::string rates;        ///< a file that benchmarks wrote
};
int run_plan(const PlanArguments& arguments);

/// lapidary data build
struct DataBuildArguments {
  std::vector<std::string> inputs;  ///< JSONL files
  std::string output;               ///< folder
  InputForm form = InputForm::samples;
  std::string tokenizer;            ///< "bytes", or the path of a tokenizer.json
  std::vector<std::string> markup;  ///< KEY=VALUE: names of tokens and roles
  TrainOn train_on = TrainOn::answers;
  EmptyChannel empty_channel = EmptyChannel::trained_turns;
  std::int64_t image_tokens = 280;  ///< most soft tokens of an image
  std::int64_t video_frames = 32;   ///< taken of a video; 0: all
  std::int64_t video_tokens = 70;   ///< most soft tokens of each
  double max_seconds = 30;          ///< of a sound
  std::int64_t max_tokens = 0;      ///< of a document; 0: no limit
  OverLong over_long = OverLong::drop;
  OnError on_error = OnError::error;
  double validation = 0;     ///< share of the samples that is held out
  std::int64_t workers = 0;  ///< threads; 0: one a core
};
int run_data_build(const DataBuildArguments& arguments);

/// lapidary data inspect, lapidary data verify
struct DataFolderArguments {
  std::vector<std::string> folders;
};
int run_data_inspect(const DataFolderArguments& arguments);
int run_data_verify(const DataFolderArguments& arguments);

/// lapidary data show
struct DataShowArguments {
  std::string folder;
  std::int64_t row = 0;
  std::int64_t sequence_length = 8192;
  std::int64_t seed = 1;
  std::string tokenizer;  ///< as in DataBuildArguments; empty: the one the data names
};
int run_data_show(const DataShowArguments& arguments);

/// lapidary bench data
struct BenchDataArguments {
  std::vector<std::string> folders;           ///< data sets; none: some are made
  std::int64_t size = std::int64_t{1} << 30;  ///< bytes of those together
  std::string keep;                           ///< where they are made and stay; empty: removed
  double seconds = 5;                         ///< for each data set
  std::int64_t sequence_length = 8192;
  int rows_per_rank = 2;                              ///< in a step
  int ranks = 1;                                      ///< measured is the first of so many
  std::int64_t read_ahead = std::int64_t{256} << 20;  ///< as data.read_ahead
};
int run_bench_data(const BenchDataArguments& arguments);

/// lapidary checkpoint inspect
struct CheckpointInspectArguments {
  std::string checkpoint;
  bool all = false;  ///< also configuration, config.json and tensors
};
int run_checkpoint_inspect(const CheckpointInspectArguments& arguments);

/// lapidary checkpoint verify
struct CheckpointVerifyArguments {
  std::vector<std::string> checkpoints;
};
int run_checkpoint_verify(const CheckpointVerifyArguments& arguments);

/// lapidary checkpoint import
struct CheckpointImportArguments {
  std::string folder;  ///< Hugging Face's
  std::string output;  ///< folder of checkpoints
};
int run_checkpoint_import(const CheckpointImportArguments& arguments, const MpiSession* session);

/// lapidary checkpoint export
struct CheckpointExportArguments {
  std::string checkpoint;
  std::string output;  ///< folder to be made
  std::string source;
  std::int64_t max_file = 0;  ///< bytes; 0: see ExportOptions
  ExportType dtype = ExportType::stored;
};
int run_checkpoint_export(const CheckpointExportArguments& arguments, const MpiSession* session);

/// lapidary checkpoint reshard
struct CheckpointReshardArguments {
  std::string checkpoint;
  std::string output;  ///< folder of checkpoints
  int shards = 1;
  bool weights_only = false;
};
int run_checkpoint_reshard(const CheckpointReshardArguments& arguments);

/// lapidary checkpoint average
struct CheckpointAverageArguments {
  std::vector<std::string> checkpoints;
  std::string output;  ///< folder of checkpoints
};
int run_checkpoint_average(const CheckpointAverageArguments& arguments);

/// lapidary checkpoint diff
struct CheckpointDiffArguments {
  std::vector<std::string> paths;
};
int run_checkpoint_diff(const CheckpointDiffArguments& arguments);

/// lapidary parity
struct ParityArguments {
  std::string reference;
  DeviceChoice device = DeviceChoice::automatic;
  bool float64 = false;
  double tolerance = 1e-4;
  bool trajectory = false;
  ActivationPolicy activations = ActivationPolicy::keep;
  int zero = 3;
};
int run_parity_command(const ParityArguments& arguments, const MpiSession& session);

/// lapidary bench step
struct BenchStepArguments {
  ConfigArguments config;
  StepBenchOptions options;
  bool no_profile = false;
};
int run_bench_step(const BenchStepArguments& arguments, const MpiSession& session);

/// lapidary bench gemm
struct BenchGemmArguments {
  ConfigArguments config;
  int rounds = 5;
};
int run_bench_gemm(const BenchGemmArguments& arguments);

/// lapidary bench ops
struct BenchOpsArguments {
  ConfigArguments config;
  int rounds = 9;
};
int run_bench_ops(const BenchOpsArguments& arguments);

/// lapidary bench comm
struct BenchCommArguments {
  ConfigArguments config;
  int rounds = 5;
  std::string rates;  ///< file
};
int run_bench_comm(const BenchCommArguments& arguments, const MpiSession& session);

/// lapidary bench attention
struct BenchAttentionArguments {
  std::vector<int> tokens{4096, 8192, 32768};
  int rounds = 5;
  DeviceChoice device = DeviceChoice::automatic;
};
int run_bench_attention(const BenchAttentionArguments& arguments);

/// lapidary bench loss
struct BenchLossArguments {
  std::vector<int> tokens{4096, 8192, 16384};
  std::vector<int> scratch{64, 128, 256, 512, 1024};  ///< MiB
  std::int64_t vocabulary = 262144, width = 3840;
  double cap = 30;
  int rounds = 5;
  bool errors = false;
  std::vector<int> error_tokens{2048};
  DeviceChoice device = DeviceChoice::automatic;
};
int run_bench_loss(const BenchLossArguments& arguments, const MpiSession& session);

/// lapidary config show, check
struct ConfigShowArguments {
  ConfigArguments config;
  bool changed = false;  ///< only what differs from the defaults
};
int run_config_show(const ConfigShowArguments& arguments);
struct ConfigCheckArguments {
  ConfigArguments config;
  bool files = false;  ///< also open what it names
};
int run_config_check(const ConfigCheckArguments& arguments);
/// lapidary config reference: the text of docs/configuration.md
struct ConfigReferenceArguments {};
int run_config_reference(const ConfigReferenceArguments& arguments);

void describe(TrainArguments& a, CommandSyntax& syntax);
void describe(EvalArguments& a, CommandSyntax& syntax);
void describe(PlanArguments& a, CommandSyntax& syntax);
void describe(DataBuildArguments& a, CommandSyntax& syntax);
void describe(DataFolderArguments& a, CommandSyntax& syntax);
void describe(DataShowArguments& a, CommandSyntax& syntax);
void describe(BenchDataArguments& a, CommandSyntax& syntax);
void describe(CheckpointInspectArguments& a, CommandSyntax& syntax);
void describe(CheckpointVerifyArguments& a, CommandSyntax& syntax);
void describe(CheckpointImportArguments& a, CommandSyntax& syntax);
void describe(CheckpointExportArguments& a, CommandSyntax& syntax);
void describe(CheckpointReshardArguments& a, CommandSyntax& syntax);
void describe(CheckpointAverageArguments& a, CommandSyntax& syntax);
void describe(CheckpointDiffArguments& a, CommandSyntax& syntax);
void describe(ParityArguments& a, CommandSyntax& syntax);
void describe(BenchStepArguments& a, CommandSyntax& syntax);
void describe(BenchGemmArguments& a, CommandSyntax& syntax);
void describe(BenchOpsArguments& a, CommandSyntax& syntax);
void describe(BenchCommArguments& a, CommandSyntax& syntax);
void describe(BenchAttentionArguments& a, CommandSyntax& syntax);
void describe(BenchLossArguments& a, CommandSyntax& syntax);
void describe(ConfigShowArguments& a, CommandSyntax& syntax);
void describe(ConfigCheckArguments& a, CommandSyntax& syntax);
void describe(ConfigReferenceArguments& a, CommandSyntax& syntax);

}  // namespace lapidary
