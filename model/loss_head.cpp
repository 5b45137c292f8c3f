#include "model/loss_head.h"

#include <algorithm>

#include "kernels/check.h"

namespace lapidary {

/// One chunk: `tokens` of every rank of the group, `own` of them this rank's real ones.
struct LossHead::Chunk {
  std::int64_t begin = 0, own = 0, tokens = 0;
  Tensor hidden;     // T [G tokens, D]: all ranks' hidden states, zeros behind each rank's own
  Tensor targets;    // i32 [G tokens], -1 behind
  Tensor scores;     // [G tokens, R], or nothing where the statistics do without
  Tensor stats;      // [G tokens, kLossStats]: this rank's rows of the table
  Tensor tile_best;  // [G tokens, tiles], for gradients on some devices
  Tensor lse;        // [G tokens]
};

LossHead::LossHead(const ModelConfig& config, const LossOptions& options, VocabularyTable& table, DType type)
    : config_(&config),
      options_(options),
      table_(&table),
      type_(type),
      accumulation_(type == DType::f64 ? DType::f64 : DType::f32) {}

bool LossHead::keeps_scores(Device device, bool gradients) const {
  return gradients || !loss_statistics_alone(device, type_, config_->width, config_->soft_cap);
}

std::int64_t LossHead::chunk_tokens(Device device, std::int64_t total, bool gradients) const {
  constexpr std::int64_t kTile = 256;  // tokens that products on a GPU work on at a time
  constexpr std::size_t kStatisticsScratch = std::size_t{14} << 20;  // enough to keep a GPU busy
  const std::int64_t ranks = table_->group().size();
  // Every rank of the group must cut the same chunks: count the largest shard's rows, not one's own.
  const std::int64_t rows = table_rows(config_->vocabulary, 0, static_cast<int>(ranks)).size();
  std::int64_t fits = 0;  // tokens of all ranks
  if (keeps_scores(device, gradients)) {
    const std::size_t per_token =
        static_cast<std::size_t>(loss_score_stride(device, rows)) * size_of(loss_score_dtype(device, type_));
    fits = static_cast<std::int64_t>(options_.scratch_bytes / per_token);
    require(fits >= ranks,
            "loss.scratch is {} bytes, expected at least {}: one token of every rank in the vocabulary group",
            options_.scratch_bytes, per_token * static_cast<std::size_t>(ranks));
  } else {
    LossScores tile{};
    tile.hidden = Tensor(nullptr, type_, {kTile, config_->width});
    tile.table = Tensor(nullptr, type_, {rows, config_->width});
    tile.cap = config_->soft_cap;
    const std::size_t budget = std::min(options_.scratch_bytes, kStatisticsScratch);
    fits = std::max<std::int64_t>(static_cast<std::int64_t>(budget / tile.scratch_bytes(device)), 1) * kTile;
  }
  fits = std::max<std::int64_t>(fits / ranks, 1);
  if (total <= fits) return std::max<std::int64_t>(total, 1);
  const std::int64_t chunks = (total + fits - 1) / fits, even = (total + chunks - 1) / chunks;
  return std::min(fits, (even + kTile - 1) / kTile * kTile);
}

void LossHead::gather_chunk(Stream& stream, Arena& arena, const Tensor& hidden, const Tensor& targets,
                            Chunk& chunk) {
  const Tensor own_hidden = hidden.row_range(chunk.begin, chunk.begin + chunk.own);
  const Tensor own_targets = targets.row_range(chunk.begin, chunk.begin + chunk.own);
  Communicator& group = table_->group();
  if (group.size() == 1) {
    chunk.hidden = own_hidden;
    chunk.targets = own_targets;
    return;
  }
  const std::int64_t all = chunk.tokens * group.size(), place = chunk.tokens * group.rank();
  chunk.hidden = arena.allocate(type_, {all, config_->width});
  chunk.targets = arena.allocate(DType::i32, {all});
  const Tensor my_hidden = chunk.hidden.row_range(place, place + chunk.tokens);
  const Tensor my_targets = chunk.targets.row_range(place, place + chunk.tokens);
  run(stream, Copy{.in = own_hidden, .out = my_hidden.row_range(0, chunk.own)});
  run(stream, Copy{.in = own_targets, .out = my_targets.row_range(0, chunk.own)});
  run(stream, Fill{.x = my_hidden.row_range(chunk.own, chunk.tokens)});
  run(stream, Fill{.x = my_targets.row_range(chunk.own, chunk.tokens), .value = -1});
  Ticket states = group.all_gather(stream, my_hidden, chunk.hidden);
  group.wait(stream, states);
  Ticket ids = group.all_gather(stream, my_targets, chunk.targets);
  group.wait(stream, ids);
}

void LossHead::allocate_scores(Device device, Arena& arena, bool gradients, Chunk& chunk) const {
  const std::int64_t n = chunk.hidden.rows(), rows = table_->range().size();
  if (keeps_scores(device, gradients)) {
    const std::int64_t stride = loss_score_stride(device, rows);
    chunk.scores = arena.allocate(loss_score_dtype(device, type_), {n, stride}).col_range(0, rows);
  }
  const std::int64_t tiles = loss_tiles(device, type_, rows);
  if (gradients && tiles > 0) chunk.tile_best = arena.allocate(DType::f32, {n, tiles});
}

void LossHead::combine(Stream& stream, Arena& arena, Chunk& chunk, const Tensor& totals,
                       const TokenResults& tokens) {
  Communicator& group = table_->group();
  const std::int64_t n = chunk.hidden.rows();
  Tensor all_stats = chunk.stats.reshape({1, n, kLossStats});
  if (group.size() > 1) {
    all_stats = arena.allocate(accumulation_, {group.size(), n, kLossStats});
    Ticket gathered = group.all_gather(stream, chunk.stats, all_stats);
    group.wait(stream, gathered);
  }
  const Tensor nll = arena.allocate(accumulation_, {n});
  const Tensor entropy = tokens.entropy ? arena.allocate(accumulation_, {n}) : Tensor();
  const std::int64_t place = group.size() == 1 ? 0 : chunk.tokens * group.rank();
  run(stream, LossCombine{.stats = all_stats,
                          .targets = chunk.targets,
                          .vocabulary = config_->vocabulary,
                          .label_smoothing = options_.label_smoothing,
                          .z_loss = options_.z_loss,
                          .counted_begin = place,
                          .counted_end = place + chunk.own,
                          .lse = chunk.lse,
                          .token_nll = nll,
                          .entropy = entropy,
                          .totals = totals});
  const auto hand_out = [&](const Tensor& from, const Tensor& to) {
    if (!to) return;
    run(stream, Copy{.in = from.row_range(place, place + chunk.own),
                     .out = to.row_range(chunk.begin, chunk.begin + chunk.own)});
  };
  hand_out(nll, tokens.nll);
  hand_out(entropy, tokens.entropy);
}

void LossHead::gradients(Stream& stream, Arena& arena, Chunk& chunk, double grad_scale,
                         const Tensor& d_hidden) {
  Communicator& group = table_->group();
  const Tensor own = d_hidden.row_range(chunk.begin, chunk.begin + chunk.own);
  // A group's parts are summed in float32; one rank's result needs no sum and rounds once.
  const Tensor part =
      group.size() == 1 ? own : arena.allocate(accumulation_, {chunk.hidden.rows(), config_->width});
  run(stream, LossGradient{.scores = chunk.scores,
                           .stats = chunk.stats,
                           .hidden = chunk.hidden,
                           .table = table_->weight(),
                           .targets = chunk.targets,
                           .first_row = table_->range().begin,
                           .cap = config_->soft_cap,
                           .vocabulary = config_->vocabulary,
                           .label_smoothing = options_.label_smoothing,
                           .z_loss = options_.z_loss,
                           .grad_scale = grad_scale,
                           .lse = chunk.lse,
                           .tile_best = chunk.tile_best,
                           .d_hidden = part,
                           .d_table = table_->gradient()});
  if (group.size() == 1) return;
  const Tensor sum = arena.allocate(accumulation_, {chunk.tokens, config_->width});
  Ticket reduced = group.reduce_scatter(stream, part, sum);
  group.wait(stream, reduced);
  run(stream, Copy{.in = sum.row_range(0, chunk.own), .out = own});
}

void LossHead::run_chunks(Stream& stream, const Tensor& hidden, const Tensor& targets, double grad_scale,
                          const Tensor& totals, const Tensor& d_hidden, const TokenResults& tokens) {
  Arena& arena = stream.workspace();
  const bool alone = table_->group().size() == 1;
  const std::int64_t end = alone ? hidden.rows() : table_->capacity();
  const std::int64_t step = chunk_tokens(stream.device(), end, static_cast<bool>(d_hidden));
  for (std::int64_t begin = 0; begin < end; begin += step) {
    ArenaScope scope(arena);
    Chunk chunk;
    chunk.begin = std::min(begin, hidden.rows());
    chunk.own = std::min(step, hidden.rows() - chunk.begin);
    chunk.tokens = alone ? chunk.own : std::min(step, end - begin);
    gather_chunk(stream, arena, hidden, targets, chunk);
    const std::int64_t n = chunk.hidden.rows();
    allocate_scores(stream.device(), arena, static_cast<bool>(d_hidden), chunk);
    chunk.stats = arena.allocate(accumulation_, {n, kLossStats});
    chunk.lse = arena.allocate(accumulation_, {n});
    run(stream, LossScores{.hidden = chunk.hidden,
                           .table = table_->weight(),
                           .targets = chunk.targets,
                           .first_row = table_->range().begin,
                           .cap = config_->soft_cap,
                           .scores = chunk.scores,
                           .stats = chunk.stats,
                           .tile_best = chunk.tile_best});
    combine(stream, arena, chunk, totals, tokens);
    if (d_hidden) gradients(stream, arena, chunk, grad_scale, d_hidden);
  }
}

}  // namespace lapidary
