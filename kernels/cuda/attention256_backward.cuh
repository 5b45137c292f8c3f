// The parts of the backward for heads of 256 components, each a file of its own: attention256_backward.cu
// plans, attention256_prepare.cu prepares, attention256_keys.cu sums dk and dv and may keep the gradients of
// the scores, attention256_queries.cu sums dq from those or computes them again.
//
// The kernels run one into the other: none waits for the end of the one before, but for flags in global
// memory that say what is there. A kernel is launched when all blocks of the one before have begun
// (launch_dependents) and waits for that one's end before its own: the end of the last is the end of all.
#pragma once
#include "kernels/cuda/attention256.cuh"

namespace lapidary::attention256 {

constexpr std::uint32_t kScoreTileBytes = kTile * kTile * sizeof(Bf16);

/// The key heads [kv_begin, kv_begin + kv_heads) of one round of the two sums, and the tiles of score
/// gradients that are kept for each of their query heads: 0 where they are not.
struct Round {
  int kv_begin, kv_heads;
  int head_tiles;
};

/// Gradients of the scores in tiles of 64 queries and 64 keys. The tiles that a block of queries sees follow
/// each other; tile t of block b is the (first[b] + t)-th of its head.
struct KeptGradients {
  Bf16* tiles;  ///< null: they are not kept
  const std::int32_t* first;
  int head_tiles;

  /// The place of a tile among all, and where it begins.
  __device__ int place(int head, int block, int key_tile) const {
    return head * head_tiles + __ldg(first + block) + key_tile;
  }
  __device__ Bf16* tile(int head, int block, int key_tile) const {
    return tiles + static_cast<std::int64_t>(place(head, block, key_tile)) * (kTile * kTile);
  }
};

/// Which rows have their delta: a few processors make it, in order, while the others begin with the keys.
struct DeltaFlags {
  static constexpr int kRows = 32;  ///< of a unit; a row is a head of a token
  int* ready;                       ///< by block of 64 tokens: units that are done
  int* all;                         ///< units that are done
  int tokens, heads;

  __host__ __device__ int block_units() const { return kTile * heads / kRows; }
  __host__ __device__ int units() const { return (tokens + kTile - 1) / kTile * block_units(); }
};

/// What a loading thread knows of them.
class DeltaReader {
 public:
  __device__ explicit DeltaReader(const DeltaFlags& flags) : flags_(flags) {}
  /// From time to time: nothing waits any more when all are done.
  __device__ void look() { all_ = all_ || hopper::load_acquire(flags_.all) == flags_.units(); }
  /// Waits for those of 64 tokens.
  __device__ void wait_for(int token) const {
    for (int block = token / kTile; !all_ && block <= (min(token + kTile, flags_.tokens) - 1) / kTile;
         ++block)
      while (hopper::load_acquire(flags_.ready + block) < flags_.block_units()) {
      }
  }

 private:
  const DeltaFlags& flags_;
  bool all_ = false;
};

/// Pointers into the scratch, and the sizes that go with them.
struct BackwardBuffers {
  int* counters;                          ///< units of rows that are done, and a RoundCounters each round
  int* ready;                             ///< by block of queries, as DeltaFlags has it
  int* stored;                            ///< by block of keys: key heads whose gradients are kept
  float *lse2, *delta;                    ///< [H, stride]
  std::int32_t *query_begin, *query_end;  ///< [N] queries that see a key
  std::int32_t* first;                    ///< by block of queries, as KeptGradients has it
  Bf16* gradients;                        ///< tiles of score gradients
  int stride;
  BackwardBuffers(void* scratch, const Attention256Scratch& plan);

  DeltaFlags delta_flags(const AttentionSizes& sizes) const {
    return {ready, counters, static_cast<int>(sizes.tokens), static_cast<int>(sizes.heads)};
  }
  KeptGradients kept(const Round& round) const {
    return {round.head_tiles > 0 ? gradients : nullptr, first, round.head_tiles};
  }
};

/// First of the whole tiles of keys that queries with the bounds [begin, end) see, and the first behind them.
__host__ __device__ inline int first_tile(int begin) {
  return begin / kTile;
}
__host__ __device__ inline int end_tile(int begin, int end) {
  return end > begin ? (end - 1) / kTile + 1 : first_tile(begin);
}

/// Of a round, in memory and 0 before it: what hands out the items of the first sums and of the second, and
/// how many of the first are done.
struct RoundCounters {
  int keys, keys_done, queries;
};

/// `first` is the first round.
void prepare(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& first,
             cudaStream_t stream);
void sum_over_queries(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& round,
                      RoundCounters* counters, cudaStream_t stream);
void sum_over_keys(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& round,
                   RoundCounters* counters, cudaStream_t stream);

/// d_q from nothing kept, all heads.
void sum_over_keys_again(const Attention256Backward& call, const BackwardBuffers& buffers,
                         RoundCounters* counters, cudaStream_t stream);

}  // namespace lapidary::attention256
