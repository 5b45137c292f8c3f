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

/// Indices into the totals of a loss (f64 [kLossTotals]), each summed over trained tokens.
enum LossTotal : int { kTotalLoss = 0, kTotalNll, kTotalCorrect, kTotalTokens, kLossTotals };

class LossHead {
 public:
  LossHead(const ModelConfig& config, const LossOptions& options, VocabularyTable& table, DType type);

  /// hidden [N, D] after the final norm, targets i32 [N], N <= the table's capacity. Collective over the
  /// vocabulary group: its ranks may bring different N, also 0. totals f64 [kLossTotals], acc: the sums over
  /// the *group's* tokens on its first rank, nothing on the others, so that a sum over the world counts every
  /// token once. d_hidden [N, D], optional: gradient of grad_scale * (sum of the losses); then the table's
  /// gradient is added too. token_nll f32 [N] and entropy f32 [N] are optional (-1 where not trained).
  void run_chunks(Stream& stream, const Tensor& hidden, const Tensor& targets, double grad_scale,
                  const Tensor& totals, const Tensor& d_hidden, const Tensor& token_nll,
                  const Tensor& entropy);

  /// Tokens of one rank in a chunk of `total`: the most whose scores stay within the scratch, or less where
  /// that cuts as few chunks more evenly. Statistics alone (`gradients` false) need no scores on some
  /// devices; then only sums over tiles bound the chunk.
  std::int64_t chunk_tokens(Device device, std::int64_t total, bool gradients) const;

 private:
  struct Chunk;
  bool keeps_scores(Device device, bool gradients) const;
  void gather_chunk(Stream& stream, Arena& arena, const Tensor& hidden, const Tensor& targets, Chunk& chunk);
  void combine(Stream& stream, Arena& arena, Chunk& chunk, const Tensor& totals, const Tensor& token_nll,
               const Tensor& entropy);
  void gradients(Stream& stream, Arena& arena, Chunk& chunk, double grad_scale, const Tensor& d_hidden);

  const ModelConfig* config_;
  LossOptions options_;
  VocabularyTable* table_;
  DType type_, accumulation_;
};

}  // namespace lapidary
