// wgmma: products of tiles by a warpgroup (four warps) on sm_90a, with float32 sums in registers. Names in
// brackets are sections of the PTX ISA.
#pragma once
#include <cstdint>

namespace lapidary::hopper {

// ------------------------------------------------------------------------ shared memory descriptors

/// How a bf16 operand of wgmma lies in shared memory, in atoms of 8 rows of 128 bytes with the 128-byte
/// swizzle (as TMA writes boxes of 64 bf16 per row), each starting at a multiple of 1024 bytes [Asynchronous
/// warpgroup level matrix shared memory layout].
enum class Major {
  k,  ///< a row holds 64 consecutive k of one m (or n): no transposition
  mn  ///< a row holds 64 consecutive m (or n) of one k: transposed operand
};

/// The 64-bit matrix descriptor [Matrix descriptor format]: start address / 16 in bits 0-13, leading
/// dimension byte offset / 16 in bits 16-29, stride dimension byte offset / 16 in bits 32-45, base offset (0:
/// atoms are aligned to 1024 bytes) in bits 49-51, swizzle (1: 128 bytes) in bits 62-63.
///
/// Stride: from one atom to the next, along m (n) for Major::k, along k for Major::mn; 1024 where a TMA box
/// is as tall as the tile. Leading: for Major::mn the distance between blocks of 64 m (n), so 128 times the k
/// of the box; not used for Major::k, whose 16 k of one instruction lie within a row.
__device__ inline std::uint64_t descriptor(std::uint32_t shared, std::uint32_t leading,
                                           std::uint32_t stride = 1024) {
  return static_cast<std::uint64_t>((shared & 0x3ffff) >> 4) |
         static_cast<std::uint64_t>((leading & 0x3ffff) >> 4) << 16 |
         static_cast<std::uint64_t>((stride & 0x3ffff) >> 4) << 32 | std::uint64_t{1} << 62;
}

/// What to add to a descriptor to move by 16 k: 32 bytes along the row, or two atoms.
template <Major kMajor>
constexpr std::uint64_t kDescriptorStep = kMajor == Major::k ? 32 / 16 : 2048 / 16;

// ------------------------------------------------------------------------------------------ ordering

/// Before the first wgmma, and whenever registers that wgmma uses were touched in between [wgmma.fence].
__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Closes a group of wgmmas [wgmma.commit_group].
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most the newest N groups are under way [wgmma.wait_group].
template <int N>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/// Keeps the compiler from moving uses of accumulators over this point.
template <int N>
__device__ inline void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ inline void pin(std::uint32_t (&a)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// ---------------------------------------------------------------------------------------- wgmma itself

/// d [64, N] (+)= a [64, 16] b [N, 16]^T in bf16 with float32 sums, by one warpgroup [wgmma.mma_async].
/// Thread t holds, of row 16 (t / 32) + t % 32 / 4 (i / 2 even: + 8 * (i / 2 % 2)), columns
/// 8 (i / 4) + 2 (t % 4) + i % 2 in d[i]. accumulate false: d is overwritten.
template <int N>
struct Wgmma;

#define LAPIDARY_F8(i)                                                                            \
  "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), \
      "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
// The accumulators' list for 8 n registers, as text (LAPIDARY_Tn) and as operands (LAPIDARY_Dn).
#define LAPIDARY_T2                \
  "%0, %1, %2, %3, %4, %5, %6, %7" \
  ", "                             \
  "%8, %9, %10, %11, %12, %13, %14, %15"
#define LAPIDARY_D2 LAPIDARY_F8(0), LAPIDARY_F8(1)
#define LAPIDARY_T4                        \
  LAPIDARY_T2                              \
  ", "                                     \
  "%16, %17, %18, %19, %20, %21, %22, %23" \
  ", "                                     \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define LAPIDARY_D4 LAPIDARY_D2, LAPIDARY_F8(2), LAPIDARY_F8(3)
#define LAPIDARY_T5 \
  LAPIDARY_T4       \
  ", "              \
  "%32, %33, %34, %35, %36, %37, %38, %39"
#define LAPIDARY_D5 LAPIDARY_D4, LAPIDARY_F8(4)
#define LAPIDARY_T6 \
  LAPIDARY_T5       \
  ", "              \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define LAPIDARY_D6 LAPIDARY_D5, LAPIDARY_F8(5)
#define LAPIDARY_T8                        \
  LAPIDARY_T6                              \
  ", "                                     \
  "%48, %49, %50, %51, %52, %53, %54, %55" \
  ", "                                     \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define LAPIDARY_D8 LAPIDARY_D6, LAPIDARY_F8(6), LAPIDARY_F8(7)
#define LAPIDARY_T10                       \
  LAPIDARY_T8                              \
  ", "                                     \
  "%64, %65, %66, %67, %68, %69, %70, %71" \
  ", "                                     \
  "%72, %73, %74, %75, %76, %77, %78, %79"
#define LAPIDARY_D10 LAPIDARY_D8, LAPIDARY_F8(8), LAPIDARY_F8(9)
#define LAPIDARY_T12                       \
  LAPIDARY_T10                             \
  ", "                                     \
  "%80, %81, %82, %83, %84, %85, %86, %87" \
  ", "                                     \
  "%88, %89, %90, %91, %92, %93, %94, %95"
#define LAPIDARY_D12 LAPIDARY_D10, LAPIDARY_F8(10), LAPIDARY_F8(11)
#define LAPIDARY_T16                               \
  LAPIDARY_T12                                     \
  ", "                                             \
  "%96, %97, %98, %99, %100, %101, %102, %103"     \
  ", "                                             \
  "%104, %105, %106, %107, %108, %109, %110, %111" \
  ", "                                             \
  "%112, %113, %114, %115, %116, %117, %118, %119" \
  ", "                                             \
  "%120, %121, %122, %123, %124, %125, %126, %127"
#define LAPIDARY_D16 LAPIDARY_D12, LAPIDARY_F8(12), LAPIDARY_F8(13), LAPIDARY_F8(14), LAPIDARY_F8(15)

// The numbers of the operands that follow the accumulators are given in order: o0, o1, ...
#define LAPIDARY_WGMMA(n, eights, o0, o1, o2, o3, o4, o5, o6)                                                \
  template <>                                                                                                \
  struct Wgmma<n> {                                                                                          \
    static constexpr int kRegisters = n / 2;                                                                 \
    /** Both operands in shared memory, given by descriptors. */                                             \
    template <Major kA, Major kB>                                                                            \
    __device__ static void run(float (&d)[n / 2], std::uint64_t a, std::uint64_t b, bool accumulate) {       \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2                                                  \
                   ", 0;\n"                                                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" LAPIDARY_T##eights           \
                   "}, %" #o0 ", %" #o1 ", p, 1, 1, %" #o3 ", %" #o4 ";\n}\n"                                \
                   : LAPIDARY_D##eights                                                                      \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kA)),           \
                     "n"(static_cast<int>(kB)));                                                             \
    }                                                                                                        \
    /** a in registers: word i holds row 16 (t / 32) + t % 32 / 4 + 8 (i % 2), k 8 (i / 2) + 2 (t % 4), + 1. \
     */                                                                                                      \
    template <Major kB>                                                                                      \
    __device__ static void run(float (&d)[n / 2], const std::uint32_t (&a)[4], std::uint64_t b,              \
                               bool accumulate) {                                                            \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5                                                  \
                   ", 0;\n"                                                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" LAPIDARY_T##eights           \
                   "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4 ", p, 1, 1, %" #o6 ";\n}\n"          \
                   : LAPIDARY_D##eights                                                                      \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),  \
                     "n"(static_cast<int>(kB)));                                                             \
    }                                                                                                        \
  };
LAPIDARY_WGMMA(32, 2, 16, 17, 18, 19, 20, 21, 22)
LAPIDARY_WGMMA(64, 4, 32, 33, 34, 35, 36, 37, 38)
LAPIDARY_WGMMA(80, 5, 40, 41, 42, 43, 44, 45, 46)
LAPIDARY_WGMMA(96, 6, 48, 49, 50, 51, 52, 53, 54)
LAPIDARY_WGMMA(128, 8, 64, 65, 66, 67, 68, 69, 70)
LAPIDARY_WGMMA(160, 10, 80, 81, 82, 83, 84, 85, 86)
LAPIDARY_WGMMA(192, 12, 96, 97, 98, 99, 100, 101, 102)
LAPIDARY_WGMMA(256, 16, 128, 129, 130, 131, 132, 133, 134)

#undef LAPIDARY_WGMMA
#undef LAPIDARY_F8
#undef LAPIDARY_T2
#undef LAPIDARY_D2
#undef LAPIDARY_T4
#undef LAPIDARY_D4
#undef LAPIDARY_T5
#undef LAPIDARY_D5
#undef LAPIDARY_T6
#undef LAPIDARY_D6
#undef LAPIDARY_T8
#undef LAPIDARY_D8
#undef LAPIDARY_T10
#undef LAPIDARY_D10
#undef LAPIDARY_T12
#undef LAPIDARY_D12
#undef LAPIDARY_T16
#undef LAPIDARY_D16

}  // namespace lapidary::hopper
