#include "parallel/rank_reduction.h"

#include <algorithm>
#include <array>

#include "kernels/check.h"

namespace lapidary {

namespace {

struct Sum {
  template <class A>
  static A combine(A a, A b) {
    return a + b;
  }
};

struct Max {
  template <class A>
  static A combine(A a, A b) {
    return a > b || a != a ? a : b;  // NaN stays; a comparison with NaN in b is false
  }
};

// A is the type that the ranks' parts are combined in. Tiles keep the accumulators in the first-level cache.
template <class Op, class T, class A>
void reduce_as(const void* in, int ranks, std::int64_t count, void* out) {
  constexpr std::int64_t kTile = 1024;
  const T* parts = static_cast<const T*>(in);
  T* result = static_cast<T*>(out);
  std::array<A, kTile> tile;
  for (std::int64_t begin = 0; begin < count; begin += kTile) {
    const auto n = static_cast<std::size_t>(std::min(kTile, count - begin));
    for (std::size_t i = 0; i < n; ++i) tile[i] = static_cast<A>(parts[begin + static_cast<std::int64_t>(i)]);
    for (int rank = 1; rank < ranks; ++rank) {
      const T* part = parts + rank * count + begin;
      for (std::size_t i = 0; i < n; ++i) tile[i] = Op::combine(tile[i], static_cast<A>(part[i]));
    }
    for (std::size_t i = 0; i < n; ++i)
      result[begin + static_cast<std::int64_t>(i)] = static_cast<T>(tile[i]);
  }
}

template <class Op>
void reduce_with(const void* in, int ranks, std::int64_t count, DType dtype, void* out) {
  switch (dtype) {
    case DType::f32:
      return reduce_as<Op, float, float>(in, ranks, count, out);
    case DType::bf16:
      return reduce_as<Op, bf16, float>(in, ranks, count, out);
    case DType::f64:
      return reduce_as<Op, double, double>(in, ranks, count, out);
    case DType::i32:
      return reduce_as<Op, std::int32_t, std::int32_t>(in, ranks, count, out);
    case DType::i64:
      return reduce_as<Op, std::int64_t, std::int64_t>(in, ranks, count, out);
    case DType::i16:
    case DType::u8:
      break;
  }
  check_reducible(dtype, "reduction");
}

}  // namespace

void check_reducible(DType dtype, const char* operation) {
  require(dtype != DType::i16 && dtype != DType::u8, "{}: {} numbers cannot be summed over ranks", operation,
          name_of(dtype));
}

void reduce_ranks(const void* in, int ranks, std::int64_t count, DType dtype, Reduction reduction,
                  void* out) {
  if (reduction == Reduction::sum) return reduce_with<Sum>(in, ranks, count, dtype, out);
  reduce_with<Max>(in, ranks, count, dtype, out);
}

}  // namespace lapidary
