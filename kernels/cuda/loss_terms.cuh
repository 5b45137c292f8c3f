// The largest terms of the loss head's gradients. Rounded to bf16 inside the scores, and once more in the
// scaled hidden states, they would make up the error; so the scores hold 0 there, and the terms are computed
// and added in float32. Of a row's columns those are its target and all others with at least 1 / kLargeTerms
// of the probability.
#pragma once
#include "kernels/cuda/loss_blocks.cuh"

namespace lapidary {

/// [C, kExactTerms]: a row's target first, the large terms behind it in the order of their columns.
struct ExactTerms {
  std::int32_t* ids;  ///< of the whole vocabulary; -1: none
  float* weights;     ///< d(loss) / dz; until prepare_rows has run, the capped logit of a large term
};

/// Where find_large_terms looks.
struct LargeTermSearch {
  const Bf16 *hidden, *table, *scores;
  const float *stats, *lse;
  const float* tile_best;  ///< [C, tiles]; without: every score is looked at
  const std::int32_t* targets;
  std::int64_t stride, first_row;  ///< of the scores; of the table
  int width, columns, tiles;
  float cap;

  /// z of one column, by a warp.
  __device__ float logit(std::int64_t r, int column, int lane) const {
    const Bf16 *x = hidden + r * width, *w = table + static_cast<std::int64_t>(column) * width;
    float sum = 0.0f;
    if (width % 8 == 0) {
      for (int i = lane * 8; i < width; i += 32 * 8) {
        const auto a = Pack<Bf16, 8>::load(x + i), b = Pack<Bf16, 8>::load(w + i);
#pragma unroll
        for (int k = 0; k < 8; ++k) sum = fmaf(a.get(k), b.get(k), sum);
      }
    } else {
      for (int i = lane; i < width; i += 32) sum = fmaf(to_float(x[i]), to_float(w[i]), sum);
    }
    return warp_sum(sum);
  }

  /// The score that a capped logit has: rising, then falling within a nat of the cap.
  __device__ float score(float l, float shift) const {
    const float t = cap > 0.0f ? l / cap : 0.0f;
    return expf(l - shift) * (1.0f - t * t);
  }
};

constexpr int kSearchThreads = 128;

/// A block's finds, in any order.
struct LargeTermList {
  int count;
  int column[kLargeTerms];
  float logit[kLargeTerms];

  __device__ void add(int c, float l) {
    const int at = atomicAdd(&count, 1);
    if (at < kLargeTerms) column[at] = c, logit[at] = l;
  }
  /// Writes them in the order of their columns, -1 behind.
  __device__ void store(std::int64_t r, std::int64_t first_row, const ExactTerms& to) const {
    const int mine = static_cast<int>(threadIdx.x), found = min(count, kLargeTerms);
    if (mine >= kLargeTerms) return;
    int place = mine;
    if (mine < found) {
      place = 0;
      for (int i = 0; i < found; ++i) place += column[i] < column[mine];
    }
    const std::int64_t at = r * kExactTerms + 1 + place;
    to.ids[at] = mine < found ? static_cast<std::int32_t>(first_row + column[mine]) : -1;
    to.weights[at] = mine < found ? logit[mine] : 0.0f;
  }
};

/// A tile's columns, by a warp: where the score may be that of a large term, the logit is computed.
__device__ inline void search_tile(const LargeTermSearch& s, std::int64_t r, int tile, float least,
                                   float least_score, LargeTermList& list) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int end = min(s.columns, (tile + 1) * static_cast<int>(kProductColumns));
  for (int begin = tile * static_cast<int>(kProductColumns); begin < end; begin += 32) {
    const int column = begin + lane;
    const bool may = column < end && s.first_row + column != s.targets[r] &&
                     to_float(s.scores[r * s.stride + column]) > least_score;
    for (unsigned rest = __ballot_sync(0xffffffffu, may); rest != 0; rest &= rest - 1) {
      const int candidate = begin + __ffs(static_cast<int>(rest)) - 1;
      const float l = Cap<Bf16>(s.cap)(s.logit(r, candidate, lane)).l;
      if (l >= least && lane == 0) list.add(candidate, l);
    }
  }
}

/// One block per row. What is found does not depend on the order in which its warps come.
__global__ void __launch_bounds__(kSearchThreads) find_large_terms(LargeTermSearch s, ExactTerms terms) {
  __shared__ LargeTermList list;
  const std::int64_t r = blockIdx.x;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) list.count = 0;
  __syncthreads();
  const float* stats = s.stats + r * kLossStats;
  const float best = stats[kLossBest], shift = stats[kLossMax];
  const float least = s.lse[r] - logf(static_cast<float>(kLargeTerms));
  if (s.targets[r] >= 0 && best >= least) {
    // bf16 and the approximate units are off by less than 2^-7.
    const float least_score = fminf(s.score(least, shift), s.score(best, shift)) * (1.0f - 0x1p-7f);
    const Cap<Bf16> cap(s.cap);
    for (int begin = warp * 32; begin < s.tiles; begin += kSearchThreads) {
      const int tile = begin + lane;
      bool may = tile < s.tiles;
      if (may && s.tile_best) may = cap(s.tile_best[r * s.tiles + tile]).l >= least;
      for (unsigned rest = __ballot_sync(0xffffffffu, may); rest != 0; rest &= rest - 1)
        search_tile(s, r, begin + __ffs(static_cast<int>(rest)) - 1, least, least_score, list);
    }
  }
  __syncthreads();
  list.store(r, s.first_row, terms);
}

}  // namespace lapidary
