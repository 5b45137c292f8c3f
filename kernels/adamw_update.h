// The arithmetic of one AdamW element and its bfloat16 storage forms, compiled for host and device from one
// text: bit-exact splitting of a float32 master, stochastic rounding, the update itself.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/philox.h"

namespace lapidary {

LAPIDARY_HOST_DEVICE inline std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

LAPIDARY_HOST_DEVICE inline float float_of_bits(std::uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

/// A float32 as the bits of a bfloat16 (its upper half, rounded to nearest, ties away from zero) and the
/// exact rest: bits = (upper << 16) + rest. NaN keeps its upper half, made quiet, and a rest of 0.
struct SplitFloat {
  std::uint16_t upper;
  std::int16_t rest;
};

LAPIDARY_HOST_DEVICE inline SplitFloat split_float(float x) {
  const std::uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u), 0};
  const std::uint32_t upper = (bits + 0x8000u) >> 16;
  return {static_cast<std::uint16_t>(upper), static_cast<std::int16_t>(bits - (upper << 16))};
}

LAPIDARY_HOST_DEVICE inline float join_float(SplitFloat s) {
  return float_of_bits((static_cast<std::uint32_t>(s.upper) << 16) +
                       static_cast<std::uint32_t>(static_cast<std::int32_t>(s.rest)));
}

/// Bits of a bfloat16 neighbour of x, the upper one with the probability of x's distance from the lower:
/// `random` is uniform over 16 bits. NaN stays, and so does infinity, whose lower half is 0.
LAPIDARY_HOST_DEVICE inline std::uint16_t round_stochastic(float x, std::uint16_t random) {
  const bool is_nan = x != x;
  return static_cast<std::uint16_t>(is_nan ? 0x7fc0u : (float_bits(x) + random) >> 16);
}

/// What a step's elements share, rounded once from double.
template <class F>
struct AdamWFactors {
  F beta1, beta2, one_minus_beta1, one_minus_beta2;
  F decay;      ///< 1 - lr weight_decay
  F step_size;  ///< lr / (1 - beta1^step)
  F v_scale;    ///< (1 - beta2^step)^(-1/2)
  F eps;
};

/// From an AdamW (kernels/ops.h), on the host.
template <class F, class Op>
AdamWFactors<F> adamw_factors(const Op& op) {
  const double steps = static_cast<double>(op.step);
  return {static_cast<F>(op.beta1),
          static_cast<F>(op.beta2),
          static_cast<F>(1 - op.beta1),
          static_cast<F>(1 - op.beta2),
          static_cast<F>(1 - op.lr * op.weight_decay),
          static_cast<F>(op.lr / (1 - std::pow(op.beta1, steps))),
          static_cast<F>(1 / std::sqrt(1 - std::pow(op.beta2, steps))),
          static_cast<F>(op.eps)};
}

/// m, v and p after a step with gradient g (already multiplied by the clip factor). On the GPU root and
/// quotient are the fast ones, within 2^-21 of the update (and a v below the normal numbers has the root 0):
/// the correctly rounded ones would be slower than the memory that the update streams through.
template <class F>
LAPIDARY_HOST_DEVICE inline void adamw_update(const AdamWFactors<F>& f, F g, F& p, F& m, F& v) {
#ifdef __CUDA_ARCH__
  // Fused where the compiler would fuse in one kernel and not in another: the same bits however a range is
  // cut.
  m = fmaf(f.beta1, m, f.one_minus_beta1 * g);
  v = fmaf(f.one_minus_beta2 * g, g, f.beta2 * v);
  float root, inverse;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(v));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaf(root, f.v_scale, f.eps)));
  p = fmaf(p, f.decay, -(f.step_size * m * inverse));
#else
  m = f.beta1 * m + f.one_minus_beta1 * g;
  v = f.beta2 * v + f.one_minus_beta2 * g * g;
  p = p * f.decay - f.step_size * m / (sqrt(v) * f.v_scale + f.eps);
#endif
}

}  // namespace lapidary
