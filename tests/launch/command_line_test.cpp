// The command line: subcommands, options, help, messages and exit codes.
#include "launch/command_line.h"

#include <gtest/gtest.h>

#include <optional>
#include <sstream>

#include "kernels/error.h"

namespace lapidary {
namespace {

using Words = std::vector<std::string>;

// The arguments as they were read, or the error's message.
template <class Arguments>
std::string read(const Words& words, Arguments& arguments) {
  CommandSyntax syntax("lapidary test", "Tests");
  describe(arguments, syntax);
  try {
    return syntax.parse(words) ? "" : "help";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::bad_input);
    return e.what();
  }
}

template <class Arguments>
std::string message(const Words& words) {
  Arguments arguments;
  return read(words, arguments);
}

TEST(Arguments, ConfigurationsAreCollectedInOrder) {
  TrainArguments a;
  EXPECT_EQ(
      read({"-c", "base.yaml", "--set", "a.b=1", "-csite.yaml", "--config=x y.yaml", "--set=optimizer.lr=-1"},
           a),
      "");
  EXPECT_EQ(a.config.sources.files, (Words{"base.yaml", "site.yaml", "x y.yaml"}));
  EXPECT_EQ(a.config.sources.settings, (Words{"a.b=1", "optimizer.lr=-1"}));
  EXPECT_FALSE(a.config.dump);
  EXPECT_EQ(read({"--dump-config"}, a), "");
  EXPECT_TRUE(a.config.dump);
}

TEST(Arguments, EveryCommandReadsItsOwn) {
  EvalArguments eval;
  EXPECT_EQ(read({"-c", "a.yaml", "--checkpoint", "run/step-5"}, eval), "");
  EXPECT_EQ(eval.checkpoint, "run/step-5");

  PlanArguments plan;
  EXPECT_EQ(plan.options.ranks, (std::vector<int>{1, 2, 8, 64}));
  EXPECT_EQ(read({"--ranks", "1,16,1K", "--ranks-per-node", "4", "--memory", "80GiB"}, plan), "");
  EXPECT_EQ(plan.options.ranks, (std::vector<int>{1, 16, 1000}));
  EXPECT_EQ(plan.options.ranks_per_node, 4);
  EXPECT_EQ(plan.memory, 80LL << 30);

  DataBuildArguments build;
  EXPECT_EQ(read({"--input", "a.jsonl", "-i", "b.jsonl", "-o", "out", "--tokenizer", "bytes",
                  "--image-tokens", "4", "--validation", "0.08", "--train-on", "all"},
                 build),
            "");
  EXPECT_EQ(build.inputs, (Words{"a.jsonl", "b.jsonl"}));
  EXPECT_EQ(build.output, "out");
  EXPECT_EQ(build.image_tokens, 4);
  EXPECT_EQ(build.validation, 0.08);
  EXPECT_EQ(build.train_on, TrainOn::all);

  DataFolderArguments folders;
  EXPECT_EQ(read({"a", "b", "c"}, folders), "");
  EXPECT_EQ(folders.folders, (Words{"a", "b", "c"}));

  DataShowArguments show;
  EXPECT_EQ(read({"out", "--row", "17", "--sequence-length=512"}, show), "");
  EXPECT_EQ(show.folder, "out");
  EXPECT_EQ(show.row, 17);
  EXPECT_EQ(show.sequence_length, 512);

  CheckpointInspectArguments inspect;
  EXPECT_EQ(read({"run/step-5", "--all"}, inspect), "");
  EXPECT_TRUE(inspect.checkpoint == "run/step-5" && inspect.all);

  CheckpointExportArguments out;
  EXPECT_EQ(read({"run", "-o", "hf", "--source", "gemma", "--max-file", "2GB", "--dtype", "f16"}, out), "");
  EXPECT_EQ(out.checkpoint, "run");
  EXPECT_EQ(out.output, "hf");
  EXPECT_EQ(out.source, "gemma");
  EXPECT_EQ(out.max_file, 2'000'000'000);
  EXPECT_EQ(out.dtype, ExportType::f16);
  CheckpointReshardArguments reshard;
  EXPECT_EQ(read({"run", "--output", "cut", "--shards", "4", "--weights-only"}, reshard), "");
  EXPECT_TRUE(reshard.shards == 4 && reshard.weights_only);
  CheckpointAverageArguments average;
  EXPECT_EQ(read({"a", "b", "-o", "mean"}, average), "");
  EXPECT_EQ(average.checkpoints, (Words{"a", "b"}));
  CheckpointDiffArguments diff;
  EXPECT_EQ(read({"a", "b"}, diff), "");
  EXPECT_EQ(diff.paths, (Words{"a", "b"}));
  EXPECT_EQ(message<CheckpointImportArguments>({"gemma"}),
            "lapidary test: --output is missing: where the checkpoint step-00000000 goes");
  TrainArguments train;
  EXPECT_EQ(read({"-c", "a.yaml", "--resume", "weights-only"}, train), "");
  EXPECT_EQ(train.resume, "weights-only");

  ParityArguments parity;
  EXPECT_EQ(read({"--reference", "cases/text", "--device", "cpu", "--trajectory", "--tolerance", "1e-3",
                  "--activations", "recompute_block", "--zero", "2", "--float64"},
                 parity),
            "");
  EXPECT_EQ(parity.reference, "cases/text");
  EXPECT_EQ(parity.device, DeviceChoice::cpu);
  EXPECT_EQ(parity.activations, ActivationPolicy::recompute_block);
  EXPECT_EQ(parity.zero, 2);
  EXPECT_EQ(parity.tolerance, 1e-3);
  EXPECT_TRUE(parity.trajectory && parity.float64);
}

TEST(Arguments, WhatIsWrongIsNamed) {
  EXPECT_EQ(message<TrainArguments>({"--stpes", "5"}), "lapidary test: unknown option --stpes");
  EXPECT_EQ(message<TrainArguments>({"--confg", "a"}),
            "lapidary test: unknown option --confg; did you mean --config?");
  EXPECT_EQ(message<TrainArguments>({"--conf", "a"}),
            "lapidary test: unknown option --conf; did you mean --config?");
  EXPECT_EQ(message<TrainArguments>({"-x"}), "lapidary test: unknown option -x");
  EXPECT_EQ(message<TrainArguments>({"a.yaml"}), "lapidary test: a configuration is given as -c a.yaml");
  EXPECT_EQ(message<TrainArguments>({"now"}),
            "lapidary test: more arguments than it takes; see lapidary test --help");
  EXPECT_EQ(message<TrainArguments>({"--dump-config=1"}),
            "lapidary test: option '--dump-config' does not take any arguments");
  EXPECT_EQ(message<TrainArguments>({"-c"}),
            "lapidary test: the required argument for option '--config' is missing");
  EXPECT_EQ(message<DataShowArguments>({"--row", "1"}), "lapidary test: FOLDER is missing: folder of shards");
  EXPECT_EQ(message<DataShowArguments>({"out"}),
            "lapidary test: --row is missing: which packed row, in the order of training");
  EXPECT_EQ(message<DataShowArguments>({"out", "--row", "1", "--row", "2"}),
            "lapidary test: --row is given twice");
  EXPECT_EQ(message<DataShowArguments>({"out", "--row", "x"}),
            "lapidary test: --row: expected a count such as 2000, 10K, 1.5M or 2B, found \"x\"");
  EXPECT_EQ(message<DataShowArguments>({"out", "--row=-1"}),
            "lapidary test: --row: -1 is out of range, expected from 0 to 1099511627776");
  EXPECT_EQ(message<DataShowArguments>({"out", "more", "--row", "1"}),
            "lapidary test: more arguments than it takes; see lapidary test --help");
  EXPECT_EQ(message<PlanArguments>({"--ranks", "1,,2"}),
            "lapidary test: --ranks: expected a count such as 2000, 10K, 1.5M or 2B, found \"\"");
  EXPECT_EQ(message<PlanArguments>({"--ranks", "0"}),
            "lapidary test: --ranks: 0 is out of range, expected from 1 to 1000000");
  EXPECT_EQ(message<PlanArguments>({"--memory", "80"}),
            "lapidary test: --memory: expected bytes with their unit, such as 256MiB or 4GiB, found \"80\"");
  EXPECT_EQ(message<ParityArguments>({}),
            "lapidary test: --reference is missing: config.json, model.safetensors, inputs and outputs of a "
            "reference");
  EXPECT_EQ(message<ParityArguments>({"--reference", "a", "--device", "gpu"}),
            "lapidary test: --device: expected one of auto, cpu, cuda, found \"gpu\"");
  EXPECT_EQ(message<ParityArguments>({"--reference", "a", "--device", "cuda0"}),
            "lapidary test: --device: expected one of auto, cpu, cuda, found \"cuda0\"; did you mean cuda?");
  EXPECT_EQ(message<ParityArguments>({"--reference", "a", "--tolerance", "2"}),
            "lapidary test: --tolerance: 2 is out of range, expected from 0 to 1");
  EXPECT_EQ(message<DataBuildArguments>({"--output", "o", "--tokenizer", "bytes"}),
            "lapidary test: --input is missing: JSONL file of samples; paths in it are relative to it");
}

TEST(Arguments, HelpNamesEveryOption) {
  EXPECT_EQ(message<ParityArguments>({"--help"}), "help");
  EXPECT_EQ(message<ParityArguments>({"--reference", "a", "-h"}), "help");
  ParityArguments a;
  CommandSyntax syntax("lapidary parity", "Compares");
  describe(a, syntax);
  const std::string help = syntax.help();
  for (const char* part : {"usage: lapidary parity --reference FOLDER [options]", "Compares.",
                           "--device auto|cpu|cuda", "[auto]", "--tolerance X", "[0.0001]", "-h, --help"})
    EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
  TrainArguments train;
  CommandSyntax train_syntax("lapidary train", "Trains");
  describe(train, train_syntax);
  EXPECT_NE(train_syntax.help().find("-c, --config FILE"), std::string::npos);
  EXPECT_NE(train_syntax.help().find("optimizer.lr [1e-05]"), std::string::npos);
}

// A program of three commands; what was called with what is kept.
class Dispatch : public testing::Test {
 protected:
  int run(const Words& words) {
    called_.clear();
    out_.str("");
    errors_.str("");
    return main_guarded([&] { return dispatch(commands_, words, out_); }, errors_);
  }

  Command command(const std::string& name, bool hidden = false) {
    return {name, "does " + name,
            [this, name](const Words& words) {
              called_ = name;
              for (const auto& word : words) called_ += "|" + word;
              return 0;
            },
            hidden};
  }

  std::string called_;
  std::vector<Command> commands_{command("train"), command("data build"), command("data show"),
                                 command("secret", true)};
  std::ostringstream out_, errors_;
};

TEST_F(Dispatch, TheRestGoesToTheCommand) {
  EXPECT_EQ(run({"train", "-c", "a"}), 0);
  EXPECT_EQ(called_, "train|-c|a");
  EXPECT_EQ(run({"data", "show", "x"}), 0);
  EXPECT_EQ(called_, "data show|x");
  EXPECT_EQ(run({"secret"}), 0);
  EXPECT_EQ(called_, "secret");
}

TEST_F(Dispatch, UnknownCommandsAreErrors) {
  const std::pair<Words, const char*> wrong[] = {
      {{}, "lapidary: no command; lapidary --help lists them\n"},
      {{"trian"}, "lapidary: unknown command trian; did you mean train?\n"},
      {{"dance"}, "lapidary: unknown command dance; known are train, data\n"},
      {{"export"}, "lapidary: unknown command export; known are train, data\n"},
      {{"data"}, "lapidary: data needs one of: build, show\n"},
      {{"data", "shwo"}, "lapidary: unknown command data shwo; did you mean show?\n"},
      {{"data", "prune"}, "lapidary: unknown command data prune; known are build, show\n"},
      {{"--verison"}, "lapidary: unknown command --verison; known are train, data\n"},
  };
  for (const auto& [words, text] : wrong) {
    EXPECT_EQ(run(words), 1);
    EXPECT_EQ(errors_.str(), text);
    EXPECT_EQ(called_, "");
  }
}

TEST_F(Dispatch, HelpAndVersion) {
  for (const char* word : {"--help", "-h", "help"}) {
    EXPECT_EQ(run({word}), 0);
    EXPECT_NE(out_.str().find("data build          does data build\n"), std::string::npos);
    EXPECT_EQ(out_.str().find("secret"), std::string::npos);
  }
  EXPECT_EQ(run({"data", "--help"}), 0);
  EXPECT_NE(out_.str().find("data show"), std::string::npos);
  EXPECT_EQ(out_.str().find("train"), std::string::npos);
  EXPECT_EQ(run({"--version"}), 0);
  for (const char* part :
       {"lapidary 0.", "built with ", "HDF5 1.", "OpenBLAS", "Boost 1.", "fmt ", "xxHash 0."})
    EXPECT_NE(out_.str().find(part), std::string::npos) << out_.str();
}

TEST_F(Dispatch, WhatIsThrownBecomesAnExitCode) {
  const auto code = [&](const std::function<int()>& body) {
    errors_.str("");
    return main_guarded(body, errors_);
  };
  EXPECT_EQ(code([]() -> int { return 75; }), 75);
  EXPECT_EQ(code([]() -> int { throw Error("rank 3 is gone", ExitCode::peer_lost); }), 76);
  EXPECT_EQ(errors_.str(), "lapidary: rank 3 is gone\n");
  EXPECT_EQ(code([]() -> int { throw Error("lapidary train: --set is missing"); }), 1);
  EXPECT_EQ(errors_.str(), "lapidary train: --set is missing\n");
  EXPECT_EQ(code([]() -> int { throw Error("NaN", ExitCode::numeric); }), 77);
  EXPECT_EQ(code([]() -> int { throw std::bad_alloc(); }), 1);
  EXPECT_EQ(errors_.str(), "lapidary: the host's memory is exhausted\n");
  EXPECT_EQ(code([]() -> int { throw std::out_of_range("at"); }), 1);
  EXPECT_EQ(errors_.str(), "lapidary: unexpected: at\n");
}

}  // namespace
}  // namespace lapidary
