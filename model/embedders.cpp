#include "model/embedders.h"

#include <algorithm>

namespace lapidary {

namespace {

constexpr std::int64_t kPiece = 1024;  // soft tokens at a time: 14 MiB for the widest row of the 12B in bf16

template <class Body>
void for_pieces(std::int64_t total, const Body& body) {
  for (std::int64_t begin = 0; begin < total; begin += kPiece) body(begin, std::min(kPiece, total - begin));
}

}  // namespace

struct Embedders::VisionPiece {
  Tensor pixels;                // T [P, patch width]
  Tensor norm1, mean1, rstd1;   // T [P, patch width]
  Tensor dense, mean2, rstd2;   // T [P, W] patch_dense with bias
  Tensor placed, mean3, rstd3;  // T [P, W] after the second norm and the position
  Tensor norm3, rms_rstd;       // T [P, W]
  Tensor rms;                   // T [P, W] input of the projection
  Tensor soft;                  // T [P, D]
  Tensor xy;                    // i32 [P, 2]
};

struct Embedders::AudioPiece {
  Tensor samples, rstd, normed;  // T [A, frame width], R [A], T [A, frame width]
  Tensor soft;                   // T [A, D]
};

// Always room for a whole piece, so that the plan does not depend on what a batch holds.
Tensor Embedders::rows(Arena& arena, std::int64_t count, std::int64_t columns) const {
  return arena.allocate(type_, {kPiece, columns}).row_range(0, count);
}

Tensor Embedders::statistics(Arena& arena, std::int64_t count) const {
  return arena.allocate(type_ == DType::f64 ? DType::f64 : DType::f32, {kPiece}).row_range(0, count);
}

Embedders::VisionPiece Embedders::embed_patches(Stream& stream, Arena& arena, const DeviceBatch& batch,
                                                std::int64_t begin, std::int64_t count) const {
  const VisionConfig& v = config_->vision;
  const VisionParameters& p = *table_->vision;
  VisionPiece a;
  const auto statistics_pair = [&](Tensor& mean, Tensor& rstd) {
    mean = statistics(arena, count);
    rstd = statistics(arena, count);
  };
  a.pixels = rows(arena, count, v.patch_width());
  a.norm1 = rows(arena, count, v.patch_width());
  a.dense = rows(arena, count, v.width);
  a.placed = rows(arena, count, v.width);
  a.norm3 = rows(arena, count, v.width);
  a.rms = rows(arena, count, v.width);
  a.soft = rows(arena, count, config_->width);
  a.rms_rstd = statistics(arena, count);
  statistics_pair(a.mean1, a.rstd1);
  statistics_pair(a.mean2, a.rstd2);
  statistics_pair(a.mean3, a.rstd3);
  a.xy = batch.patch_xy.row_range(begin, begin + count);

  run(stream, ConvertFeatures{.in = batch.patches.row_range(begin, begin + count), .out = a.pixels});
  run(stream, LayerNorm{.x = a.pixels,
                        .weight = weight(p.norm1_weight),
                        .bias = weight(p.norm1_bias),
                        .y = a.norm1,
                        .mean = a.mean1,
                        .rstd = a.rstd1,
                        .eps = v.layer_norm_eps});
  run(stream, MatMul{.a = a.norm1, .b = weight(p.dense_weight), .c = a.dense, .transpose_b = true});
  run(stream, AddBias{.x = a.dense, .bias = weight(p.dense_bias)});
  run(stream, LayerNorm{.x = a.dense,
                        .weight = weight(p.norm2_weight),
                        .bias = weight(p.norm2_bias),
                        .y = a.placed,
                        .mean = a.mean2,
                        .rstd = a.rstd2,
                        .eps = v.layer_norm_eps});
  run(stream, GridEmbedding{.x = a.placed, .table = weight(p.positions), .xy = a.xy});
  run(stream, LayerNorm{.x = a.placed,
                        .weight = weight(p.norm3_weight),
                        .bias = weight(p.norm3_bias),
                        .y = a.norm3,
                        .mean = a.mean3,
                        .rstd = a.rstd3,
                        .eps = v.layer_norm_eps});
  run(stream, RmsNorm{.x = a.norm3, .y = a.rms, .rstd = a.rms_rstd, .eps = v.rms_eps});
  run(stream, MatMul{.a = a.rms, .b = weight(p.projection), .c = a.soft, .transpose_b = true});
  return a;
}

void Embedders::vision_backward(Stream& stream, Arena& arena, const VisionPiece& a,
                                const Tensor& d_soft) const {
  const VisionParameters& p = *table_->vision;
  const std::int64_t count = a.soft.rows();
  const Tensor d = rows(arena, count, config_->vision.width);
  const Tensor d_norm1 = rows(arena, count, config_->vision.patch_width());
  run(stream,
      MatMul{.a = d_soft, .b = a.rms, .c = gradient(p.projection), .transpose_a = true, .accumulate = true});
  run(stream, MatMul{.a = d_soft, .b = weight(p.projection), .c = d});
  run(stream, RmsNormBackward{.dy = d, .x = a.norm3, .rstd = a.rms_rstd, .dx = d});
  run(stream, LayerNormBackward{.dy = d,
                                .x = a.placed,
                                .mean = a.mean3,
                                .rstd = a.rstd3,
                                .weight = weight(p.norm3_weight),
                                .dx = d,
                                .d_weight = gradient(p.norm3_weight),
                                .d_bias = gradient(p.norm3_bias)});
  run(stream, GridEmbeddingBackward{.d = d, .xy = a.xy, .d_table = gradient(p.positions)});
  run(stream, LayerNormBackward{.dy = d,
                                .x = a.dense,
                                .mean = a.mean2,
                                .rstd = a.rstd2,
                                .weight = weight(p.norm2_weight),
                                .dx = d,
                                .d_weight = gradient(p.norm2_weight),
                                .d_bias = gradient(p.norm2_bias)});
  run(stream, BiasBackward{.dy = d, .d_bias = gradient(p.dense_bias)});
  run(stream,
      MatMul{.a = d, .b = a.norm1, .c = gradient(p.dense_weight), .transpose_a = true, .accumulate = true});
  run(stream, MatMul{.a = d, .b = weight(p.dense_weight), .c = d_norm1});
  run(stream, LayerNormBackward{.dy = d_norm1,
                                .x = a.pixels,
                                .mean = a.mean1,
                                .rstd = a.rstd1,
                                .weight = weight(p.norm1_weight),
                                .d_weight = gradient(p.norm1_weight),
                                .d_bias = gradient(p.norm1_bias)});
}

Embedders::AudioPiece Embedders::embed_frames(Stream& stream, Arena& arena, const DeviceBatch& batch,
                                              std::int64_t begin, std::int64_t count) const {
  AudioPiece a;
  a.samples = rows(arena, count, config_->audio.frame_width);
  a.normed = rows(arena, count, config_->audio.frame_width);
  a.soft = rows(arena, count, config_->width);
  a.rstd = statistics(arena, count);
  run(stream, ConvertFeatures{.in = batch.frames.row_range(begin, begin + count), .out = a.samples});
  run(stream, RmsNorm{.x = a.samples, .y = a.normed, .rstd = a.rstd, .eps = config_->audio.rms_eps});
  run(stream,
      MatMul{.a = a.normed, .b = weight(*table_->audio_projection), .c = a.soft, .transpose_b = true});
  return a;
}

void Embedders::forward(Stream& stream, Arena& arena, const DeviceBatch& batch, const Tensor& x) const {
  const auto place = [&](const Tensor& tokens, const auto& embed) {
    for_pieces(tokens.rows(), [&](std::int64_t begin, std::int64_t count) {
      ArenaScope scope(arena);
      const Tensor soft = embed(begin, count);
      run(stream, ScatterRows{.rows = soft, .index = tokens.row_range(begin, begin + count), .out = x});
    });
  };
  if (table_->vision) {
    place(batch.patch_token, [&](std::int64_t begin, std::int64_t count) {
      return embed_patches(stream, arena, batch, begin, count).soft;
    });
  }
  if (table_->audio_projection) {
    place(batch.frame_token, [&](std::int64_t begin, std::int64_t count) {
      return embed_frames(stream, arena, batch, begin, count).soft;
    });
  }
}

void Embedders::backward(Stream& stream, Arena& arena, const DeviceBatch& batch, const Tensor& dx) const {
  if (table_->vision) {
    for_pieces(batch.patches.rows(), [&](std::int64_t begin, std::int64_t count) {
      ArenaScope scope(arena);
      const VisionPiece piece = embed_patches(stream, arena, batch, begin, count);
      const Tensor d_soft = rows(arena, count, config_->width);
      run(stream,
          GatherRows{.in = dx, .index = batch.patch_token.row_range(begin, begin + count), .rows = d_soft});
      vision_backward(stream, arena, piece, d_soft);
    });
  }
  if (table_->audio_projection) {
    for_pieces(batch.frames.rows(), [&](std::int64_t begin, std::int64_t count) {
      ArenaScope scope(arena);
      const AudioPiece piece = embed_frames(stream, arena, batch, begin, count);
      const Tensor d_soft = rows(arena, count, config_->width);
      run(stream,
          GatherRows{.in = dx, .index = batch.frame_token.row_range(begin, begin + count), .rows = d_soft});
      run(stream, MatMul{.a = d_soft,
                         .b = piece.normed,
                         .c = gradient(*table_->audio_projection),
                         .transpose_a = true,
                         .accumulate = true});
    });
  }
}

}  // namespace lapidary
