// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011) and the two layouts of key and counter that the program draws from. Host and device compile the
// same integer code, so every backend and every cut of the work draws the same bits.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define LAPIDARY_HOST_DEVICE __host__ __device__
#else
#define LAPIDARY_HOST_DEVICE
#endif

namespace lapidary {

struct PhiloxBlock {
  std::uint32_t word[4];
};

LAPIDARY_HOST_DEVICE inline std::uint64_t wide_product(std::uint32_t a, std::uint32_t b) {
#ifdef __CUDA_ARCH__
  std::uint64_t out;  // the compiler would also add the products with the zero upper halves
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(out) : "r"(a), "r"(b));
  return out;
#else
  return std::uint64_t{a} * b;
#endif
}

/// The block at a 128-bit counter (word 0 lowest) under a 64-bit key. The paper finds seven rounds to be the
/// fewest that pass every test of randomness, and recommends ten.
template <int kRounds = 10>
LAPIDARY_HOST_DEVICE inline PhiloxBlock philox(std::uint64_t key, std::uint64_t counter_low,
                                               std::uint64_t counter_high) {
  auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  PhiloxBlock c{{static_cast<std::uint32_t>(counter_low), static_cast<std::uint32_t>(counter_low >> 32),
                 static_cast<std::uint32_t>(counter_high), static_cast<std::uint32_t>(counter_high >> 32)}};
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t a = wide_product(0xD2511F53u, c.word[0]);
    const std::uint64_t b = wide_product(0xCD9E8D57u, c.word[2]);
    c = {{static_cast<std::uint32_t>(b >> 32) ^ c.word[1] ^ k0, static_cast<std::uint32_t>(b),
          static_cast<std::uint32_t>(a >> 32) ^ c.word[3] ^ k1, static_cast<std::uint32_t>(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/// FillNormal: elements 2p and 2p + 1 share the block with key = seed, counter = (p, stream).
/// u1 = (words 0 and 1 as 64 bits, top 53, plus one) 2^-53 in (0, 1], u2 = (words 2 and 3, top 53) 2^-53 in
/// [0, 1); even element sqrt(-2 ln u1) cos(2 pi u2), odd element with sin.
LAPIDARY_HOST_DEVICE inline PhiloxBlock normal_block(std::uint64_t seed, std::uint64_t stream,
                                                     std::uint64_t pair) {
  return philox(seed, pair, stream);
}

LAPIDARY_HOST_DEVICE inline double uniform_above_zero(const PhiloxBlock& b) {
  const std::uint64_t bits = (std::uint64_t{b.word[1]} << 32 | b.word[0]) >> 11;
  return static_cast<double>(bits + 1) * 0x1p-53;
}

LAPIDARY_HOST_DEVICE inline double uniform_below_one(const PhiloxBlock& b) {
  const std::uint64_t bits = (std::uint64_t{b.word[3]} << 32 | b.word[2]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

/// AdamW's stochastic rounding: elements 4q .. 4q + 3 (global indices) share the block of seven rounds with
/// key = seed xor a constant (so that they never repeat FillNormal's) and counter = (q, step). Element i owns
/// word i mod 4: m takes its low half, v its high half, and the parameter, where it has no master, the high
/// half of the word times an odd number: uniform whatever m's half is, and all but so for each of v's.
struct RoundingBits {
  std::uint16_t param, m, v;
};

LAPIDARY_HOST_DEVICE inline PhiloxBlock rounding_block(std::uint64_t seed, std::uint64_t step,
                                                       std::uint64_t quad) {
  return philox<7>(seed ^ 0x5DEECE66D1CE4E5Bu, quad, step);
}

LAPIDARY_HOST_DEVICE inline RoundingBits rounding_bits(const PhiloxBlock& block, std::uint64_t index) {
  const std::uint32_t word = block.word[index & 3];
  return {static_cast<std::uint16_t>(word * 0x9E3779B1u >> 16), static_cast<std::uint16_t>(word),
          static_cast<std::uint16_t>(word >> 16)};
}

}  // namespace lapidary
