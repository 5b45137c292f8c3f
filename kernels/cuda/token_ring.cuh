// Tokens on their way to shared memory ahead of their use, for the passes between the fused projection and q,
// k and v: one block a multiprocessor walks over its tokens, a producer warp brings them, the other warps
// take the heads in turn.
#pragma once
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/partials.h"
#include "kernels/cuda/row_ring.cuh"

namespace lapidary {

constexpr int kMaxTokenWarps = 17;
constexpr int kMaxTokenThreads = 32 * (kMaxTokenWarps + 1);  ///< the last warp is the producer

/// Warps of a block that compute.
__device__ inline int token_warps() {
  return static_cast<int>(blockDim.x) / 32 - 1;
}

/// A token's parts in a stage of shared memory: bytes from its beginning.
struct TokenStage {
  int d_q, d_k, d_v, qkv, cos, sin, bytes, stages;
  static constexpr int kMaxStages = 6;
  static constexpr int kHeader = 2 * 8 * kMaxStages + 32;  ///< barriers, to a multiple of 128
  static constexpr int kShared = 112 << 10;  ///< more bytes in flight would make memory slower, not faster

  TokenStage(const HeadSizes& z, std::size_t element) {
    const int head = 2 * z.half * static_cast<int>(element);
    d_q = 0;
    d_k = d_q + z.heads * head;
    d_v = d_k + z.kv_heads * head;
    qkv = d_v + z.kv_heads * head;
    cos = qkv + z.slots() * head;
    sin = cos + z.pairs * 4;
    bytes = sin + z.pairs * 4;
    stages = std::min(kMaxStages, (kShared - kHeader) / bytes);
  }
};

/// What is read of every token, where it lies or in a stage.
template <class T>
struct TokenRows {
  const T *d_q, *d_k, *d_v, *qkv;
  const float *cos, *sin;

  __device__ TokenRows at(const HeadSizes& z, std::int64_t token) const {
    const std::int64_t dim = 2 * z.half;
    const auto row = [&](const T* x, int heads) { return x + token * heads * dim; };
    return {row(d_q, z.heads),   row(d_k, z.kv_heads),  row(d_v, z.kv_heads),
            row(qkv, z.slots()), cos + token * z.pairs, sin + token * z.pairs};
  }
  __device__ static TokenRows staged(const TokenStage& s, const char* at) {
    const auto values = [&](int offset) { return reinterpret_cast<const T*>(at + offset); };
    const auto angles = [&](int offset) { return reinterpret_cast<const float*>(at + offset); };
    return {values(s.d_q), values(s.d_k), values(s.d_v), values(s.qkv), angles(s.cos), angles(s.sin)};
  }
};

/// The ring of stages, as the producer and each other warp see it.
struct TokenRing {
  const TokenStage& shape;
  char* shared;
  int stage = 0;
  std::uint32_t phase = 0;

  __device__ std::uint32_t full() const { return hopper::shared_address(shared) + stage * 16; }
  __device__ std::uint32_t empty() const { return full() + 8; }
  __device__ char* data() const { return shared + TokenStage::kHeader + stage * shape.bytes; }
  __device__ void next() {
    if (++stage == shape.stages) stage = 0, phase ^= 1;
  }
  /// All threads of the block.
  __device__ void set_up() const {
    if (threadIdx.x == 0) {
      TokenRing each = *this;
      for (int i = 0; i < shape.stages; ++i, each.next()) {
        hopper::barrier_init(each.full(), 1);
        hopper::barrier_init(each.empty(), static_cast<std::uint32_t>(32 * token_warps()));
      }
      hopper::fence_barrier_init();
    }
    __syncthreads();
  }
};

template <class T>
__device__ void bring_tokens(const TokenRows<T>& from, const HeadSizes& z, TokenRing ring,
                             const WalkedRows& tokens) {
  const TokenStage& s = ring.shape;
  for (int token = tokens.row; token < tokens.end; token += tokens.step, ring.next()) {
    hopper::wait(ring.empty(), ring.phase ^ 1);
    const TokenRows<T> rows = from.at(z, token);
    const std::uint32_t to = hopper::shared_address(ring.data()), full = ring.full();
    hopper::arrive_expect(full, static_cast<std::uint32_t>(s.bytes));
    const auto load = [&](const void* x, int begin, int end) {
      if (end > begin)
        hopper::bulk_load(to + static_cast<std::uint32_t>(begin), x, static_cast<std::uint32_t>(end - begin),
                          full);
    };
    load(rows.d_q, s.d_q, s.d_k);
    load(rows.d_k, s.d_k, s.d_v);
    load(rows.d_v, s.d_v, s.qkv);
    load(rows.qkv, s.qkv, s.cos);
    load(rows.cos, s.cos, s.sin);
    load(rows.sin, s.sin, s.bytes);
  }
}

/// Packs come through the ring; single components are read where they lie.
template <class S>
constexpr bool kStaged = S::W > 1;

/// f(rows, token) for the block's tokens in every warp but the last, which brings them.
template <class T, class S, class F>
__device__ inline void for_tokens(const TokenRows<T>& from, const HeadSizes& z, TokenRing ring,
                                  const WalkedRows& tokens, F&& f) {
  if constexpr (kStaged<S>) ring.set_up();
  if (static_cast<int>(threadIdx.x) / 32 == token_warps()) {
    if constexpr (kStaged<S>) {
      if (hopper::elect_one()) bring_tokens(from, z, ring, tokens);
      __syncwarp();
    }
    return;
  }
  for (int token = tokens.row; token < tokens.end; token += tokens.step) {
    if constexpr (kStaged<S>) {
      hopper::wait(ring.full(), ring.phase);
      f(TokenRows<T>::staged(ring.shape, ring.data()), token);
      // Every thread that has read: racecheck (2025.3) does not see that a warp's barrier orders the others'
      // reads before one lane's arrival, and it takes no longer.
      hopper::arrive(ring.empty());
      ring.next();
    } else {
      f(from.at(z, token), token);
    }
  }
}

}  // namespace lapidary
