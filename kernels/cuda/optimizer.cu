// AdamW over flat ranges, and the clip factor. AdamW is a stream through memory: eight neighbours per thread,
// 16 bytes of every 16-bit operand, each read and written once.
#include "kernels/adamw_update.h"
#include "kernels/cuda/byte_moments.cuh"
#include "kernels/cuda/processors.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kThreads = 256;
constexpr unsigned kByteBlocks = 4;  ///< of adamw_bytes on a multiprocessor

/// Where the float32 master lives.
enum class Master { param, separate, remainder, none };

template <class M, class G>
struct AdamWData {
  void* param;
  float* master;
  std::int16_t* remainder;
  M *m, *v;
  const G* grad;
  const float* grad_factor;
  std::int64_t n;
  AdamWFactors<float> factors;
  std::uint64_t seed, step, first_index;
};

/// W 16-bit numbers in a pack.
template <int W>
struct Bits {
  std::uint16_t at[W];

  __device__ static Bits load(const void* p, std::int64_t i) {
    const auto pack = Pack<Bf16, W>::load(static_cast<const Bf16*>(p) + i);
    Bits out;
#pragma unroll
    for (int w = 0; w < W; ++w) out.at[w] = static_cast<std::uint16_t>(pack.word[w / 2] >> (w % 2 * 16));
    return out;
  }
  __device__ void store(void* p, std::int64_t i) const {
    Pack<Bf16, W> pack{};
#pragma unroll
    for (int w = 0; w < W; ++w) pack.word[w / 2] |= static_cast<unsigned>(at[w]) << (w % 2 * 16);
    pack.store(static_cast<Bf16*>(p) + i);
  }
};

template <int W>
__device__ inline void store_rounded(Bf16* p, std::int64_t i, const float (&x)[W], const Bits<W>& random) {
  Bits<W> bits;
#pragma unroll
  for (int w = 0; w < W; ++w) bits.at[w] = round_stochastic(x[w], random.at[w]);
  bits.store(p, i);
}

enum class Moment { first, second };

/// A moment's storage: float32, bf16 or one byte, this one only for single elements (see update_bytes).
template <Moment kMoment, class M, int W>
__device__ inline void load_moment(const M* p, std::int64_t i, float (&x)[W]) {
  if constexpr (!std::is_same_v<M, std::uint8_t>) {
    load_floats(p, i, x);
  } else {
    static_assert(W == 1);
    x[0] = kMoment == Moment::first ? decode_first_moment(p[i]) : decode_second_moment(p[i]);
  }
}

template <Moment kMoment, class M, int W>
__device__ inline void store_moment(M* p, std::int64_t i, const float (&x)[W], const Bits<W>& random) {
  if constexpr (std::is_same_v<M, float>) {
    store_floats(p, i, x);
  } else if constexpr (!std::is_same_v<M, std::uint8_t>) {
    store_rounded(p, i, x, random);
  } else {
    static_assert(W == 1);
    p[i] = kMoment == Moment::first ? encode_first_moment(x[0], random.at[0])
                                    : encode_second_moment(x[0], random.at[0]);
  }
}

template <Master kMaster, int W, class M, class G>
__device__ inline void load_params(const AdamWData<M, G>& d, std::int64_t i, float (&p)[W]) {
  if constexpr (kMaster == Master::param) {
    load_floats(static_cast<const float*>(d.param), i, p);
  } else if constexpr (kMaster == Master::separate) {
    load_floats(d.master, i, p);
  } else if constexpr (kMaster == Master::remainder) {
    const auto upper = Bits<W>::load(d.param, i), rest = Bits<W>::load(d.remainder, i);
#pragma unroll
    for (int w = 0; w < W; ++w) p[w] = join_float({upper.at[w], static_cast<std::int16_t>(rest.at[w])});
  } else {
    load_floats(static_cast<const Bf16*>(d.param), i, p);
  }
}

template <Master kMaster, int W, class M, class G>
__device__ inline void store_params(const AdamWData<M, G>& d, std::int64_t i, const float (&p)[W],
                                    const Bits<W>& random) {
  if constexpr (kMaster == Master::param) {
    store_floats(static_cast<float*>(d.param), i, p);
  } else if constexpr (kMaster == Master::separate) {
    store_floats(d.master, i, p);
    store_floats(static_cast<Bf16*>(d.param), i, p);
  } else if constexpr (kMaster == Master::remainder) {
    Bits<W> upper, rest;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const SplitFloat split = split_float(p[w]);
      upper.at[w] = split.upper;
      rest.at[w] = static_cast<std::uint16_t>(split.rest);
    }
    upper.store(d.param, i);
    rest.store(d.remainder, i);
  } else {
    store_rounded(static_cast<Bf16*>(d.param), i, p, random);
  }
}

/// Elements i .. i + W. Those of one quad share their random bits: W is 1, or the first is a quad's first.
template <Master kMaster, int W, class M, class G>
__device__ inline void update_pack(const AdamWData<M, G>& d, std::int64_t i, float factor) {
  float p[W], m[W], v[W], g[W];
  load_floats(d.grad, i, g);
  load_moment<Moment::first>(d.m, i, m);
  load_moment<Moment::second>(d.v, i, v);
  load_params<kMaster>(d, i, p);
  Bits<W> of_param{}, of_m{}, of_v{};
  PhiloxBlock random{};
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const std::uint64_t index = d.first_index + static_cast<std::uint64_t>(i + w);
    constexpr bool kRounds = !std::is_same_v<M, float> || kMaster == Master::none;
    if (kRounds && w % 4 == 0) random = rounding_block(d.seed, d.step, index / 4);
    adamw_update(d.factors, g[w] * factor, p[w], m[w], v[w]);
    const RoundingBits bits = rounding_bits(random, W == 1 ? index : static_cast<std::uint64_t>(w));
    of_param.at[w] = bits.param, of_m.at[w] = bits.m, of_v.at[w] = bits.v;
  }
  store_moment<Moment::first>(d.m, i, m, of_m);
  store_moment<Moment::second>(d.v, i, v, of_v);
  store_params<kMaster>(d, i, p, of_param);
}

constexpr int kPack = 8;

/// A pack of what AdamW reads where moments take a byte; they go with bf16 parameters without a master.
template <class G>
struct BytePack {
  static constexpr int kHalf = kMoved<G, kPack>;
  Pack<Bf16, kPack> param;
  Pack<G, kHalf> grad[kPack / kHalf];
  uint2 m, v;

  __device__ BytePack(const AdamWData<std::uint8_t, G>& d, std::int64_t i)
      : param(Pack<Bf16, kPack>::load(static_cast<const Bf16*>(d.param) + i)),
        m(*reinterpret_cast<const uint2*>(d.m + i)),
        v(*reinterpret_cast<const uint2*>(d.v + i)) {
#pragma unroll
    for (int h = 0; h < kPack / kHalf; ++h) grad[h] = Pack<G, kHalf>::load(d.grad + i + h * kHalf);
  }
};

template <class G>
__device__ inline void update_bytes(const AdamWData<std::uint8_t, G>& d, std::int64_t i, float factor,
                                    const BytePack<G>& pack) {
  float p[kPack], m[kPack], v[kPack];
  decode_first_moments(pack.m, m);
  decode_second_moments(pack.v, v);
  const std::uint64_t quad = (d.first_index + static_cast<std::uint64_t>(i)) / 4;
  unsigned random[kPack];
#pragma unroll
  for (int w = 0; w < kPack; ++w) {
    if (w % 4 == 0) {
      const PhiloxBlock block = rounding_block(d.seed, d.step, quad + static_cast<std::uint64_t>(w / 4));
#pragma unroll
      for (int j = 0; j < 4; ++j) random[w + j] = block.word[j];
    }
    p[w] = pack.param.get(w);
    const float g = pack.grad[w / BytePack<G>::kHalf].get(w % BytePack<G>::kHalf);
    adamw_update(d.factors, g * factor, p[w], m[w], v[w]);
  }
  *reinterpret_cast<uint2*>(d.m + i) = encode_first_moments(m, random);
  *reinterpret_cast<uint2*>(d.v + i) = encode_second_moments(v, random);
  store_rounded_stochastic(static_cast<Bf16*>(d.param) + i, p, random);
}

/// aligned: everything at a global index that is a multiple of kPack is aligned for a pack.
template <Master kMaster, class M, class G>
__global__ void __launch_bounds__(kThreads) adamw(AdamWData<M, G> d, bool aligned) {
  const float factor = *d.grad_factor;
  if (factor == 0.0f) return;  // the gradient is not finite
  const std::uint64_t pack =
      d.first_index / kPack + static_cast<std::uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const auto begin = static_cast<std::int64_t>(kPack * pack - d.first_index);
  if (aligned && begin >= 0 && begin + kPack <= d.n) return update_pack<kMaster, kPack>(d, begin, factor);
  const std::int64_t end = min(begin + kPack, d.n);
  for (std::int64_t i = max(begin, std::int64_t{0}); i < end; ++i) update_pack<kMaster, 1>(d, i, factor);
}

/// The same for moments of a byte, whose arithmetic takes nearly as long as memory does: each thread has its
/// next pack on the way meanwhile. aligned: so is element 0, and it is a quad's first.
template <class G>
__global__ void __launch_bounds__(kThreads, kByteBlocks)
    adamw_bytes(const __grid_constant__ AdamWData<std::uint8_t, G> d, bool aligned) {
  const float factor = *d.grad_factor;
  if (factor == 0.0f) return;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t own = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t packs = aligned ? d.n / kPack : 0;
  for (std::int64_t i = packs * kPack + own; i < d.n; i += step) update_pack<Master::none, 1>(d, i, factor);
  if (own >= packs) return;
  BytePack<G> next(d, own * kPack);
  for (std::int64_t i = own; i < packs; i += step) {
    const BytePack<G> now = next;
    if (i + step < packs) next = BytePack<G>(d, (i + step) * kPack);
    update_bytes(d, i * kPack, factor, now);
  }
}

Master master_of(const AdamW& op) {
  if (op.param.dtype() == DType::f32 && !op.master) return Master::param;
  if (op.master) return Master::separate;
  return op.remainder ? Master::remainder : Master::none;
}

template <class F>
void with_master(Master master, F&& f) {
  switch (master) {
    case Master::param:
      return f(std::integral_constant<Master, Master::param>{});
    case Master::separate:
      return f(std::integral_constant<Master, Master::separate>{});
    case Master::remainder:
      return f(std::integral_constant<Master, Master::remainder>{});
    case Master::none:
      return f(std::integral_constant<Master, Master::none>{});
  }
}

__global__ void clip_factor(const double* sums, int parts, double max_norm, double* norm, float* factor) {
  double total = 0.0;
  for (int i = 0; i < parts; ++i) total += sums[i];
  const double length = sqrt(total);
  *norm = length;
  const double scale = max_norm > 0.0 ? fmin(1.0, max_norm / (length + 1e-6)) : 1.0;
  *factor = isfinite(length) ? static_cast<float>(scale) : 0.0f;
}

}  // namespace

namespace {

template <class M, class G>
void launch_adamw(Stream& stream, const AdamW& op) {
  bool packs = op.first_index % kPack == 0;
  for (const Tensor* x : {&op.param, &op.master, &op.remainder, &op.m, &op.v, &op.grad})
    packs = packs && reinterpret_cast<std::uintptr_t>(x->data()) %
                             std::min<std::size_t>(16, kPack * size_of(x->dtype())) ==
                         0;
  const std::int64_t n = op.param.numel();
  const AdamWData<M, G> data{op.param.data(),
                             ptr_or_null<float>(op.master),
                             ptr_or_null<std::int16_t>(op.remainder),
                             ptr<M>(op.m),
                             ptr<M>(op.v),
                             ptr<G>(op.grad),
                             ptr<float>(op.grad_factor),
                             n,
                             adamw_factors<float>(op),
                             op.seed,
                             static_cast<std::uint64_t>(op.step),
                             static_cast<std::uint64_t>(op.first_index)};
  const unsigned blocks = blocks_for(n / kPack + 2, kThreads);
  const cudaStream_t native = cuda_stream(stream);
  if constexpr (std::is_same_v<M, std::uint8_t>) {
    const unsigned most = kByteBlocks * static_cast<unsigned>(processors());
    adamw_bytes<G><<<std::min(blocks, most), kThreads, 0, native>>>(data, packs);
  } else {
    with_master(master_of(op),
                [&](auto kind) { adamw<kind(), M, G><<<blocks, kThreads, 0, native>>>(data, packs); });
  }
}

}  // namespace

void AdamW::cuda(Stream& stream) const {
  check(*this);
  if (param.dtype() == DType::f64) refuse("AdamW", param.dtype());
  if (m.dtype() != v.dtype()) throw Error("AdamW: on the GPU both moments have one element type");
  if (param.dtype() == DType::f32 && master) throw Error("AdamW: float32 parameters take no master");
  const bool bytes = m.dtype() == DType::u8;
  if (bytes && master_of(*this) != Master::none)
    throw Error("AdamW: on the GPU moments in one byte go with bf16 parameters without a master");
  if (param.numel() == 0) return;
  with_float_type("AdamW", grad.dtype(), [&](auto gradient) {
    using G = typename decltype(gradient)::type;
    if (bytes) return launch_adamw<std::uint8_t, G>(stream, *this);
    with_float_type("AdamW", m.dtype(),
                    [&](auto moment) { launch_adamw<typename decltype(moment)::type, G>(stream, *this); });
  });
  launched("AdamW");
}

void ClipFactor::cuda(Stream& stream) const {
  check(*this);
  clip_factor<<<1, 1, 0, cuda_stream(stream)>>>(ptr<double>(sums), static_cast<int>(sums.numel()), max_norm,
                                                ptr<double>(norm), ptr<float>(factor));
  launched("ClipFactor");
}

}  // namespace lapidary
