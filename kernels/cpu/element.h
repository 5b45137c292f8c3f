// Element types inside the CPU operations: how a stored number becomes one to compute with and back, and how
// an operation's template is chosen from a tensor's run-time type.
#pragma once
#include <algorithm>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/tensor.h"

namespace lapidary {

/// What numbers of type T are computed in: float, and double for double.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline float load(float x) {
  return x;
}
inline double load(double x) {
  return x;
}
inline float load(bf16 x) {
  return static_cast<float>(x);
}

/// Rounds to T, to nearest even.
template <class T>
T round_to(double x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return bf16(static_cast<float>(x));
  } else {
    return static_cast<T>(x);
  }
}
template <class T>
T round_to(float x) {
  return static_cast<T>(x);
}

/// Calls body<T>() for the element type of a tensor of floating-point numbers.
template <class Body>
decltype(auto) with_float_type(DType type, Body&& body) {
  switch (type) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::bf16:
      return body.template operator()<bf16>();
    case DType::f64:
      return body.template operator()<double>();
    default:
      fail("elements of {} where f32, bf16 or f64 are expected", name_of(type));
  }
}

/// Row i of a tensor.
template <class T>
T* row(const Tensor& t, std::int64_t i) {
  return t.as<T>() + i * t.row_stride();
}

/// The operation's scratch, checked to hold `count` numbers.
template <class T>
T* scratch_for(const Tensor& scratch, std::int64_t count, const char* op) {
  const std::size_t needed = static_cast<std::size_t>(count) * sizeof(T);
  const std::size_t given = scratch ? scratch.bytes() : 0;
  require(given >= needed, "{}: scratch has {} bytes, expected {} (run() provides it)", op, given, needed);
  return static_cast<T*>(scratch.data());
}

/// Work below which a loop stays on one thread: starting a team costs some microseconds.
inline constexpr std::int64_t kParallelElements = 16384;

/// Sum of term(j) over [0, n) in double, in an order that depends on n alone. Independent lanes let the
/// compiler use vectors.
template <class Term>
double sum_of(std::int64_t n, Term term) {
  constexpr std::int64_t kLanes = 8;
  double lanes[kLanes] = {};
  std::int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    for (std::int64_t l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(term(j + l));
  double rest = 0;
  for (; j < n; ++j) rest += static_cast<double>(term(j));
  return (((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]))) +
         rest;
}

}  // namespace lapidary
