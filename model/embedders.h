// Image patches and audio frames to soft tokens (specification 4.1 and 5.2), forward and backward.
#pragma once
#include "kernels/ops.h"
#include "model/device_batch.h"
#include "model/parameter_table.h"
#include "parallel/sharded_units.h"

namespace lapidary {

/// Works through the soft tokens in pieces of bounded size and keeps nothing: the backward pass embeds each
/// piece again, which costs little beside the decoder and leaves its memory to the decoder's activations.
class Embedders {
 public:
  Embedders(const ModelConfig& config, const ParameterTable& table, ShardedUnits& units, DType type)
      : config_(&config), table_(&table), units_(&units), type_(type) {}

  /// Overwrites the rows of x [N, D] at soft tokens. The embedder unit must be gathered.
  void forward(Stream& stream, Arena& arena, const DeviceBatch& batch, const Tensor& x) const;
  /// Adds the parameters' gradients from dx [N, D].
  void backward(Stream& stream, Arena& arena, const DeviceBatch& batch, const Tensor& dx) const;

 private:
  struct VisionPiece;  // activations of one piece
  VisionPiece embed_patches(Stream& stream, Arena& arena, const DeviceBatch& batch, std::int64_t begin,
                            std::int64_t count) const;
  void vision_backward(Stream& stream, Arena& arena, const VisionPiece& piece, const Tensor& d_soft) const;
  struct AudioPiece;
  AudioPiece embed_frames(Stream& stream, Arena& arena, const DeviceBatch& batch, std::int64_t begin,
                          std::int64_t count) const;

  Tensor weight(int parameter) const { return units_->weight(parameter); }
  Tensor gradient(int parameter) const { return units_->gradient(parameter); }
  Tensor rows(Arena& arena, std::int64_t count, std::int64_t columns) const;
  Tensor statistics(Arena& arena, std::int64_t count) const;

  const ModelConfig* config_;
  const ParameterTable* table_;
  ShardedUnits* units_;
  DType type_;
};

}  // namespace lapidary
