// What a run is: the values that its YAML files, defaults and --set options resolve to. Member initialisers
// are the defaults; names, ranges, words and help of every key are in options.cpp, and docs/configuration.md
// is made from both.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/batch.h"
#include "model/activations.h"

namespace lapidary {

/// A path as the user wrote it. ${NAME} stands for an environment variable and is looked up where the path is
/// used, so that a saved configuration shows what was written and not what one machine made of it.
struct ConfigPath {
  std::string text;

  bool empty() const { return text.empty(); }
  /// For keys that take a word in place of a path ("auto", "random").
  bool is(const char* word) const { return text == word; }
  /// The path with every ${NAME} replaced. Throws Error naming the variable where one is not set.
  std::string resolve() const;

  bool operator==(const ConfigPath&) const = default;
};

/// A folder of shards and how often its documents are drawn relative to the other sources.
struct ConfiguredSource {
  ConfigPath path;
  double weight = 1.0;

  bool operator==(const ConfiguredSource&) const = default;
};

enum class DeviceChoice : std::uint8_t { automatic, cpu, cuda };
enum class Precision : std::uint8_t { bf16, float32 };
enum class Overlong : std::uint8_t { error, skip };
/// Layouts of weights and moments (architecture, decision 5): 16, 10, 8 and 6 bytes a parameter.
enum class OptimizerState : std::uint8_t { float32, split, bf16, float8 };
enum class ScheduleKind : std::uint8_t { constant, linear, cosine };
enum class FaultKind : std::uint8_t { none, throw_error, nan, kill, hang };

struct RunConfig {
  struct Run {
    ConfigPath directory;
    std::int64_t seed = 1;
    DeviceChoice device = DeviceChoice::automatic;
    Precision precision = Precision::bf16;
    ConfigPath products{"auto"};
    double stop_after = 0;  ///< seconds; 0: no limit
    double patience = 600;  ///< seconds without progress after which a run ends; 0: never
    bool operator==(const Run&) const = default;
  } run;

  struct Model {
    ConfigPath config;
    ConfigPath weights{"random"};
    ImageAttention image_attention = ImageAttention::sliding;
    bool operator==(const Model&) const = default;
  } model;

  struct Data {
    std::vector<ConfiguredSource> train, validation;
    std::int64_t sequence_length = 8192;    ///< tokens of a packed row
    std::int64_t read_ahead = 256LL << 20;  ///< bytes a rank
    Overlong overlong = Overlong::error;
    bool operator==(const Data&) const = default;
  } data;

  struct Train {
    std::int64_t steps = 0;
    std::int64_t rows_per_step = 8;  ///< packed rows of the global batch
    std::int64_t rows_per_rank = 1;  ///< packed rows of a micro-batch
    bool operator==(const Train&) const = default;
  } train;

  struct Optimizer {
    double lr = 1e-5;
    double beta1 = 0.9, beta2 = 0.95;
    double epsilon = 1e-8;
    double weight_decay = 0.1;
    double clip_norm = 1.0;  ///< 0: no clipping
    OptimizerState state = OptimizerState::float32;
    bool offload = false;
    bool operator==(const Optimizer&) const = default;
  } optimizer;

  struct Schedule {
    ScheduleKind kind = ScheduleKind::cosine;
    std::int64_t warmup_steps = 0;
    double final_ratio = 0.1;
    bool operator==(const Schedule&) const = default;
  } schedule;

  struct Loss {
    double label_smoothing = 0, z_loss = 0;
    std::int64_t scratch = 256LL << 20;  ///< bytes a rank
    bool operator==(const Loss&) const = default;
  } loss;

  struct Parallel {
    std::int64_t shard = 0;       ///< ranks of a shard group; 0: all
    std::int64_t zero = 3;        ///< 2 or 3
    std::int64_t vocabulary = 0;  ///< ranks of a vocabulary group; 0: those of a node
    std::int64_t prefetch = 1;    ///< units gathered ahead
    bool copies = true;           ///< of a node's GPUs: by copy engines
    Precision gradient_dtype = Precision::float32;
    bool operator==(const Parallel&) const = default;
  } parallel;

  struct Memory {
    ActivationPolicy activations = ActivationPolicy::recompute_cheap;
    std::int64_t richer_layers = 0;  ///< that keep what the policy before keeps
    bool operator==(const Memory&) const = default;
  } memory;

  struct Validation {
    std::int64_t every = 0;  ///< steps; 0: never
    std::int64_t rows = 0;   ///< packed rows; 0: all
    bool operator==(const Validation&) const = default;
  } validation;

  struct Checkpoint {
    std::int64_t every = 500;  ///< steps; 0: only at the end and on a signal
    std::int64_t keep_last = 2;
    std::int64_t keep_every = 0;  ///< steps; 0: none
    std::int64_t keep_best = 0;
    ConfigPath resume{"auto"};
    bool fallback = true;
    std::int64_t staging = 64LL << 30;  ///< bytes a rank
    bool operator==(const Checkpoint&) const = default;
  } checkpoint;

  struct Log {
    std::int64_t every = 1;  ///< steps
    bool operator==(const Log&) const = default;
  } log;

  /// Faults that tests ask for.
  struct Fault {
    FaultKind kind = FaultKind::none;
    std::int64_t rank = 0, step = 1;
    bool operator==(const Fault&) const = default;
  } fault;

  bool operator==(const RunConfig&) const = default;
};

/// What is wrong with values that are each allowed alone: pairs of the key to blame and the complaint.
struct ConfigConflict {
  std::string key, message;
};
std::vector<ConfigConflict> find_conflicts(const RunConfig& config);

}  // namespace lapidary
