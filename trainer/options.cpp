#include "trainer/options.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "trainer/nearest.h"

namespace lapidary {
namespace {

// The member of a section as something that is read and written without knowing the section.
template <class Section, class T>
auto member(Section RunConfig::*section, T Section::*value) {
  using Stored = std::conditional_t<std::is_enum_v<T>, int, T>;
  return Member<Stored>{
      [=](const RunConfig& config) { return static_cast<Stored>(config.*section.*value); },
      [=](RunConfig& config, Stored v) { config.*section.*value = static_cast<T>(std::move(v)); }};
}

template <class Section>
class SectionRows {
 public:
  SectionRows(std::vector<Option>& table, std::string name, Section RunConfig::*section)
      : table_(table), name_(std::move(name)), section_(section) {}

  // A row that the designated initialisers of `rest` complete.
  template <class T>
  SectionRows& row(const char* leaf, OptionType type, T Section::*value, Option rest) {
    rest.path = name_ + "." + leaf;
    rest.type = type;
    rest.member = member(section_, value);
    table_.push_back(std::move(rest));
    return *this;
  }

 private:
  std::vector<Option>& table_;
  std::string name_;
  Section RunConfig::*section_;
};

constexpr double kMostSteps = 1e9;
constexpr double kMostRows = 1e6;
constexpr double kMostRanks = 1e6;
constexpr double kMostSeconds = 1000 * 86400.0;
constexpr double kMiB = 1 << 20;
constexpr double kTiB = kMiB * kMiB;

using enum OptionType;
using C = RunConfig;

void add_run(std::vector<Option>& table) {
  SectionRows(table, "run", &C::run)
      .row("directory", path, &C::Run::directory,
           {.help = "folder of the run: resolved configuration, metrics.jsonl, checkpoints",
            .others = {"output_dir", "dir", "output"},
            .required = true})
      .row("seed", integer, &C::Run::seed,
           {.help = "start of every random number: initialisation, order of the data, stochastic rounding",
            .range = {0, 9007199254740992.0}})
      .row(
          "device", word, &C::Run::device,
          {.help = "where to compute; auto: on the GPU where there is one", .words = {"auto", "cpu", "cuda"}})
      .row("precision", word, &C::Run::precision,
           {.help = "type of weights and activations; float32 is for parity with a reference",
            .words = {"bf16", "float32"},
            .others = {"dtype"}})
      .row("products", path, &C::Run::products,
           {.help = "file of the fastest algorithms of large matrix products on a GPU, measured when the run "
                    "starts where it does not know them: auto, in the user's cache; none, not measured",
            .words = {"auto", "none"}})
      .row("stop_after", seconds, &C::Run::stop_after,
           {.help = "save and exit with code 75 at the first step that ends after this time; 0: no limit",
            .range = {0, kMostSeconds},
            .others = {"time_limit", "max_time"}})
      .row("patience", seconds, &C::Run::patience,
           {.help = "a rank that gives no sign of life, or goes on with nothing in a training step, for this "
                    "time ends "
                    "the job with code 76; 0: wait for ever",
            .range = {0, kMostSeconds},
            .others = {"timeout", "nccl_timeout", "watchdog"}});
}

void add_model(std::vector<Option>& table) {
  SectionRows(table, "model", &C::model)
      .row("config", path, &C::Model::config,
           {.help = "config.json of a Hugging Face folder: the shape of the model", .required = true})
      .row("weights", path, &C::Model::weights,
           {.help =
                "where a new run's weights come from: random, a Hugging Face folder with safetensors, or a "
                "checkpoint (a folder of them: the newest)",
            .words = {"random"},
            .others = {"init", "checkpoint", "pretrained"}})
      .row(
          "image_attention", word, &C::Model::image_attention,
          {.help =
               "which layers see whole images: sliding, as the released model; all, as transformers' forward",
           .words = {"sliding", "all"}});
}

void add_data(std::vector<Option>& table) {
  SectionRows(table, "data", &C::data)
      .row("train", sources, &C::Data::train,
           {.help = "shard folder to learn from, or a list of them",
            .others = {"path", "dataset", "train_data", "training"},
            .required = true})
      .row("validation", sources, &C::Data::validation,
           {.help = "shard folder that the held-out loss is computed on, or a list of them",
            .others = {"valid", "eval", "val", "validation_data"}})
      .row("sequence_length", count, &C::Data::sequence_length,
           {.help = "length of a packed row",
            .range = {2, kMiB},
            .unit = "tokens",
            .others = {"seq_len", "max_length", "sequence_len", "max_seq_length"}})
      .row("read_ahead", bytes, &C::Data::read_ahead,
           {.help = "memory a rank may fill with rows before they are needed",
            .range = {kMiB, kTiB},
            .others = {"prefetch", "buffer"}})
      .row("overlong", word, &C::Data::overlong,
           {.help = "a document longer than a row: error, or skip it and count it",
            .words = {"error", "skip"}});
}

void add_train(std::vector<Option>& table) {
  SectionRows(table, "train", &C::train)
      .row("steps", count, &C::Train::steps,
           {.help = "updates of the weights in the whole run, those before a resume included",
            .range = {1, kMostSteps},
            .unit = "steps",
            .others = {"max_steps", "iterations", "num_steps"},
            .required = true})
      .row("rows_per_step", count, &C::Train::rows_per_step,
           {.help = "packed rows of all ranks together in one update",
            .range = {1, kMostRows},
            .unit = "rows",
            .others = {"batch_size", "global_batch_size"}})
      .row("rows_per_rank", count, &C::Train::rows_per_rank,
           {.help = "packed rows a rank computes at a time; more rows are accumulated over micro-batches",
            .range = {1, kMostRows},
            .unit = "rows",
            .others = {"micro_batch_size", "local_batch_size", "per_device_batch_size"}});
}

void add_optimizer(std::vector<Option>& table) {
  SectionRows(table, "optimizer", &C::optimizer)
      .row("lr", real, &C::Optimizer::lr,
           {.help = "AdamW's learning rate at its peak",
            .range = {0, 1, true},
            .others = {"learning_rate", "rate"}})
      .row("beta1", real, &C::Optimizer::beta1,
           {.help = "decay of the first moment",
            .range = {0, 1, false, true},
            .others = {"betas", "adam_beta1"}})
      .row("beta2", real, &C::Optimizer::beta2,
           {.help = "decay of the second moment", .range = {0, 1, false, true}, .others = {"adam_beta2"}})
      .row("epsilon", real, &C::Optimizer::epsilon,
           {.help = "added to the root of the second moment",
            .range = {0, 1, true},
            .others = {"eps", "adam_eps"}})
      .row("weight_decay", real, &C::Optimizer::weight_decay,
           {.help = "decoupled decay of parameters of two or more dimensions; norms and biases have none",
            .range = {0, 10},
            .others = {"decay"}})
      .row("clip_norm", real, &C::Optimizer::clip_norm,
           {.help = "largest norm of the whole gradient; 0: not clipped",
            .range = {0, 1e6},
            .others = {"grad_clip", "max_grad_norm", "clip", "gradient_clipping"}})
      .row(
          "state", word, &C::Optimizer::state,
          {.help =
               "weights and moments a parameter keeps: float32 (16 bytes), split (bf16 weight and exact "
               "rest, "
               "bf16 moments: 10), bf16 (stochastic rounding, no master: 8), float8 (as bf16, moments in one "
               "byte each: 6)",
           .words = {"float32", "split", "bf16", "float8"}})
      .row("offload", boolean, &C::Optimizer::offload,
           {.help =
                "keep moments, masters and remainders in host memory: the update reads and writes them over "
                "the bus, about a second for 12 billion parameters on one GPU"});
}

void add_schedule(std::vector<Option>& table) {
  SectionRows(table, "schedule", &C::schedule)
      .row("kind", word, &C::Schedule::kind,
           {.help = "the learning rate after warm-up",
            .words = {"constant", "linear", "cosine"},
            .others = {"type", "lr_scheduler", "name"}})
      .row("warmup_steps", count, &C::Schedule::warmup_steps,
           {.help = "steps in which the learning rate rises to its peak on a line",
            .range = {0, kMostSteps},
            .unit = "steps",
            .others = {"warmup", "warmup_ratio"}})
      .row("final_ratio", real, &C::Schedule::final_ratio,
           {.help = "learning rate at the last step as a share of the peak, for linear and cosine",
            .range = {0, 1},
            .others = {"min_lr", "min_lr_ratio", "final_lr"}});
}

void add_loss(std::vector<Option>& table) {
  SectionRows(table, "loss", &C::loss)
      .row("label_smoothing", real, &C::Loss::label_smoothing,
           {.help = "share of the target's probability spread over the vocabulary",
            .range = {0, 1, false, true}})
      .row("z_loss", real, &C::Loss::z_loss,
           {.help = "factor of the squared log of the softmax's denominator", .range = {0, 1}})
      .row("scratch", bytes, &C::Loss::scratch,
           {.help = "memory a rank may use for logits; they are computed in chunks of tokens that fit",
            .range = {kMiB, kTiB},
            .others = {"chunk", "chunk_size"}});
}

void add_parallel(std::vector<Option>& table) {
  SectionRows(table, "parallel", &C::parallel)
      .row("shard", integer, &C::Parallel::shard,
           {.help = "ranks that share one copy of weights and moments; 0: all of them",
            .range = {0, kMostRanks},
            .unit = "ranks"})
      .row("zero", integer, &C::Parallel::zero,
           {.help = "3: a layer's weights are gathered for its use; 2: kept whole, gathered once a step",
            .range = {2, 3},
            .others = {"zero_stage", "stage"}})
      .row("vocabulary", integer, &C::Parallel::vocabulary,
           {.help = "ranks that share the vocabulary table by rows; 0: those of a node",
            .range = {0, kMostRanks},
            .unit = "ranks"})
      .row("prefetch", integer, &C::Parallel::prefetch,
           {.help = "layers gathered ahead of their use", .range = {0, 64}, .unit = "layers"})
      .row("copies", boolean, &C::Parallel::copies,
           {.help = "ranks of one node read each other's weights and gradients by the GPUs' copy engines, "
                    "where the "
                    "GPUs reach each other; false: NCCL's kernels move them"})
      .row("gradient_dtype", word, &C::Parallel::gradient_dtype,
           {.help = "type in which gradients are summed over ranks",
            .words = {"bf16", "float32"},
            .others = {"reduce_dtype"}});
}

void add_memory(std::vector<Option>& table) {
  SectionRows(table, "memory", &C::memory)
      .row("activations", word, &C::Memory::activations,
           {.help = "what the backward pass finds: everything kept; or computed again: norms, rotation and "
                    "the GeGLU "
                    "product, the gate and up projections too, the whole block",
            .words = {"keep", "recompute_cheap", "recompute_gate_up", "recompute_block"},
            .others = {"activation_checkpointing", "gradient_checkpointing", "recompute"}})
      .row("richer_layers", integer, &C::Memory::richer_layers,
           {.help =
                "so many layers, from the first, keep what the policy before memory.activations in its list "
                "keeps; `lapidary plan --memory` says how many fit",
            .range = {0, 4096},
            .unit = "layers"});
}

void add_keeping(std::vector<Option>& table) {
  SectionRows(table, "validation", &C::validation)
      .row("every", count, &C::Validation::every,
           {.help = "held-out loss before the first step, after every so many, and at the end; 0: never",
            .range = {0, kMostSteps},
            .unit = "steps",
            .others = {"interval", "eval_every"}})
      .row("rows", count, &C::Validation::rows,
           {.help = "packed rows of one validation, the same every time; 0: all there are",
            .range = {0, kMostRows},
            .unit = "rows"});
  SectionRows(table, "checkpoint", &C::checkpoint)
      .row("every", count, &C::Checkpoint::every,
           {.help = "a checkpoint after every so many; 0: only at the end and on a signal",
            .range = {0, kMostSteps},
            .unit = "steps",
            .others = {"interval", "save_every", "save_steps"}})
      .row(
          "keep_last", integer, &C::Checkpoint::keep_last,
          {.help = "newest checkpoints that stay", .range = {1, 1e6}, .others = {"keep", "save_total_limit"}})
      .row("keep_every", count, &C::Checkpoint::keep_every,
           {.help = "checkpoints of multiples of this step stay for ever; 0: none",
            .range = {0, kMostSteps},
            .unit = "steps"})
      .row(
          "keep_best", integer, &C::Checkpoint::keep_best,
          {.help = "besides, this many with the lowest held-out loss stay, of those saved at a step that was "
                   "validated",
           .range = {0, 1e6},
           .others = {"save_best", "best"}})
      .row("resume", path, &C::Checkpoint::resume,
           {.help =
                "where to continue: auto, from the run's newest checkpoint if it has one; none, from the "
                "start; weights-only, as auto but with new moments; or from a checkpoint, or a run's newest",
            .words = {"auto", "none", "weights-only"},
            .others = {"resume_from", "load"}})
      .row("fallback", boolean, &C::Checkpoint::fallback,
           {.help = "if the newest checkpoint is damaged, say so and continue from the one before; false: "
                    "stop"})
      .row("staging", bytes, &C::Checkpoint::staging,
           {.help = "host memory a rank may copy its state into while training goes on, at most what the "
                    "state takes and a share of half the free memory; what does not fit is written first",
            .range = {kMiB, kTiB},
            .others = {"pinned_memory", "async_memory"}});
  SectionRows(table, "log", &C::log)
      .row("every", count, &C::Log::every,
           {.help = "a console line and a line of metrics.jsonl after every so many",
            .range = {1, kMostSteps},
            .unit = "steps",
            .others = {"interval", "log_every", "logging_steps"}});
}

void add_fault(std::vector<Option>& table) {
  SectionRows(table, "fault", &C::fault)
      .row("kind", word, &C::Fault::kind,
           {.help = "what goes wrong", .words = {"none", "throw", "nan", "kill", "hang"}, .hidden = true})
      .row("rank", integer, &C::Fault::rank,
           {.help = "on which rank", .range = {0, kMostRanks}, .hidden = true})
      .row("step", integer, &C::Fault::step,
           {.help = "in which step", .range = {1, kMostSteps}, .hidden = true});
}

std::vector<Option> make_table() {
  std::vector<Option> table;
  for (auto* add : {add_run, add_model, add_data, add_train, add_optimizer, add_schedule, add_loss,
                    add_parallel, add_memory, add_keeping, add_fault})
    add(table);
  return table;
}

}  // namespace

const std::vector<OptionSection>& option_sections() {
  static const std::vector<OptionSection> sections{
      {"run", "The run as a whole"},
      {"model", "What is trained"},
      {"data", "What it learns from"},
      {"train", "How long, and in batches of what size"},
      {"optimizer", "AdamW"},
      {"schedule", "The learning rate over time"},
      {"loss", "Cross-entropy"},
      {"parallel", "How ranks share the work"},
      {"memory", "What is kept and what is computed again"},
      {"validation", "The held-out loss"},
      {"checkpoint", "What survives the run"},
      {"log", "What the user sees"},
      {"fault", "Faults that tests ask for"},
  };
  return sections;
}

const std::vector<Option>& option_table() {
  static const std::vector<Option> table = make_table();
  return table;
}

const Option* find_option(const std::string& path) {
  const auto& table = option_table();
  const auto found =
      std::find_if(table.begin(), table.end(), [&](const Option& o) { return o.path == path; });
  return found == table.end() ? nullptr : &*found;
}

std::string suggest_option(const std::string& path) {
  const auto dot = path.find('.');
  const std::string section = dot == std::string::npos ? "" : path.substr(0, dot);
  const std::string leaf = path.substr(dot == std::string::npos ? 0 : dot + 1);
  std::string best;
  int best_distance = std::max(1, misspelling_bound(leaf)) + 1;  // 1: the right key in another section
  const auto consider = [&](int distance, const Option& option) {
    if (distance >= best_distance) return;
    best = option.path;
    best_distance = distance;
  };
  for (const auto& option : option_table()) {
    if (option.hidden) continue;
    consider(edit_distance(path, option.path), option);
    const int elsewhere = option.section() == section ? 0 : 1;
    consider(elsewhere + edit_distance(leaf, option.leaf()), option);
    for (const auto& other : option.others) consider(elsewhere + edit_distance(leaf, other), option);
  }
  return best;
}

}  // namespace lapidary
