// Inputs of `lapidary bench loss`, and its comparison with float32.
#pragma once
#include <string>

#include "kernels/arena.h"
#include "model/config.h"

namespace lapidary {

struct LossProblem {
  Tensor hidden;   // T [N, D]
  Tensor targets;  // i32 [N]
};

/// Fills the table with normal numbers of deviation 0.02 and gives normal hidden states and random targets,
/// as at the start of a training: logits of about 1.2, a loss of about log(vocabulary).
LossProblem make_random_loss(Stream& stream, Arena& arena, const Tensor& table, std::int64_t tokens,
                             std::int64_t vocabulary, std::uint64_t seed, DType type);

/// As in a trained model: hidden states point at their target's row and nearly as much at another one's, more
/// or less strongly, so that logits reach from 15 to beyond the cap and the loss is between 0.1 and 2.
LossProblem make_peaked_loss(Stream& stream, Arena& arena, const Tensor& table, std::int64_t tokens,
                             std::int64_t vocabulary, DType type);

/// The head's loss and gradients against the same head in float32 from the same inputs, on random and on
/// peaked data: a table of relative errors (L2 of the gradients), each gradient kept in `type` and in
/// float32.
std::string loss_errors(Stream& stream, const ModelConfig& config, DType type, std::int64_t tokens);

}  // namespace lapidary
