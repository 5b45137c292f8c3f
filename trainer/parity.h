// Runs a reference case that transformers computed (shared fixture format: config.json, model.safetensors,
// inputs.safetensors, outputs.safetensors, case.json, trajectory.json) and says how far every result is from
// it.
#pragma once
#include <iosfwd>
#include <string>
#include <vector>

#include "model/activations.h"
#include "parallel/host_group.h"
#include "parallel/mesh.h"

namespace lapidary {

struct ParityOptions {
  std::string reference;    ///< the case's folder
  DType type = DType::f32;  ///< f64: how much of a difference is rounding (CPU only)
  double tolerance =
      1e-4;  ///< relative L2 of hidden states and gradients; token losses a tenth, the loss a fiftieth
  bool trajectory = false;  ///< also train the case's steps and compare their losses
  ActivationPolicy activations = ActivationPolicy::keep;
  int zero = 3;
};

/// How far one tensor is from its reference, over all ranks.
struct Difference {
  std::string name;
  double difference = 0, reference = 0;  ///< L2 norms of (ours - theirs) and of theirs
  double worst = 0;                      ///< largest |ours - theirs|
  double ours_at_worst = 0, theirs_at_worst = 0;
  double limit = 0;         ///< of relative()
  double relative() const;  ///< difference / reference; the difference itself where the reference is zero
  bool passed() const;      ///< false for NaN
};

/// Runs the case on the mesh's ranks, prints a table on rank 0 and returns whether everything is within the
/// tolerance, the same on all ranks. Rows of the case are dealt to the ranks in turn; a rank without rows
/// still takes part. Throws Error for a folder that is not a case or does not fit the model.
bool run_parity(const ParityOptions& options, HostGroup& world, Mesh& mesh, Backend& backend,
                std::ostream& out);

}  // namespace lapidary
