#include "kernels/attention_tiles.h"

#include <algorithm>

#include "kernels/cuda/attention256_plan.h"
#include "kernels/cuda/attention512_plan.h"

namespace lapidary {

namespace {

std::int64_t round_up(std::int64_t x, std::int64_t to) {
  return (x + to - 1) / to * to;
}

/// The tiles of blocks of `rows` tokens, each with keys [lo of its first, hi of its last) in tiles of `keys`
/// that begin at multiples of `grid` (1: at the first key).
double query_tiles(const Intervals& x, std::int64_t rows, std::int64_t keys, std::int64_t grid) {
  const auto tokens = static_cast<std::int64_t>(x.lo.size());
  double pairs = 0;
  for (std::int64_t from = 0; from < tokens; from += rows) {
    const std::int64_t lo = x.lo[static_cast<std::size_t>(from)] / grid * grid,
                       hi = x.hi[static_cast<std::size_t>(std::min(from + rows, tokens) - 1)];
    if (hi > lo) pairs += static_cast<double>(rows * round_up(hi - lo, keys));
  }
  return pairs;
}

/// The tiles of blocks of `keys` keys, each with the queries that see any of them in tiles of `rows` that
/// begin at multiples of `rows`.
double key_tiles(const Intervals& x, std::int64_t keys, std::int64_t rows) {
  const auto tokens = static_cast<std::int64_t>(x.lo.size());
  double pairs = 0;
  for (std::int64_t from = 0; from < tokens; from += keys) {
    const std::int64_t last = std::min(from + keys, tokens) - 1;
    const auto first_above = [](const std::vector<std::int32_t>& ends, std::int64_t key) {
      return std::upper_bound(ends.begin(), ends.end(), static_cast<std::int32_t>(key)) - ends.begin();
    };
    const std::int64_t begin = first_above(x.hi, from) / rows * rows, end = first_above(x.lo, last);
    if (end > begin) pairs += static_cast<double>(keys * round_up(end - begin, rows));
  }
  return pairs;
}

}  // namespace

AttentionTiles attention_tiles(const Intervals& x, std::int64_t heads, std::int64_t kv_heads,
                               std::int64_t dim, DType type) {
  const AttentionSizes sizes{static_cast<std::int64_t>(x.lo.size()), heads, kv_heads, dim};
  if (attention256_applies(sizes, type))
    return {query_tiles(x, 64, 64, 1), (4 * key_tiles(x, 64, 64) + query_tiles(x, 64, 64, 64)) / 5};
  if (!attention512_applies(sizes, type)) return {};
  // Rows are heads of tokens: a cluster takes 128 or 256. The forward computes scores of 64 keys at a time
  // and multiplies values of 32. Of the backward's products two are scores and one sums over keys, for 256
  // rows against panels of 64 keys; two sum over queries, in boxes of 64 rows.
  const auto tokens = [&](std::int64_t rows) { return std::max<std::int64_t>(rows / sizes.heads, 1); };
  return {(query_tiles(x, tokens(128), 64, 1) + query_tiles(x, tokens(128), 32, 1)) / 2,
          (3 * query_tiles(x, tokens(256), 64, 64) + 2 * key_tiles(x, 64, tokens(64))) / 5};
}

}  // namespace lapidary
