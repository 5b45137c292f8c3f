// Eight neighbours' moments in one byte each (kernels/moment_codes.h), decoded and encoded together: AdamW
// over them has 10 bytes to move for an element, so that every instruction counts. The codes are those of the
// functions for single moments, bit for bit.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/moment_codes.h"

namespace lapidary {

/// Codes in the halves of a word as bf16, whose upper bits are those of the float32 that a code stands for.
template <class Code>
__device__ inline unsigned decode_two(unsigned codes) {
  constexpr unsigned kZero = (Code::kFirstCode << 5) * 0x10001u;  // what code 0 would otherwise stand for
  const unsigned bits = codes * 32 + kZero;
  unsigned is_more, out;
  asm("set.ne.bf16x2.bf16x2 %0, %1, %2;" : "=r"(is_more) : "r"(bits), "r"(kZero));  // 1.0 or 0.0
  asm("mul.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(bits), "r"(is_more));
  return out;
}

__device__ inline void split_two(unsigned two, float& a, float& b) {
  a = __uint_as_float(two << 16);
  b = __uint_as_float(two & 0xffff0000u);
}

__device__ inline void decode_first_moments(uint2 codes, float (&m)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    const unsigned word = i < 4 ? codes.x : codes.y;
    const unsigned two = __byte_perm(word, 0, i % 4 ? 0x4342 : 0x4140);
    const unsigned signs = __byte_perm(word, 0, i % 4 ? 0x3424 : 0x1404) & 0x80008000u;
    split_two(decode_two<FirstMomentCode>(two & 0x007f007fu) | signs, m[i], m[i + 1]);
  }
}

__device__ inline void decode_second_moments(uint2 codes, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    const unsigned two = __byte_perm(i < 4 ? codes.x : codes.y, 0, i % 4 ? 0x4342 : 0x4140);
    split_two(decode_two<SecondMomentCode>(two), v[i], v[i + 1]);
  }
}

/// The lowest bytes of four words.
__device__ inline unsigned low_bytes(unsigned a, unsigned b, unsigned c, unsigned d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

/// The highest bytes of four words.
__device__ inline unsigned high_bytes(unsigned a, unsigned b, unsigned c, unsigned d) {
  return __byte_perm(__byte_perm(a, b, 0x0073), __byte_perm(c, d, 0x0073), 0x5410);
}

/// random: of each, its word's lower half.
__device__ inline uint2 encode_first_moments(const float (&m)[8], const unsigned (&random)[8]) {
  bool is_plain = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) is_plain = is_plain & !(fabsf(m[i]) < FirstMomentCode::smallest());
  unsigned code[8];
  if (is_plain) {
#pragma unroll
    for (int i = 0; i < 8; ++i) code[i] = FirstMomentCode::encode(fabsf(m[i]), random[i] & 0xffffu);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) code[i] = encode_first_moment(fabsf(m[i]), random[i] & 0xffffu);
  }
  const auto four = [&](int i) {
    const auto bits = [&](int at) { return __float_as_uint(m[i + at]); };
    return low_bytes(code[i], code[i + 1], code[i + 2], code[i + 3]) |
           (high_bytes(bits(0), bits(1), bits(2), bits(3)) & 0x80808080u);
  };
  return make_uint2(four(0), four(4));
}

/// random: of each, its word's upper half.
__device__ inline uint2 encode_second_moments(const float (&v)[8], const unsigned (&random)[8]) {
  bool is_plain = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) is_plain = is_plain & !(v[i] < SecondMomentCode::smallest());
  unsigned code[8];
  if (is_plain) {
#pragma unroll
    for (int i = 0; i < 8; ++i) code[i] = SecondMomentCode::encode(v[i], random[i] >> 16);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) code[i] = encode_second_moment(v[i], random[i] >> 16);
  }
  return make_uint2(low_bytes(code[0], code[1], code[2], code[3]),
                    low_bytes(code[4], code[5], code[6], code[7]));
}

/// Stochastic rounding to bf16 (round_stochastic) by the bits that rounding_bits derives from the words.
__device__ inline void store_rounded_stochastic(Bf16* to, const float (&x)[8], const unsigned (&random)[8]) {
  unsigned upper[8];
  bool is_plain = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    is_plain = is_plain & (x[i] == x[i]);
    upper[i] = __float_as_uint(x[i]) + (random[i] * 0x9E3779B1u >> 16);
  }
  if (!is_plain) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const RoundingBits bits = rounding_bits({{random[i], 0, 0, 0}}, 0);
      upper[i] = static_cast<unsigned>(round_stochastic(x[i], bits.param)) << 16;
    }
  }
  Pack<Bf16, 8> pack;
#pragma unroll
  for (int i = 0; i < 8; i += 2) pack.word[i / 2] = __byte_perm(upper[i], upper[i + 1], 0x7632);
  pack.store(to);
}

}  // namespace lapidary
