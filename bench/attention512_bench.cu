// Attention with head dimension 512 beside the chunked products that serve other sizes: first errors against
// the same products in float32 on many masks, twice for the same bits, then times, interleaved.
//   attention512_bench check [tokens...]   errors (all masks; default sizes)
//   attention512_bench time [tokens...]    times (causal and packed documents)
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/arena.h"
#include "kernels/batch.h"
#include "kernels/cuda/attention512.h"
#include "kernels/cuda/attention512_plan.h"
#include "kernels/cuda/attention_chunked.h"
#include "kernels/cuda/device.cuh"

namespace lapidary {
namespace {

constexpr std::int64_t kDim = 512;

__device__ float uniform(unsigned long long i, unsigned seed) {
  unsigned long long x = i * 2 + seed * 0x9e3779b97f4a7c15ull + 1;
  x ^= x >> 30, x *= 0xbf58476d1ce4e5b9ull, x ^= x >> 27, x *= 0x94d049bb133111ebull, x ^= x >> 31;
  return static_cast<float>(x >> 40) * 0x1p-24f + 0x1p-25f;
}

__global__ void fill_normal(Bf16* x, float* wide, std::int64_t n, unsigned seed, float scale) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float r = sqrtf(-2.0f * logf(uniform(2 * i, seed))) * cospif(2.0f * uniform(2 * i + 1, seed));
  x[i] = __float2bfloat16_rn(r * scale);
  if (wide) wide[i] = __bfloat162float(x[i]);
}

__global__ void round_copy(const float* from, Bf16* to, float* wide, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  to[i] = __float2bfloat16_rn(from[i]);
  wide[i] = __bfloat162float(to[i]);
}

struct Scene {
  std::string name;
  std::int64_t tokens, heads;
  Intervals keys;
  double pairs() const {
    double sum = 0;
    for (std::size_t i = 0; i < keys.lo.size(); ++i) sum += keys.hi[i] - keys.lo[i];
    return sum;
  }
};

Intervals causal(std::int64_t tokens) {
  Intervals out;
  for (std::int64_t t = 0; t < tokens; ++t)
    out.lo.push_back(0), out.hi.push_back(static_cast<std::int32_t>(t + 1));
  return out;
}

/// Documents of `least` to `most` tokens; some with image blocks where `images`.
Intervals packed(std::int64_t tokens, int least, int most, bool images, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<std::int32_t> document;
  std::vector<std::uint8_t> vision;
  for (std::int32_t current = 0; static_cast<std::int64_t>(document.size()) < tokens; ++current) {
    std::size_t length = static_cast<std::size_t>(least) + rng() % static_cast<unsigned>(most - least + 1);
    while (length > 0) {
      const bool image = images && rng() % 2 == 0;
      const std::size_t run = std::min<std::size_t>(length, images ? 1 + rng() % 300 : length);
      document.insert(document.end(), run, current);
      vision.insert(vision.end(), run, image ? 1 : 0);
      length -= run;
    }
  }
  document.resize(static_cast<std::size_t>(tokens));
  vision.resize(static_cast<std::size_t>(tokens));
  Intervals full, sliding;
  attention_intervals(document, vision, 1024, ImageAttention::all, full, sliding);
  return full;
}

/// Any ends that never decrease, empty intervals included.
Intervals monotone(std::int64_t tokens, unsigned seed) {
  std::mt19937 rng(seed);
  Intervals out;
  std::int64_t lo = 0, hi = 0;
  for (std::int64_t q = 0; q < tokens; ++q) {
    hi = std::min<std::int64_t>(tokens,
                                hi + static_cast<std::int64_t>(rng() % 3) * (rng() % 50 == 0 ? 40 : 1));
    lo = std::min<std::int64_t>(hi, lo + static_cast<std::int64_t>(rng() % 3) * (rng() % 50 == 0 ? 40 : 1));
    out.lo.push_back(static_cast<std::int32_t>(lo));
    out.hi.push_back(static_cast<std::int32_t>(hi));
  }
  return out;
}

struct Memory {
  explicit Memory(Backend& b, std::size_t bytes) : arena(b, "bench", bytes) {}
  Tensor make(DType type, std::int64_t a, std::int64_t b, std::int64_t c) {
    return arena.allocate(type, {a, b, c});
  }
  Arena arena;
};

std::vector<float> to_host(const Tensor& x) {
  std::vector<float> out(static_cast<std::size_t>(x.numel()));
  if (x.dtype() == DType::f32) {
    cuda_ok(cudaMemcpy(out.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost), "copy");
    return out;
  }
  std::vector<std::uint16_t> raw(out.size());
  cuda_ok(cudaMemcpy(raw.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost), "copy");
  for (std::size_t i = 0; i < raw.size(); ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(raw[i]) << 16;
    std::memcpy(&out[i], &bits, 4);
  }
  return out;
}

// Results carry the roundings of p, of ds and their own, 2^-9 each at most: about 3e-3 of the result's rms.
// Single elements are sums whose terms may cancel. Gradients of one token alone are differences of equal
// numbers: only their size is bounded.
constexpr double kRelative = 4e-3, kWorst = 0.1, kTiny = 1e-2;

/// Prints and judges the difference of one result: largest error over the result's rms, place, tiles.
bool compare(const char* name, const Tensor& got, const Tensor& want) {
  const std::vector<float> a = to_host(got), b = to_host(want);
  double square = 0, error = 0, worst = 0;
  std::size_t at = 0, nans = 0, bad = 0, first = a.size();
  for (std::size_t i = 0; i < a.size(); ++i) square += static_cast<double>(b[i]) * b[i];
  const double rms = std::sqrt(square / static_cast<double>(a.size())) + 1e-30;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double e = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (!(e >= 0)) ++nans;
    error += e * e;
    if (e > worst) worst = e, at = i;
    // An element may be large beside the rms: its own rounding counts too. (Gradients of one token alone are
    // differences of equal numbers: only their size is bounded.)
    if (!(e <= kWorst * (std::max(rms, kTiny) + std::fabs(b[i])))) {
      ++bad;
      if (first == a.size()) first = i;
    }
  }
  const double relative = std::sqrt(error / (square + 1e-30));
  const auto d = static_cast<std::size_t>(got.size(2)), h = static_cast<std::size_t>(got.size(1));
  std::printf("    %-5s relative %.2e  worst %.2e of rms at token %zu head %zu column %zu (%g, %g)%s", name,
              relative, worst / rms, at / d / h, at / d % h, at % d, a[at], b[at], bad ? "" : "\n");
  if (bad)
    std::printf("  BAD: %zu of %zu, %zu nan, first at token %zu head %zu column %zu (%g, %g)\n", bad,
                a.size(), nans, first / d / h, first / d % h, first % d, a[first], b[first]);
  return bad == 0 && (relative <= kRelative || rms < kTiny);
}

bool compare_lse(const Tensor& got, const Tensor& want, std::int64_t tokens) {
  const std::vector<float> a = to_host(got), b = to_host(want);
  double worst = 0;
  std::size_t at = 0, bad = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isinf(a[i]) && a[i] == b[i]) continue;
    const double e =
        std::fabs(static_cast<double>(a[i]) - b[i]) / std::max(1.0, std::fabs(static_cast<double>(b[i])));
    if (!(e <= 1e-5)) ++bad;
    if (!(e <= worst)) worst = e, at = i;
  }
  std::printf("    lse   worst %.2e at head %zu token %zu (%g, %g)%s\n", worst,
              at / static_cast<std::size_t>(tokens), at % static_cast<std::size_t>(tokens), a[at], b[at],
              bad ? "  BAD" : "");
  return bad == 0;
}

bool same_bits(const char* name, const Tensor& x, const Tensor& y) {
  const std::vector<float> a = to_host(x), b = to_host(y);
  if (std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) return true;
  std::printf("    %s differs from run to run  BAD\n", name);
  return false;
}

struct Tensors {
  Tensor q, k, v, out, lse, d_out, d_q, d_k, d_v;
  Tensors(Memory& m, DType type, const Scene& s) {
    q = m.make(type, s.tokens, s.heads, kDim), k = m.make(type, s.tokens, 1, kDim),
    v = m.make(type, s.tokens, 1, kDim);
    out = m.make(type, s.tokens, s.heads, kDim), d_out = m.make(type, s.tokens, s.heads, kDim);
    d_q = m.make(type, s.tokens, s.heads, kDim), d_k = m.make(type, s.tokens, 1, kDim),
    d_v = m.make(type, s.tokens, 1, kDim);
    lse = m.arena.allocate(DType::f32, {s.heads, s.tokens});
  }
};

struct Bounds {
  Tensor lo, hi;
  Bounds(Memory& m, const Scene& s) {
    lo = m.arena.allocate(DType::i32, {s.tokens}), hi = m.arena.allocate(DType::i32, {s.tokens});
    cuda_ok(cudaMemcpy(lo.data(), s.keys.lo.data(), lo.bytes(), cudaMemcpyHostToDevice), "lo");
    cuda_ok(cudaMemcpy(hi.data(), s.keys.hi.data(), hi.bytes(), cudaMemcpyHostToDevice), "hi");
  }
};

Attention forward_op(const Tensors& t, const Bounds& b, const Scene& s) {
  Attention op{t.q, t.k, t.v, b.lo, b.hi, t.out, t.lse};
  op.host_lo = s.keys.lo.data(), op.host_hi = s.keys.hi.data();
  return op;
}
AttentionBackward backward_op(const Tensors& t, const Bounds& b, const Scene& s) {
  AttentionBackward op{t.d_out, t.q, t.k, t.v, b.lo, b.hi, t.out, t.lse, t.d_q, t.d_k, t.d_v};
  op.host_lo = s.keys.lo.data(), op.host_hi = s.keys.hi.data();
  return op;
}

void fill(Stream& stream, const Tensor& narrow, const Tensor& wide, unsigned seed, float scale) {
  fill_normal<<<blocks_for(narrow.numel(), 256), 256, 0, cuda_stream(stream)>>>(
      ptr<Bf16>(narrow), wide ? wide.as<float>() : nullptr, narrow.numel(), seed, scale);
}

template <class Op>
std::size_t chunked_scratch(const Op& op) {
  const AttentionSizes z{op.q.size(0), op.q.size(1), op.k.size(1), op.q.size(2)};
  if constexpr (std::is_same_v<Op, Attention>) {
    return forward_score_bytes(z);
  } else {
    return backward_scratch(z).total();
  }
}

bool check_scene(Backend& backend, Stream& stream, const Scene& s, float scale) {
  std::printf("  %s: %lld tokens, %lld heads, score scale %g\n", s.name.c_str(),
              static_cast<long long>(s.tokens), static_cast<long long>(s.heads), scale);
  std::fflush(stdout);
  const std::size_t elements = static_cast<std::size_t>(s.tokens * (s.heads * 4 + 5) * kDim);
  Memory m(backend, elements * 8 + (std::size_t{64} << 20));
  Arena work(backend, "work", std::size_t{600} << 20);
  stream.set_workspace(&work);
  Tensors narrow(m, DType::bf16, s), wide(m, DType::f32, s), again(m, DType::bf16, s);
  Bounds b(m, s);
  const float x = std::sqrt(scale) / std::sqrt(std::sqrt(static_cast<float>(kDim)));
  fill(stream, narrow.q, wide.q, 1, x), fill(stream, narrow.k, wide.k, 2, x);
  fill(stream, narrow.v, wide.v, 3, 1), fill(stream, narrow.d_out, wide.d_out, 4, 1);
  for (const Tensor& t :
       {narrow.out, narrow.d_q, narrow.d_k, narrow.d_v, again.out, again.d_q, again.d_k, again.d_v})
    cuda_ok(cudaMemset(t.data(), 0xff, t.bytes()), "nan");
  run(stream, forward_op(wide, b, s));
  run(stream, forward_op(narrow, b, s));
  cuda_ok(cudaDeviceSynchronize(), "forward");
  bool good = compare("out", narrow.out, wide.out);
  good = compare_lse(narrow.lse, wide.lse, s.tokens) && good;
  again.q = narrow.q, again.k = narrow.k, again.v = narrow.v, again.d_out = narrow.d_out;
  run(stream, forward_op(again, b, s));
  cuda_ok(cudaDeviceSynchronize(), "forward again");
  good = same_bits("out", narrow.out, again.out) && good;
  // The backward of both from the same rounded output.
  round_copy<<<blocks_for(wide.out.numel(), 256), 256, 0, cuda_stream(stream)>>>(
      wide.out.as<float>(), ptr<Bf16>(narrow.out), wide.out.as<float>(), wide.out.numel());
  again.out = narrow.out, again.lse = narrow.lse = wide.lse;
  run(stream, backward_op(wide, b, s));
  run(stream, backward_op(narrow, b, s));
  cuda_ok(cudaDeviceSynchronize(), "backward");
  good = compare("d_q", narrow.d_q, wide.d_q) && good;
  good = compare("d_k", narrow.d_k, wide.d_k) && good;
  good = compare("d_v", narrow.d_v, wide.d_v) && good;
  run(stream, backward_op(again, b, s));
  cuda_ok(cudaDeviceSynchronize(), "backward again");
  good = same_bits("d_q", narrow.d_q, again.d_q) && good;
  good = same_bits("d_k", narrow.d_k, again.d_k) && good;
  good = same_bits("d_v", narrow.d_v, again.d_v) && good;
  return good;
}

bool check_all(Backend& backend, Stream& stream, const std::vector<std::int64_t>& sizes) {
  bool good = true;
  for (const std::int64_t t : sizes) {
    good = check_scene(backend, stream, {"causal", t, 16, causal(t)}, 2) && good;
    if (t < 8) continue;
    good = check_scene(backend, stream,
                       {"documents", t, 16, packed(t, 1, static_cast<int>(t / 4 + 1), false, 2)}, 2) &&
           good;
    good = check_scene(backend, stream,
                       {"documents, images", t, 16, packed(t, 1, static_cast<int>(t), true, 3)}, 8) &&
           good;
    good = check_scene(backend, stream, {"any ends", t, 16, monotone(t, 4)}, 2) && good;
    if (t <= 1000) good = check_scene(backend, stream, {"6 heads", t, 6, monotone(t, 5)}, 2) && good;
  }
  return good;
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

void time_scene(Backend& backend, Stream& stream, const Scene& s) {
  const std::size_t elements = static_cast<std::size_t>(s.tokens * (s.heads * 4 + 5) * kDim);
  Memory m(backend, elements * 2 + (std::size_t{64} << 20));
  Tensors t(m, DType::bf16, s);
  Bounds b(m, s);
  fill(stream, t.q, {}, 1, 0.315f), fill(stream, t.k, {}, 2, 0.315f), fill(stream, t.v, {}, 3, 1),
      fill(stream, t.d_out, {}, 4, 1);
  const double flop = 4.0 * static_cast<double>(s.heads * kDim) * s.pairs();
  Attention forward = forward_op(t, b, s);
  AttentionBackward backward = backward_op(t, b, s);
  const std::size_t own_forward = forward.scratch_bytes(Device::cuda),
                    own_backward = backward.scratch_bytes(Device::cuda),
                    old_forward = chunked_scratch(forward), old_backward = chunked_scratch(backward);
  Arena work(backend, "work",
             std::max(std::max(own_forward, own_backward), std::max(old_forward, old_backward)) + 4096);
  stream.set_workspace(&work);
  const auto chunked = [&](auto op, auto f) {
    ArenaScope scope(work);
    op.scratch = work.allocate_bytes(chunked_scratch(op));
    f(stream, op);
  };
  const std::vector<std::function<void()>> calls = {
      [&] { run(stream, forward); }, [&] { chunked(forward, attention_chunked); },
      [&] { run(stream, backward); }, [&] { chunked(backward, attention_backward_chunked); }};
  std::vector<std::vector<double>> times(calls.size());
  cudaEvent_t begin, end;
  cuda_ok(cudaEventCreate(&begin), "event"), cuda_ok(cudaEventCreate(&end), "event");
  for (int round = 0; round < 8; ++round) {
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const int repeat = s.tokens > 16384 ? 1 : 4;
      cuda_ok(cudaEventRecord(begin, cuda_stream(stream)), "record");
      for (int r = 0; r < repeat; ++r) calls[i]();
      cuda_ok(cudaEventRecord(end, cuda_stream(stream)), "record");
      cuda_ok(cudaEventSynchronize(end), "timed run");
      float ms = 0;
      cuda_ok(cudaEventElapsedTime(&ms, begin, end), "elapsed");
      if (round > 0) times[i].push_back(static_cast<double>(ms) / repeat);
    }
  }
  const char* names[] = {"forward", "forward, chunked products", "backward", "backward, chunked products"};
  const double scale[] = {1, 1, 2.5, 2.5};
  const std::size_t scratch[] = {own_forward, old_forward, own_backward, old_backward};
  std::printf("  %s, %lld tokens, %.0f visible keys a query\n", s.name.c_str(),
              static_cast<long long>(s.tokens), s.pairs() / static_cast<double>(s.tokens));
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const double ms = median(times[i]);
    std::printf("    %-28s %8.3f ms (%.3f to %.3f)  %6.1f TFLOP/s  scratch %.1f MiB\n", names[i], ms,
                *std::min_element(times[i].begin(), times[i].end()),
                *std::max_element(times[i].begin(), times[i].end()), scale[i] * flop / ms * 1e-9,
                static_cast<double>(scratch[i]) / (1 << 20));
  }
  std::fflush(stdout);
}

int main_of(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  std::vector<std::int64_t> sizes;
  for (int i = 2; i < argc; ++i) sizes.push_back(std::atoll(argv[i]));
  Backend& backend = cuda_backend(0);
  const auto stream = backend.make_stream("bench");
  std::printf("%s\n", backend.description().c_str());
  if (mode == "check") {
    if (sizes.empty()) sizes = {1, 7, 8, 9, 63, 200, 1000, 2500};
    const bool good = check_all(backend, *stream, sizes);
    std::printf(good ? "all within bounds\n" : "ERRORS\n");
    return good ? 0 : 1;
  }
  if (sizes.empty()) sizes = {4096, 8192, 32768};
  for (const std::int64_t t : sizes) {
    time_scene(backend, *stream, {"causal", t, 16, causal(t)});
    if (t == 8192) {
      time_scene(backend, *stream, {"documents of 200 to 1200", t, 16, packed(t, 200, 1200, false, 7)});
      time_scene(backend, *stream,
                 {"documents of 1000 to 3000 with images", t, 16, packed(t, 1000, 3000, true, 7)});
    }
  }
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  try {
    return lapidary::main_of(argc, argv);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
}
