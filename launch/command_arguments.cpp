// The options of every subcommand.
#include "launch/command_syntax.h"
#include "launch/commands.h"
#include "trainer/config_text.h"

namespace lapidary {
namespace {

constexpr std::int64_t kMostRows = std::int64_t{1} << 40;

void describe_config(ConfigArguments& a, CommandSyntax& syntax) {
  syntax.texts("config,c", "FILE", a.sources.files,
               "YAML configuration; of equal keys the later file's counts");
  syntax.texts("set", "KEY=VALUE", a.sources.settings, "a key of the configuration, after all files");
  syntax.flag("dump-config", a.dump, "print the configuration that results, and do nothing else");
}

}  // namespace

void describe(TrainArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.text("resume", "WHERE", a.resume,
              "auto, none, weights-only, a checkpoint or a run's folder: for this start, instead of "
              "checkpoint.resume");
  syntax.epilogue("Configuration keys [default]:\n\n" + config_help());
}

void describe(EvalArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.text("checkpoint", "FOLDER", a.checkpoint,
              "folder of a checkpoint, or of a run: its newest; this run's if not given");
}

void describe(PlanArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.numbers("ranks", a.options.ranks, 1, 1'000'000, "numbers of ranks to plan for");
  syntax.number("ranks-per-node", a.options.ranks_per_node, 1, 1024, "ranks that share a node");
  syntax.bytes("memory", a.memory, "memory of a rank's device: says what fits, and how many tokens would");
  syntax.text("card", "NAME", a.options.card,
              "forecast a step's time on this card, H100 or H200 or one of --rates; the GPU at hand if not "
              "given");
  syntax.text("rates", "FILE", a.rates, "rates that bench step and bench comm measured (their --rates)");
}

void describe(DataBuildArguments& a, CommandSyntax& syntax) {
  syntax.texts("input,i", "FILE", a.inputs, "JSONL file of samples; paths in it are relative to it");
  syntax.text("output,o", "FOLDER", a.output, "where the shards go");
  syntax.word(
      "form", a.form, {"samples", "gsm8k"},
      "what a line of the input is: a sample (docs/ingestion.md), or question and answer as in GSM8K");
  syntax.text("tokenizer", "NAME", a.tokenizer, "bytes, or the path of a tokenizer.json");
  syntax.word("train-on", a.train_on, {kTrainOnNames.begin(), kTrainOnNames.end()},
              "what is trained of a sample");
  syntax.word("empty-channel", a.empty_channel, {kEmptyChannelNames.begin(), kEmptyChannelNames.end()},
              "which answers without reasoning begin with an empty thought channel");
  syntax.texts("markup", "KEY=NAME", a.markup,
               "another name for a token or role of the markup, such as "
               "end_turn=<end_of_turn>");
  syntax.number("image-tokens", a.image_tokens, 1, 1 << 16, "most soft tokens of an image");
  syntax.number("video-frames", a.video_frames, 0, 4096, "frames taken of a video, evenly spaced; 0: all");
  syntax.number("video-tokens", a.video_tokens, 1, 1 << 16, "most soft tokens of a frame of a video");
  syntax.real("max-seconds", a.max_seconds, 0.04, 3600, "longest sound; a longer one is an unusable sample");
  syntax.number("max-tokens", a.max_tokens, 0, std::int64_t{1} << 30, "longest document; 0: any");
  syntax.word("over-long", a.over_long, {"drop", "split"}, "what becomes of longer documents");
  syntax.word("on-error", a.on_error, {"error", "skip"}, "an unusable sample ends the build, or is counted");
  syntax.real("validation", a.validation, 0, 1, "share of the samples that is held out");
  syntax.number("workers", a.workers, 0, 4096, "threads; 0: one a core");
  syntax.require_one("input");
  syntax.require_one("output");
  syntax.require_one("tokenizer");
}

void describe(DataFolderArguments& a, CommandSyntax& syntax) {
  syntax.positionals("FOLDER", a.folders, "folder of shards");
  syntax.require_one("FOLDER");
}

void describe(DataShowArguments& a, CommandSyntax& syntax) {
  syntax.positional("FOLDER", a.folder, "folder of shards");
  syntax.number("row", a.row, 0, kMostRows, "which packed row, in the order of training");
  syntax.number("sequence-length", a.sequence_length, 2, 1 << 20, "as data.sequence_length");
  syntax.number("seed", a.seed, 0, std::int64_t{1} << 53, "as run.seed");
  syntax.text("tokenizer", "NAME", a.tokenizer,
              "bytes, or the path of a tokenizer.json; the one the data was built with if not given");
  syntax.require_one("FOLDER");
  syntax.require_one("row");
}

void describe(BenchDataArguments& a, CommandSyntax& syntax) {
  syntax.positionals("FOLDER", a.folders, "folder of shards; without one, data is made");
  syntax.bytes("size", a.size, "of all data that is made: texts, pictures and sounds, a third each");
  syntax.text("keep", "FOLDER", a.keep, "where that data is made, stays, and is found the next time");
  syntax.real("seconds", a.seconds, 0.01, 3600, "how long to read from each data set");
  syntax.number("sequence-length", a.sequence_length, 2, 1 << 20, "as data.sequence_length");
  syntax.number("rows-per-rank", a.rows_per_rank, 1, 1 << 20, "rows that a rank gets in a step");
  syntax.number("ranks", a.ranks, 1, 1'000'000, "read what the first of so many ranks would");
  syntax.bytes("read-ahead", a.read_ahead, "as data.read_ahead");
}

void describe(CheckpointInspectArguments& a, CommandSyntax& syntax) {
  syntax.positional("CHECKPOINT", a.checkpoint,
                    "folder of a checkpoint, or of a run: its newest, behind a list of all");
  syntax.flag("all", a.all, "also the run's configuration, the model's config.json and every tensor");
  syntax.require_one("CHECKPOINT");
}

void describe(CheckpointVerifyArguments& a, CommandSyntax& syntax) {
  syntax.positionals("CHECKPOINT", a.checkpoints, "folder of a checkpoint, or of a run: its newest");
  syntax.require_one("CHECKPOINT");
}

void describe(CheckpointImportArguments& a, CommandSyntax& syntax) {
  syntax.positional("FOLDER", a.folder, "Hugging Face folder: config.json and safetensors");
  syntax.text("output,o", "DIRECTORY", a.output, "where the checkpoint step-00000000 goes");
  syntax.require_one("FOLDER");
  syntax.require_one("output");
}

void describe(CheckpointExportArguments& a, CommandSyntax& syntax) {
  syntax.positional("CHECKPOINT", a.checkpoint, "folder of a checkpoint, or of a run: its newest");
  syntax.text("output,o", "FOLDER", a.output, "the Hugging Face folder to make; must not exist");
  syntax.text(
      "source", "FOLDER", a.source,
      "Hugging Face folder to take config.json, tokenizer and other files from, and the cut into files; "
      "the one the checkpoint was imported from if not given");
  syntax.bytes("max-file", a.max_file, "most bytes of tensors in a file; not given: as the source, or 5 GB");
  syntax.word("dtype", a.dtype, {"stored", "bf16", "f16", "f32"}, "type of the weights");
  syntax.require_one("CHECKPOINT");
  syntax.require_one("output");
}

void describe(CheckpointReshardArguments& a, CommandSyntax& syntax) {
  syntax.positional("CHECKPOINT", a.checkpoint, "folder of a checkpoint, or of a run: its newest");
  syntax.text("output,o", "DIRECTORY", a.output, "where the new checkpoint goes, under its step's name");
  syntax.number("shards", a.shards, 1, 100'000, "files to cut it into");
  syntax.flag("weights-only", a.weights_only, "leave masters and moments out");
  syntax.require_one("CHECKPOINT");
  syntax.require_one("output");
}

void describe(CheckpointAverageArguments& a, CommandSyntax& syntax) {
  syntax.positionals("CHECKPOINT", a.checkpoints, "folder of a checkpoint, or of a run: its newest");
  syntax.text("output,o", "DIRECTORY", a.output, "where the mean goes, under the newest one's step");
  syntax.require_one("CHECKPOINT");
  syntax.require_one("output");
}

void describe(CheckpointDiffArguments& a, CommandSyntax& syntax) {
  syntax.positionals("PATH", a.paths, "two: checkpoints, runs or Hugging Face folders");
  syntax.require_one("PATH");
}

void describe(ParityArguments& a, CommandSyntax& syntax) {
  syntax.text("reference", "FOLDER", a.reference,
              "config.json, model.safetensors, inputs and outputs of a reference");
  syntax.word("device", a.device, {"auto", "cpu", "cuda"}, "where to compute");
  syntax.flag("float64", a.float64, "compute in float64 (CPU only): how much of a difference is rounding");
  syntax.real(
      "tolerance", a.tolerance, 0, 1,
      "relative L2 of hidden states and gradients; a tenth of it for token losses, a fiftieth for the loss");
  syntax.flag("trajectory", a.trajectory, "also train the reference's steps and compare their losses");
  syntax.word("activations", a.activations,
              {"keep", "recompute_cheap", "recompute_gate_up", "recompute_block"}, "as memory.activations");
  syntax.number("zero", a.zero, 2, 3, "as parallel.zero");
  syntax.require_one("reference");
}

void describe(BenchStepArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.number("warmup", a.options.warmup, 0, 1000, "steps before the timed ones");
  syntax.number("steps", a.options.steps, 1, 10'000, "timed steps");
  syntax.flag("no-profile", a.no_profile, "leave out the table of operations");
  syntax.text("rates", "FILE", a.options.rates, "add the table's rates to this file, for plan --rates");
}

void describe(BenchGemmArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.number("rounds", a.rounds, 1, 1000, "measurements of each product");
}

void describe(BenchOpsArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.number("rounds", a.rounds, 1, 1000, "timed steps");
}

void describe(BenchCommArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.number("rounds", a.rounds, 1, 1000, "measurements of each collective");
  syntax.text("rates", "FILE", a.rates, "add the units' rates to this file, for plan --rates");
}

void describe(BenchAttentionArguments& a, CommandSyntax& syntax) {
  syntax.numbers("tokens", a.tokens, 1, 1 << 18, "numbers of tokens, each timed");
  syntax.number("rounds", a.rounds, 1, 1000, "measurements of each");
  syntax.word("device", a.device, {"auto", "cpu", "cuda"}, "where to compute");
}

void describe(BenchLossArguments& a, CommandSyntax& syntax) {
  syntax.numbers("tokens", a.tokens, 1, 1 << 24, "numbers of tokens, each timed");
  syntax.numbers("scratch", a.scratch, 1, 1 << 20, "MiB of scores, each timed (loss.scratch)");
  syntax.number("vocabulary", a.vocabulary, 1, std::int64_t{1} << 24, "rows of the table, over all ranks");
  syntax.number("width", a.width, 1, 1 << 20, "of the hidden states");
  syntax.real("cap", a.cap, 0, 1e6, "soft cap of the logits; 0: none");
  syntax.number("rounds", a.rounds, 1, 1000, "measurements of each");
  syntax.flag("errors", a.errors, "also compare with float32, on random and on peaked data (one rank)");
  syntax.numbers("error-tokens", a.error_tokens, 1, 1 << 24, "numbers of tokens of that comparison");
  syntax.word("device", a.device, {"auto", "cpu", "cuda"}, "where to compute");
}

void describe(ConfigShowArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.flag("changed", a.changed, "only required keys and those that differ from their default");
}

void describe(ConfigCheckArguments& a, CommandSyntax& syntax) {
  describe_config(a.config, syntax);
  syntax.flag("files", a.files,
              "also open the model, the weights and the data that it names, as a run would");
  syntax.epilogue("Configuration keys [default]:\n\n" + config_help());
}

void describe(ConfigReferenceArguments&, CommandSyntax&) {}

}  // namespace lapidary
