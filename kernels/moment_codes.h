// AdamW's moments in one byte each, compiled for host and device from one text: floats with two bits of
// mantissa and no scale beside them, so that an element's code depends on the element alone, whatever the
// sharding.
//
//   m: sign, then 7 bits: 0, or 2^e (1 + f / 4) with e from -30 to 1: magnitudes from 1.2e-9 to 3.5
//   v: 8 bits:            0, or 2^e (1 + f / 4) with e from -60 to 3: values from 1.1e-18 to 14
//
// Neighbours lie 14 to 25 % apart (the root of v: half of that), and rounding is stochastic, without bias.
// Beyond the largest code numbers saturate; v and the square of m do so together, and the update is then one
// by signs. Below the smallest, m becomes 0 or the smallest, without bias; v above 0 is never 0, so that the
// root that m is divided by is never far below m.
#pragma once
#include <cstdint>

#include "kernels/adamw_update.h"

namespace lapidary {

/// Codes 1 .. kLast stand for the float32 whose upper bits are code + kFirst.
template <std::uint32_t kFirst, std::uint32_t kLast>
struct MagnitudeCode {
  static constexpr int kDropped = 21;  // bits of a float32's mantissa that no code has
  static constexpr std::uint32_t kFirstCode = kFirst;

  LAPIDARY_HOST_DEVICE static float decode(std::uint32_t code) {
    return code == 0 ? 0.0f : float_of_bits((code + kFirst) << kDropped);
  }
  LAPIDARY_HOST_DEVICE static float smallest() { return decode(1); }

  /// `random`: uniform over 16 bits; 0x8000 rounds to nearest. x is at least smallest(); NaN saturates.
  LAPIDARY_HOST_DEVICE static std::uint32_t encode(float x, std::uint32_t random) {
    // The same as random << 5 added before one shift by 21, in fewer instructions on the GPU.
    const std::uint32_t upper = ((float_bits(x) >> (kDropped - 16)) + random) >> 16;
    return upper - kFirst < kLast ? upper - kFirst : kLast;
  }
};

using FirstMomentCode = MagnitudeCode<(127 - 30) * 4, 127>;
using SecondMomentCode = MagnitudeCode<(127 - 60) * 4, 255>;

LAPIDARY_HOST_DEVICE inline std::uint8_t encode_first_moment(float m, std::uint32_t random) {
  const std::uint32_t sign = float_bits(m) >> 31 << 7;
  const float x = float_of_bits(float_bits(m) & 0x7fffffffu);
  // random as a float32 by way of its bits, as the GPU converts integers slowly. Exact: 16 bits times 3.
  const float draw = float_of_bits(0x4b000000u | random) - 0x1p23f;
  const bool is_up = draw * (FirstMomentCode::smallest() * 0x1p-16f) < x;
  const std::uint32_t code =
      x < FirstMomentCode::smallest() ? (is_up ? 1u : 0u) : FirstMomentCode::encode(x, random);
  return static_cast<std::uint8_t>(sign | code);
}

LAPIDARY_HOST_DEVICE inline float decode_first_moment(std::uint8_t code) {
  const std::uint32_t sign = code >> 7 << 31;
  return float_of_bits(float_bits(FirstMomentCode::decode(code & 0x7fu)) | sign);
}

LAPIDARY_HOST_DEVICE inline std::uint8_t encode_second_moment(float v, std::uint32_t random) {
  if (v < SecondMomentCode::smallest()) return v > 0.0f ? 1 : 0;
  return static_cast<std::uint8_t>(SecondMomentCode::encode(v, random));
}

LAPIDARY_HOST_DEVICE inline float decode_second_moment(std::uint8_t code) {
  return SecondMomentCode::decode(code);
}

}  // namespace lapidary
