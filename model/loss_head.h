// Final hidden states to loss and gradients without the logits ever being whole (architecture, decision 7):
// tokens go through in chunks over this rank's rows of the table, ranks of the vocabulary group exchange
// hidden states and a few sums per token.
#pragma once
#include <cstddef>

#include "kernels/ops.h"
#include "model/config.h"
#include "parallel/vocabulary_table.h"

namespace lapidary {

struct LossOptions {
  double label_smoothing = 0, z_loss = 0;
  /// Bound on the memory of a chunk's scores. Beside it a chunk takes 6 bytes per token and unit of width
  /// (its gradients and scaled states) or 3 % of the scores (sums over tiles), whichever is more.
  std::size_t scratch_bytes = std::size_t{256} << 20;
};

/// What a loss head says of every token: f32 [N] (f64 for f64), each optional.
struct TokenResults {
  Tensor nll{};      ///< negative log-likelihood; -1 where not trained
  Tensor entropy{};  ///< of the prediction, in nats; of tokens that are not trained too
};

class LossHead {
 public:
  LossHead(const ModelConfig& config, const LossOptions& options, VocabularyTable& table, DType type);

  /// hidden [N, D] after the final norm, targets i32 [N], N <= the table's capacity. Collective over the
  /// vocabulary group: its ranks may bring different N, also 0. totals f64 [kLossTotals], acc: sums over this
  /// rank's own tokens. d_hidden [N, D], optional: gradient of grad_scale * (sum of the losses); then the
  /// table's gradient is added too.
  void run_chunks(Stream& stream, const Tensor& hidden, const Tensor& targets, double grad_scale,
                  const Tensor& totals, const Tensor& d_hidden, const TokenResults& tokens = {});

  /// Tokens of one rank in a chunk of `total`: the most whose scores stay within the scratch, or less where
  /// that cuts as few chunks more evenly. Statistics alone (`gradients` false) need no scores on some
  /// devices; then only sums over tiles bound the chunk.
  std::int64_t chunk_tokens(Device device, std::int64_t total, bool gradients) const;

 private:
  struct Chunk;
  bool keeps_scores(Device device, bool gradients) const;
  void gather_chunk(Stream& stream, Arena& arena, const Tensor& hidden, const Tensor& targets, Chunk& chunk);
  void allocate_scores(Device device, Arena& arena, bool gradients, Chunk& chunk) const;
  void combine(Stream& stream, Arena& arena, Chunk& chunk, const Tensor& totals, const TokenResults& tokens);
  void gradients(Stream& stream, Arena& arena, Chunk& chunk, double grad_scale, const Tensor& d_hidden);

  const ModelConfig* config_;
  LossOptions options_;
  VocabularyTable* table_;
  DType type_, accumulation_;
};

}  // namespace lapidary
