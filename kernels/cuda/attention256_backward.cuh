// The parts of the backward for heads of 256 components, each a file of its own: attention256_backward.cu
// prepares and plans, attention256_keys.cu sums dk and dv and may keep the gradients of the scores,
// attention256_queries.cu sums dq from those or computes them again.
#pragma once
#include "kernels/cuda/attention256.cuh"

namespace lapidary::attention256 {

constexpr std::uint32_t kScoreTileBytes = kTile * kTile * sizeof(Bf16);

/// Pointers into the scratch, and the sizes that go with them.
struct BackwardBuffers {
  int* counters;
  float *lse2, *delta;                    ///< [H, stride]
  std::int32_t *query_begin, *query_end;  ///< [N] queries that see a key
  Bf16* gradients;                        ///< tiles of score gradients
  int stride;
  BackwardBuffers(void* scratch, const Attention256Scratch& plan);
};

/// The key heads [kv_begin, kv_begin + kv_heads) of one round of the two sums. The gradients of the scores of
/// 64 queries (block b) of head h of these and 64 keys (tile t) lie at tile
/// (h query_blocks + b) slots + t % slots: the tiles that a block of queries sees follow each other, and
/// there are at most `slots` of them.
struct Round {
  int kv_begin, kv_heads;
  int query_blocks, slots;  ///< slots 0: the gradients are not kept

  __host__ __device__ std::int64_t tile(int head, int query_block, int key_tile) const {
    return (static_cast<std::int64_t>(head) * query_blocks + query_block) * slots + key_tile % slots;
  }
};

/// counters[0] and counters[1] are 0 and belong to the round.
void sum_over_queries(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& round,
                      int* counter, cudaStream_t stream);
void sum_over_keys(const Attention256Backward& call, const BackwardBuffers& buffers, const Round& round,
                   int* counter, cudaStream_t stream);

/// d_q from nothing kept, all heads.
void sum_over_keys_again(const Attention256Backward& call, const BackwardBuffers& buffers, int* counter,
                         cudaStream_t stream);

}  // namespace lapidary::attention256
