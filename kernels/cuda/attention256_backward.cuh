// The parts of the backward for heads of 256 components, each a file of its own: attention256_backward.cu
// prepares and plans, attention256_keys.cu sums dk and dv and may keep the gradients of the scores,
// attention256_queries.cu sums dq from those or computes them again.
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

/// Pointers into the scratch, and the sizes that go with them.
struct BackwardBuffers {
  int* counters;
  float *lse2, *delta;                    ///< [H, stride]
  std::int32_t *query_begin, *query_end;  ///< [N] queries that see a key
  std::int32_t* first;                    ///< by block of queries, as KeptGradients has it
  Bf16* gradients;                        ///< tiles of score gradients
  int stride;
  BackwardBuffers(void* scratch, const Attention256Scratch& plan);

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

/// counters[0] and counters[1] are 0 and belong to the round.
void sum_over_queries(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& round,
                      int* counter, cudaStream_t stream);
void sum_over_keys(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& round,
                   int* counter, cudaStream_t stream);

/// d_q from nothing kept, all heads.
void sum_over_keys_again(const Attention256Backward& call, const BackwardBuffers& buffers, int* counter,
                         cudaStream_t stream);

}  // namespace lapidary::attention256
