// How many pairs of a query and a key the GPU's attention kernels compute for those that see each other: they
// work on whole tiles. Host-only arithmetic, for the benchmark.
#pragma once
#include <cstdint>

#include "kernels/batch.h"
#include "kernels/dtype.h"

namespace lapidary {

/// Pairs in the tiles that a call computes, for one query head; the backward's are the mean of its five
/// products. 0 where the call goes through chunks of products.
struct AttentionTiles {
  double forward = 0, backward = 0;
};

/// Of queries and keys with the intervals x, `heads` query heads on `kv_heads` key heads of `dim` components.
AttentionTiles attention_tiles(const Intervals& x, std::int64_t heads, std::int64_t kv_heads,
                               std::int64_t dim, DType type);

}  // namespace lapidary
