// Hopper's asynchronous machinery (sm_90a) as one-line wrappers: mbarriers, clusters, TMA copies, wgmma.
// Names in brackets are sections of the PTX ISA. Shared memory is addressed by its 32-bit address
// (shared_address). The host's side, tensor maps, is kernels/cuda/tensor_map.h.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace lapidary::hopper {

/// 32-bit address in the shared window, as PTX takes it.
__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// The byte where TMA's 128-byte swizzle puts byte `offset` of a tile of 128-byte rows that starts at a
/// multiple of 1024: bits 4-6 (the 16-byte column) exchange with bits 7-9 (the row of eight).
__host__ __device__ constexpr std::uint32_t swizzle128(std::uint32_t offset) {
  return offset ^ (offset >> 3 & 0x70u);
}

/// True in one thread of the (converged) warp [elect.sync].
__device__ inline bool elect_one() {
  std::uint32_t chosen;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}\n" : "=r"(chosen));
  return chosen != 0;
}

// ----------------------------------------------------------------------------------------- mbarriers

/// Sets up a barrier for `arrivals` arrivals a phase [mbarrier.init]; follow with fence_barrier_init.
__device__ inline void barrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Makes initialised barriers visible to the cluster and to TMA [fence.mbarrier_init].
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// One arrival that also announces `bytes` which TMA will deliver [mbarrier.arrive.expect_tx].
__device__ inline void arrive_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// One arrival at this CTA's barrier [mbarrier.arrive].
__device__ inline void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// One arrival at the same barrier of CTA `rank` of the cluster [mapa, mbarrier.arrive]. Orders nothing but
/// itself: enough to give back what wgmma or TMA have read. (A release at cluster scope costs a fence of
/// about a thousand cycles.)
__device__ inline void arrive_at(std::uint32_t barrier, std::uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// The same, and what this thread has read and written before comes before what follows a wait_cluster.
__device__ inline void arrive_release_at(std::uint32_t barrier, std::uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// True once the phase of parity `parity` has completed; may suspend the thread for a while
/// [mbarrier.try_wait]. A fresh barrier is in phase 0: waiting for parity 1 returns at once.
__device__ inline bool try_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// As try_wait, but never suspends the thread [mbarrier.test_wait].
__device__ inline bool test_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// As try_wait, and what other CTAs of the cluster wrote before they arrived is visible too.
__device__ inline bool try_wait_cluster(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// Waits for the end of the phase of parity `parity`.
__device__ inline void wait(std::uint32_t barrier, std::uint32_t parity) {
  while (!try_wait(barrier, parity)) {
  }
}
__device__ inline void wait_cluster(std::uint32_t barrier, std::uint32_t parity) {
  while (!try_wait_cluster(barrier, parity)) {
  }
}

/// Barrier `id` (1-15; 0 is __syncthreads) among `threads` threads, a multiple of 32 [bar.sync].
__device__ inline void named_sync(std::uint32_t id, std::uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---------------------------------------------------------------------------------- dependent launches

/// The next kernel of the stream, if it was launched as a dependent one, may take its place already
/// [griddepcontrol.launch_dependents].
__device__ inline void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/// In a dependent kernel: waits until the kernels before it are complete and their writes visible
/// [griddepcontrol.wait].
__device__ inline void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// Both, before a kernel's first access to global memory: lets the next one come, waits for the one before.
__device__ inline void follow_previous() {
  launch_dependents();
  wait_for_previous();
}

// ------------------------------------------------------------------------------------------ clusters

/// Rank of this CTA in its cluster [%cluster_ctarank].
__device__ inline std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// All threads of the cluster [barrier.cluster].
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Stores to the same variable in shared memory of CTA `rank` of the cluster; arrive_release_at
/// makes it visible [mapa, st.shared::cluster].
__device__ inline void store_at(std::uint32_t shared, std::uint32_t rank, int x) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.s32 [remote], %2;\n}\n" ::"r"(shared),
      "r"(rank), "r"(x)
      : "memory");
}

// --------------------------------------------------------- flags in global memory, between running blocks

/// What the writer has fenced before is visible after [ld.acquire].
__device__ inline int load_acquire(const int* p) {
  int x;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}
/// What this thread has written, or seen written by its warp, before what it stores or adds after
/// [fence.acq_rel].
__device__ inline void fence_gpu() {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}
__device__ inline void store_relaxed(int* p, int x) {
  asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
__device__ inline void add_relaxed(int* p, int x) {
  asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}

// -------------------------------------------------------------------------------- registers and fences

/// Gives registers back to the pool, or takes some: each thread of the warpgroup then has N [setmaxnreg].
template <int N>
__device__ inline void registers_dec() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ inline void registers_inc() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/// Orders this thread's plain writes to shared memory before later TMA stores and wgmma reads, by whomever
/// after a barrier [fence.proxy.async].
__device__ inline void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// The same for every memory: plain writes before TMA reads of global memory.
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

// ---------------------------------------------------------------------------------------- TMA: loads

/// L2 policies for the loads and stores below [createpolicy].
__device__ inline std::uint64_t evict_first() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline std::uint64_t evict_last() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// Where a box of a tensor begins: elements, fastest dimension first. May lie outside: loads give zeros there
/// and stores leave out.
template <int kDims>
struct Box {
  static_assert(kDims >= 2 && kDims <= 4);
  int at[4] = {};
  template <class... I>
  __device__ explicit Box(I... i) : at{static_cast<int>(i)...} {
    static_assert(sizeof...(I) == kDims);
  }
};
template <class... I>
Box(I...) -> Box<static_cast<int>(sizeof...(I))>;

// One instruction on a box for kDims = 2, 3 or 4: op ".kDimsd" form left "{coordinates}" right; the given
// operands are %4 and on.
#define LAPIDARY_TENSOR_ASM(op, form, left, right, ...)                                                   \
  if constexpr (kDims == 2) {                                                                             \
    asm volatile(op ".2d" form " " left "{%0, %1}" right ::LAPIDARY_BOX, __VA_ARGS__ : "memory");         \
  } else if constexpr (kDims == 3) {                                                                      \
    asm volatile(op ".3d" form " " left "{%0, %1, %2}" right ::LAPIDARY_BOX, __VA_ARGS__ : "memory");     \
  } else {                                                                                                \
    asm volatile(op ".4d" form " " left "{%0, %1, %2, %3}" right ::LAPIDARY_BOX, __VA_ARGS__ : "memory"); \
  }
#define LAPIDARY_BOX "r"(box.at[0]), "r"(box.at[1]), "r"(box.at[2]), "r"(box.at[3])
#define LAPIDARY_TENSOR_LOAD ".shared::cluster.global.mbarrier::complete_tx::bytes"

/// Copies a box to `shared`; the bytes (all of the box, zeros included) count at `barrier`
/// [cp.async.bulk.tensor].
template <int kDims>
__device__ inline void tma_load(std::uint32_t shared, const CUtensorMap& map, const Box<kDims>& box,
                                std::uint32_t barrier) {
  LAPIDARY_TENSOR_ASM("cp.async.bulk.tensor", LAPIDARY_TENSOR_LOAD, "[%4], [%5, ", "], [%6];", "r"(shared),
                      "l"(&map), "r"(barrier))
}

/// The same with an L2 policy.
template <int kDims>
__device__ inline void tma_load(std::uint32_t shared, const CUtensorMap& map, const Box<kDims>& box,
                                std::uint32_t barrier, std::uint64_t policy) {
  LAPIDARY_TENSOR_ASM("cp.async.bulk.tensor", LAPIDARY_TENSOR_LOAD ".L2::cache_hint", "[%4], [%5, ",
                      "], [%6], %7;", "r"(shared), "l"(&map), "r"(barrier), "l"(policy))
}

/// Copies a box to the same place of every CTA of the cluster whose bit in `ctas` is set, and counts the
/// bytes at the same barrier of each.
template <int kDims>
__device__ inline void tma_load_multicast(std::uint32_t shared, const CUtensorMap& map, const Box<kDims>& box,
                                          std::uint32_t barrier, std::uint16_t ctas) {
  LAPIDARY_TENSOR_ASM("cp.async.bulk.tensor", LAPIDARY_TENSOR_LOAD ".multicast::cluster", "[%4], [%5, ",
                      "], [%6], %7;", "r"(shared), "l"(&map), "r"(barrier), "h"(ctas))
}

/// The same with an L2 policy.
template <int kDims>
__device__ inline void tma_load_multicast(std::uint32_t shared, const CUtensorMap& map, const Box<kDims>& box,
                                          std::uint32_t barrier, std::uint16_t ctas, std::uint64_t policy) {
  LAPIDARY_TENSOR_ASM("cp.async.bulk.tensor", LAPIDARY_TENSOR_LOAD ".multicast::cluster.L2::cache_hint",
                      "[%4], [%5, ", "], [%6], %7, %8;", "r"(shared), "l"(&map), "r"(barrier), "h"(ctas),
                      "l"(policy))
}

/// Brings a box from global memory to the L2 cache [cp.async.bulk.prefetch.tensor].
template <int kDims>
__device__ inline void tma_prefetch(const CUtensorMap& map, const Box<kDims>& box) {
  LAPIDARY_TENSOR_ASM("cp.async.bulk.prefetch.tensor", ".L2.global", "[%4, ", "];", "l"(&map))
}

// ------------------------------------------------------------------------- TMA: stores and additions

/// Copies `shared` to a box, in this thread's current bulk group [cp.async.bulk.tensor].
template <int kDims>
__device__ inline void tma_store(const CUtensorMap& map, const Box<kDims>& box, std::uint32_t shared) {
  LAPIDARY_TENSOR_ASM("cp.async.bulk.tensor", ".global.shared::cta.bulk_group", "[%5, ", "], [%4];",
                      "r"(shared), "l"(&map))
}

/// The same with an L2 policy.
template <int kDims>
__device__ inline void tma_store(const CUtensorMap& map, const Box<kDims>& box, std::uint32_t shared,
                                 std::uint64_t policy) {
  LAPIDARY_TENSOR_ASM("cp.async.bulk.tensor", ".global.shared::cta.bulk_group.L2::cache_hint", "[%5, ",
                      "], [%4], %6;", "r"(shared), "l"(&map), "l"(policy))
}

/// Adds `shared` to a box, element by element, in the map's type: float32, or bf16 rounded to nearest
/// [cp.reduce.async.bulk.tensor]. Additions of several CTAs to one box come in no fixed order.
template <int kDims>
__device__ inline void tma_add(const CUtensorMap& map, const Box<kDims>& box, std::uint32_t shared) {
  LAPIDARY_TENSOR_ASM("cp.reduce.async.bulk.tensor", ".global.shared::cta.add.bulk_group", "[%5, ",
                      "], [%4];", "r"(shared), "l"(&map))
}

/// The same with an L2 policy.
template <int kDims>
__device__ inline void tma_add(const CUtensorMap& map, const Box<kDims>& box, std::uint32_t shared,
                               std::uint64_t policy){
    LAPIDARY_TENSOR_ASM("cp.reduce.async.bulk.tensor", ".global.shared::cta.add.bulk_group.L2::cache_hint",
                        "[%5, ", "], [%4], %6;", "r"(shared), "l"(&map), "l"(policy))}

/// Copies `bytes` (a multiple of 16, as both addresses) of contiguous global memory to `shared`
/// [cp.async.bulk].
__device__ inline void bulk_load(std::uint32_t shared, const void* global, std::uint32_t bytes,
                                 std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(barrier)
      : "memory");
}

#undef LAPIDARY_TENSOR_LOAD
#undef LAPIDARY_BOX
#undef LAPIDARY_TENSOR_ASM

/// Closes this thread's bulk group of stores and additions [cp.async.bulk.commit_group].
__device__ inline void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Waits until all but the newest N groups have read their shared memory [cp.async.bulk.wait_group.read].
template <int N>
__device__ inline void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

/// Waits until all but the newest N groups are complete: their writes are visible to this thread.
template <int N>
__device__ inline void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

// -------------------------------------------------------------------------------------- arithmetic

/// Two bf16 in a word, `low` in the lower half [cvt.rn.bf16x2].
__device__ inline std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

/// 2^x; 0 for -infinity [ex2.approx].
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---------------------------------------------------------------------- shared memory and registers

/// Sixteen bytes of shared memory [ld.shared].
__device__ inline uint4 load_shared(std::uint32_t shared) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(shared)
               : "memory");
  return x;
}

/// Stores four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, its
/// word i holds columns 2 (l % 4) and the next of row l / 4 of matrix i [stmatrix].
__device__ inline void store_matrices(std::uint32_t address, const std::uint32_t (&word)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
               : "memory");
}

/// Stores 16 columns, from 16 `part` on, of a warp's 16 rows of 64 bf16 as store_panel does.
__device__ inline void store_panel_part(std::uint32_t panel, std::uint32_t part,
                                        const std::uint32_t (&word)[4]) {
  const std::uint32_t lane = threadIdx.x % 32;
  store_matrices(panel + swizzle128(lane % 16 * 128 + part * 32 + lane / 16 * 16), word);
}

/// Stores a warp's 16 rows of 64 bf16 as 128-byte swizzled rows: 2 KiB from a multiple of 1024 on. The words
/// are in the order of wgmma's sums: of every eight columns two of the thread's upper row, two of its lower.
__device__ inline void store_panel(std::uint32_t panel, const std::uint32_t (&word)[16]) {
#pragma unroll
  for (std::uint32_t i = 0; i < 4; ++i)
    store_panel_part(panel, i, {word[4 * i], word[4 * i + 1], word[4 * i + 2], word[4 * i + 3]});
}

/// The same of 64 columns, from 64 `block` on, of wgmma's sums times a factor for each of the two rows.
template <int N>
__device__ inline void store_panel(std::uint32_t panel, const float (&sum)[N], int block,
                                   const float (&factor)[2]) {
  std::uint32_t word[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int from = block * 32 + 2 * i;
    word[i] = pack_bf16(sum[from] * factor[i % 2], sum[from + 1] * factor[i % 2]);
  }
  store_panel(panel, word);
}

/// An 8x8 matrix of 16-bit elements, as one word a lane (row l / 4, columns 2 (l % 4) and the next),
/// transposed [movmatrix].
__device__ inline std::uint32_t transpose_matrix(std::uint32_t word) {
  std::uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(word));
  return out;
}

}  // namespace lapidary::hopper
