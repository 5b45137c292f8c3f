// What happens to the sums of the loss head's products before they leave the registers.
#pragma once
#include "kernels/cuda/product.cuh"

namespace lapidary::product {

/// Row of the tile, and column within a block of 8 columns, of a thread's accumulators: sums[i][4 j + 2 h +
/// c] is at row + 64 i + 8 h and column 8 j + column + c.
struct Place {
  int row, column;
  __device__ Place() {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    row = thread / 32 * 16 + thread % 32 / 4;
    column = thread % 4 * 2;
  }
};

/// Calls f(shared address, value, value of the next column) for the part of block `block` (128 bytes of
/// elements T a row) of the sums that this thread holds, in a swizzled buffer of 128 rows.
template <class T, class F>
__device__ inline void for_pairs(const Sums& sums, int block, std::uint32_t buffer, F&& f) {
  constexpr int kGroups = 128 / static_cast<int>(sizeof(T)) / 8;  // of 8 columns
  // In float32 a thread's pair is half of a swizzle's 16 bytes, and rows 0 and 1, 2 and 3, ... would meet in
  // the same banks: odd rows go through their columns in another order.
  constexpr int kOther = sizeof(T) == 4 ? 2 : 0;
  const Place place;
  const bool odd = place.row % 2 != 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t row = static_cast<std::uint32_t>(place.row + 64 * i + 8 * h) * 128;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const float* even_at = sums[i] + 4 * (kGroups * block + j) + 2 * h;
        const float* odd_at = sums[i] + 4 * (kGroups * block + (j ^ kOther)) + 2 * h;
        const auto column =
            static_cast<std::uint32_t>((8 * (odd ? j ^ kOther : j) + place.column) * sizeof(T));
        f(buffer + hopper::swizzle128(row + column), odd ? odd_at[0] : even_at[0],
          odd ? odd_at[1] : even_at[1]);
      }
    }
  }
}

__device__ inline void store_pair(std::uint32_t at, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(x), "f"(y) : "memory");
}

__device__ inline void add_pair_f32(std::uint32_t at, float x, float y) {
  float a, b;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(a), "=f"(b) : "r"(at) : "memory");
  store_pair(at, a + x, b + y);
}

__device__ inline void add_pair_bf16(std::uint32_t at, float x, float y) {
  std::uint32_t old;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(old) : "r"(at) : "memory");
  const __nv_bfloat162 sum =
      __floats2bfloat162_rn(__uint_as_float(old << 16) + x, __uint_as_float(old & 0xffff0000u) + y);
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(*reinterpret_cast<const std::uint32_t*>(&sum))
               : "memory");
}

/// d_table += sums, every element once a launch. c: boxes of kColumns x kTileM elements T.
///
/// There are two ways to add: load a block while the products run, add to it in shared memory and store it;
/// or let the L2 cache add, which needs no load but reaches 1.2 TB/s on an H200 and, in bf16, rounds twice.
/// Float32 blocks go both ways: as many as there are buffers to load ahead into the first, the others the
/// second. In the cache all of it gives way to what is read again soon.
template <class T>
struct AddToTable {
  static constexpr bool kWide = std::is_same_v<T, float>;
  static constexpr int kColumns = 128 / static_cast<int>(sizeof(T)), kBlocks = kTileN / kColumns;
  static constexpr int kLoaded = kWide ? kStagingBuffers : kBlocks;
  struct Terms {};
  const Terms& terms;
  const CUtensorMap& c;
  Staging staging;
  std::uint32_t phases = 0;  ///< of the buffers' barriers, a bit each

  __device__ static hopper::Box<2> box(const Unit& unit, int block) {
    return hopper::Box{unit.n * kTileN + block * kColumns, unit.m * kTileM};
  }
  __device__ void load(const Unit& unit, int block) const {
    hopper::arrive_expect(staging.loaded(block), kBufferBytes);
    hopper::tma_load(staging.buffer(block), c, box(unit, block), staging.loaded(block),
                     hopper::evict_first());
  }

  __device__ void begin(const Unit& unit) const {
    if (!staging.leads()) return;
    hopper::bulk_wait_read<0>();
#pragma unroll
    for (int block = 0; block < kLoaded; ++block) {
      if (block < kStagingBuffers) {
        load(unit, block);
      } else {
        hopper::tma_prefetch(c, box(unit, block));
      }
    }
  }

  __device__ void finish(const Unit& unit, const Sums& sums) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (block < kLoaded) {
        add_loaded(unit, sums, block);
      } else {
        staging.wait_free<1>();
        for_pairs<T>(sums, block, staging.buffer(block), store_pair);
        staging.publish();
        if (staging.leads())
          hopper::tma_add(c, box(unit, block), staging.buffer(block), hopper::evict_first());
      }
      if (!staging.leads()) continue;
      hopper::bulk_commit();
      if (block > 0 && block + 1 < kLoaded) {
        hopper::bulk_wait_read<1>();
        load(unit, block + 1);
      }
    }
  }

  __device__ void add_loaded(const Unit& unit, const Sums& sums, int block) {
    const std::uint32_t bit = static_cast<std::uint32_t>(block % kStagingBuffers);
    hopper::wait(staging.loaded(block), phases >> bit & 1u);
    phases ^= 1u << bit;
    for_pairs<T>(sums, block, staging.buffer(block), kWide ? add_pair_f32 : add_pair_bf16);
    staging.publish();
    if (staging.leads()) hopper::tma_store(c, box(unit, block), staging.buffer(block), hopper::evict_first());
  }
};

/// c = sum over the parts of k, in their order: part 0 is stored, each later one waits for its tile's turn
/// and is added in the L2 cache. c: boxes of 32 x kTileM float32.
struct AddInOrder {
  struct Terms {
    int* done;    ///< [tiles of m, tiles of n]: parts that are in c; zeros before
    int columns;  ///< tiles of n
  };
  const Terms& terms;
  const CUtensorMap& c;
  Staging staging;

  __device__ void begin(const Unit&) const {}

  __device__ static void wait_for(const int* done, int parts) {
    int now;
    do {
      asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(now) : "l"(done) : "memory");
    } while (now != parts);
    hopper::fence_async();
  }

  __device__ void finish(const Unit& unit, const Sums& sums) const {
    if (unit.n >= terms.columns) return;
    int* done = terms.done + unit.m * terms.columns + unit.n;
    if (staging.leads() && unit.split > 0) wait_for(done, unit.split);
#pragma unroll
    for (int block = 0; block < kTileN / 32; ++block) {
      staging.wait_free<1>();
      for_pairs<float>(sums, block, staging.buffer(block), store_pair);
      staging.publish();
      if (!staging.leads()) continue;
      const hopper::Box box{unit.n * kTileN + block * 32, unit.m * kTileM};
      if (unit.split == 0) {
        hopper::tma_store(c, box, staging.buffer(block));
      } else {
        hopper::tma_add(c, box, staging.buffer(block));
      }
      hopper::bulk_commit();
    }
    if (staging.leads()) {
      hopper::bulk_wait<0>();
      hopper::fence_async();
      asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(done), "r"(unit.split + 1) : "memory");
    }
  }
};

__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The soft cap through the logistic function s = 1 / (1 + exp(-2 z / cap)): tanh(z / cap) = 2 s - 1, so
/// l = cap (2 s - 1), l - cap = 2 cap (s - 1), and dl/dz = 4 s (1 - s). No case distinction, no infinity.
struct SoftCap {
  float inner;  ///< -2 log2(e) / cap
  float outer;  ///< 2 cap log2(e)
  explicit SoftCap(double cap)
      : inner(static_cast<float>(-2.0 * 1.4426950408889634 / cap)),
        outer(static_cast<float>(2.0 * 1.4426950408889634 * cap)) {}
  __device__ float logistic(float z) const {
    return reciprocal_approximate(1.0f + exp2_approximate(z * inner));
  }
  /// 4 exp(l - cap)
  __device__ float four_exp(float s) const { return exp2_approximate(fmaf(s, outer, 2.0f - outer)); }
};

/// Orders floats as integers.
__device__ inline unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// Logits into E' = exp(l - cap) dl/dz (bf16, c: boxes of 64 x kTileM; kStore) and the rows' statistics.
/// Columns past the table's end become -infinity: such a column adds nothing but four_exp(0) to `sum`, which
/// finish_stats takes off.
template <bool kStore>
struct ScaledExp {
  struct Terms {
    SoftCap cap;
    int rows, columns;  ///< tokens, rows of the table
    int stride;         ///< of partial: rows, rounded up to whole tiles
    int first_row;
    const std::int32_t* targets;  ///< [rows]
    float* partial;               ///< [tiles of n, 3, stride]: sums of 4 e, 4 e s, s
    unsigned long long* best;     ///< [rows] ordered(z) << 32 | ~column; zeros before
    float* target;                ///< [rows] z at the target where a column here is it
    float* tile_best;             ///< [rows, tiles]: a tile's largest z; optional
    int tiles;                    ///< of n
  };
  const Terms& terms;
  const CUtensorMap& c;
  Staging staging;
  using Sums64 = float[kTileN / 2];  ///< of 64 rows; those of a thread's row h at 4 j + 2 h + c

  __device__ static void mask_columns(Sums& sums, int column, int valid) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < kTileN / 2; ++k)
        if (8 * (k / 4) + column + k % 2 >= valid) sums[i][k] = -INFINITY;
    }
  }

  /// Enters the row's largest logit where it may be the largest so far, and the target's. Most tiles hold
  /// neither, which is found out before their columns are searched.
  __device__ static void note_row(const Terms& t, const Sums64& sums, int h, int row, int tile, int column) {
    const bool real = row < t.rows;
    const int first_column = tile * kTileN;
    const unsigned long long best = real ? __ldcg(t.best + row) : ~0ull;
    const int wanted = real ? t.targets[row] - t.first_row - first_column : -1;
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < kTileN / 8; ++j)
      top = fmaxf(top, fmaxf(sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    if (t.tile_best && real && column == 0)
      t.tile_best[static_cast<std::int64_t>(row) * t.tiles + tile] = top;
    const bool leads = real && ordered(top) >= static_cast<unsigned>(best >> 32);
    const bool holds = wanted >= 0 && wanted < kTileN;
    if (!__any_sync(0xffffffffu, leads || holds)) return;
    int at = kTileN;
    float target = 0.0f;
#pragma unroll
    for (int j = kTileN / 8 - 1; j >= 0; --j) {
#pragma unroll
      for (int c = 1; c >= 0; --c) {
        const float z = sums[4 * j + 2 * h + c];
        if (z == top) at = 8 * j + column + c;
        if (8 * j + c == wanted - column) target = z;
      }
    }
    at = min(at, __shfl_xor_sync(0xffffffffu, at, 1));
    at = min(at, __shfl_xor_sync(0xffffffffu, at, 2));
    if (leads && column == 0 && at < kTileN) {
      const auto id = static_cast<unsigned>(first_column + at);
      atomicMax(t.best + row, static_cast<unsigned long long>(ordered(top)) << 32 | (0xffffffffu - id));
    }
    if (holds && wanted % 8 / 2 * 2 == column) t.target[row] = target;
  }

  /// Exponentials and scores of a row of the tile: its sums, and the scores in place of the logits.
  __device__ static void score_row(const Terms& t, Sums64& sums, int h, int row, int tile, int column) {
    float all[3] = {};
#pragma unroll
    for (int j = 0; j < kTileN / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = sums[4 * j + 2 * h + c];
        const float s = t.cap.logistic(x), e = t.cap.four_exp(s);
        all[0] += e;
        all[1] = fmaf(e, s, all[1]);
        all[2] += s;
        x = e * fmaf(-s, s, s);
      }
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      all[k] += __shfl_xor_sync(0xffffffffu, all[k], 1);
      all[k] += __shfl_xor_sync(0xffffffffu, all[k], 2);
      if (column == 0) t.partial[(static_cast<std::int64_t>(tile) * 3 + k) * t.stride + row] = all[k];
    }
  }

  /// Writes 64 columns as bf16 to a staging buffer [128, 64].
  __device__ static void stage_scores(const Sums& sums, int block, std::uint32_t buffer) {
    const auto lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t row = (64 * i + 16 * warp + lane % 16) * 128;
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        std::uint32_t word[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int at = 32 * block + 4 * j + 2 * k;
          const __nv_bfloat162 pair = __floats2bfloat162_rn(sums[i][at], sums[i][at + 1]);
          word[k] = *reinterpret_cast<const std::uint32_t*>(&pair);
        }
        hopper::store_matrices(buffer + hopper::swizzle128(row + 16 * (j + lane / 16)), word);
      }
    }
  }

  __device__ void begin(const Unit&) const {}

  __device__ void finish(const Unit& unit, Sums& sums) const {
    if (unit.n >= terms.tiles) return;
    const Place place;
    const int first_column = unit.n * kTileN, first_row = unit.m * kTileM + place.row;
    if (terms.columns - first_column < kTileN) mask_columns(sums, place.column, terms.columns - first_column);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first_row + 64 * i + 8 * h;
        note_row(terms, sums[i], h, row, unit.n, place.column);
        score_row(terms, sums[i], h, row, unit.n, place.column);
      }
    }
    if constexpr (kStore) store_scores(unit, sums);
  }

  __device__ void store_scores(const Unit& unit, const Sums& sums) const {
#pragma unroll
    for (int block = 0; block < kTileN / 64; ++block) {
      staging.wait_free<1>();
      stage_scores(sums, block, staging.buffer(block));
      staging.publish();
      if (!staging.leads()) continue;
      hopper::tma_store(c, hopper::Box{unit.n * kTileN + block * 64, unit.m * kTileM}, staging.buffer(block),
                        hopper::evict_first());
      hopper::bulk_commit();
    }
  }
};

}  // namespace lapidary::product
