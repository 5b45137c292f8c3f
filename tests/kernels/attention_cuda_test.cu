// Attention on the GPU at the sizes of Gemma 4 12B's layers, where its own kernels run, against float64 sums
// that are computed there too: of all tokens of short rows, of a sample of long ones. Runs where
// LAPIDARY_TEST_DEVICE is cuda.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <sstream>

#include "kernels/arena.h"
#include "kernels/batch.h"
#include "kernels/cuda/device.cuh"
#include "kernels/ops.h"

namespace lapidary {

namespace {

constexpr std::int32_t kWindow = 1024;

struct Kind {
  const char* name;
  std::int64_t heads, kv, dim;
};
constexpr Kind kSliding{"sliding", 16, 8, 256}, kFull{"full", 16, 1, 512};

struct Scene {
  std::string name;
  Kind kind;
  std::int64_t tokens;
  Intervals keys;
  bool host_bounds = true;  ///< without, heads of 256 compute the scores again for d_q
};
void PrintTo(const Scene& s, std::ostream* out) {
  *out << s.name;
}

// ------------------------------------------------------------------------------------------ the masks

Intervals intervals_of(std::int64_t tokens, std::vector<std::int32_t> document,
                       std::vector<std::uint8_t> vision, ImageAttention rule, bool full) {
  document.resize(static_cast<std::size_t>(tokens));
  vision.resize(static_cast<std::size_t>(tokens));
  Intervals whole, sliding;
  attention_intervals(document, vision, kWindow, rule, whole, sliding);
  return full ? whole : sliding;
}

Intervals causal(std::int64_t tokens, bool full) {
  const auto n = static_cast<std::size_t>(tokens);
  return intervals_of(tokens, std::vector<std::int32_t>(n, 0), std::vector<std::uint8_t>(n, 0),
                      ImageAttention::sliding, full);
}

/// Documents of 1 token up with text and image blocks of 1 to `longest` tokens; both ends are image blocks.
Intervals packed(std::int64_t tokens, unsigned longest, ImageAttention rule, bool full, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<std::int32_t> document;
  std::vector<std::uint8_t> vision;
  std::int32_t current = 0;
  bool image = true;
  while (static_cast<std::int64_t>(document.size()) < tokens) {
    const unsigned most = rng() % 4 == 0 ? 3 : longest;
    const std::size_t run = 1 + rng() % most;
    document.insert(document.end(), run, current);
    vision.insert(vision.end(), run, image ? 1 : 0);
    image = rng() % 2 == 0;
    if (rng() % 3 != 0) ++current;
  }
  vision.resize(static_cast<std::size_t>(tokens));
  std::fill(vision.end() - std::min<std::int64_t>(tokens, longest / 2 + 1), vision.end(), std::uint8_t{1});
  return intervals_of(tokens, document, vision, rule, full);
}

/// Any ends that never decrease, empty intervals included.
Intervals monotone(std::int64_t tokens, unsigned seed) {
  std::mt19937 rng(seed);
  Intervals out;
  std::int64_t lo = 0, hi = 0;
  const auto step = [&] {
    const unsigned times = rng() % 50 == 0 ? 40 : 1;
    return static_cast<std::int64_t>(rng() % 3 * times);
  };
  for (std::int64_t q = 0; q < tokens; ++q) {
    hi = std::min(tokens, hi + step());
    lo = std::min(hi, lo + step());
    out.lo.push_back(static_cast<std::int32_t>(lo));
    out.hi.push_back(static_cast<std::int32_t>(hi));
  }
  return out;
}

std::vector<Scene> scenes() {
  constexpr auto kAll = ImageAttention::all, kOne = ImageAttention::sliding;
  std::vector<Scene> out;
  const auto add = [&](const std::string& name, const Kind& kind, std::int64_t tokens, const Intervals& keys,
                       bool host_bounds = true) {
    out.push_back({std::string(kind.name) + "_" + name + "_" + std::to_string(tokens), kind, tokens, keys,
                   host_bounds});
  };
  for (const Kind& kind : {kSliding, kFull}) {
    const bool full = kind.dim == 512;
    unsigned seed = 0;
    for (const std::int64_t tokens : {1, 63, 200, 1001, 2500, 32768}) {
      add("causal", kind, tokens, causal(tokens, full));
      for (const auto rule : {kAll, kOne})
        add(rule == kAll ? "packed_all" : "packed", kind, tokens,
            packed(tokens, static_cast<unsigned>(std::min<std::int64_t>(tokens, 2600)), rule, full, ++seed));
      add("short_documents", kind, tokens, packed(tokens, 90, kOne, full, ++seed));
      if (tokens > 1) add("any_ends", kind, tokens, monotone(tokens, ++seed));
    }
  }
  // Other groups of heads, and dq from scores computed again.
  for (const std::int64_t kv : {1, 2, 4})
    add("group_" + std::to_string(4 / kv), {"sliding", 4, kv, 256}, 517, packed(517, 200, kOne, false, 90));
  add("group_3", {"sliding", 6, 2, 256}, 333, packed(333, 100, kAll, false, 91));
  for (const std::int64_t heads : {1, 4, 128})
    add("heads_" + std::to_string(heads), {"full", heads, 1, 512}, 301, packed(301, 100, kOne, true, 92));
  add("no_host_bounds", kSliding, 1001, packed(1001, 1001, kOne, false, 93), false);
  add("no_host_bounds_any_ends", kSliding, 2500, monotone(2500, 94), false);
  return out;
}

// -------------------------------------------------------------------------------------- the reference

struct View {
  const Bf16 *q, *k, *v, *out, *d_out;
  const float* lse;  ///< [H, N]
  int tokens, heads, kv, dim;

  __device__ const Bf16* row(const Bf16* x, int token, int head, int of) const {
    return x + (static_cast<std::int64_t>(token) * of + head) * dim;
  }
};

/// A warp's dot product.
__device__ double dot(const Bf16* a, const Bf16* b, int dim) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < dim; i += 32)
    sum += static_cast<double>(__bfloat162float(a[i])) * static_cast<double>(__bfloat162float(b[i]));
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

constexpr int kThreads = 256, kWarps = kThreads / 32;

/// Log-sum-exp of every sampled token (x) and head (y) whose keys are [begin, end).
__global__ void __launch_bounds__(kThreads)
    reference_lse(View z, const int* token, const int* begin, const int* end, double* lse) {
  __shared__ double tops[kWarps], sums[kWarps];
  const int t = token[blockIdx.x], head = static_cast<int>(blockIdx.y), warp = threadIdx.x / 32;
  double top = -INFINITY, sum = 0;
  for (int key = begin[blockIdx.x] + warp; key < end[blockIdx.x]; key += kWarps) {
    const double s = dot(z.row(z.q, t, head, z.heads), z.row(z.k, key, head / (z.heads / z.kv), z.kv), z.dim);
    if (s > top) sum *= exp(top - s), top = s;
    sum += exp(s - top);
  }
  tops[warp] = top, sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all_top = -INFINITY, all = 0;
  for (int i = 0; i < kWarps; ++i) all_top = fmax(all_top, tops[i]);
  for (int i = 0; i < kWarps; ++i) all += sums[i] == 0 ? 0 : sums[i] * exp(tops[i] - all_top);
  lse[blockIdx.y * gridDim.x + blockIdx.x] = all_top + log(all);
}

/// Of queries: out = sum of p v and d_q = sum of ds k over the keys [begin, end) of a sampled token (x) and
/// query head (y). Of keys: d_v = sum of p d_out and d_k = sum of ds q over the queries [begin, end) and the
/// heads of a key head (y). The pairs are cut into gridDim.z parts.
template <bool kOfKeys>
__global__ void __launch_bounds__(kThreads)
    reference_sums(View z, const int* token, const int* begin, const int* end, const double* lse,
                   double* first, double* second) {
  __shared__ double p[kThreads], ds[kThreads];
  const int t = token[blockIdx.x], head = static_cast<int>(blockIdx.y), group = z.heads / z.kv;
  const int members = kOfKeys ? group : 1, pairs = (end[blockIdx.x] - begin[blockIdx.x]) * members;
  const int part = (pairs + static_cast<int>(gridDim.z) - 1) / static_cast<int>(gridDim.z),
            stop = min(pairs, (static_cast<int>(blockIdx.z) + 1) * part);
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  for (int from = static_cast<int>(blockIdx.z) * part; from < stop; from += kThreads) {
    for (int i = threadIdx.x / 32; i < kThreads && from + i < stop; i += kWarps) {
      const int other = begin[blockIdx.x] + (from + i) / members;
      const int query = kOfKeys ? other : t, key = kOfKeys ? t : other;
      const int q_head = kOfKeys ? head * group + (from + i) % members : head, k_head = q_head / group;
      const Bf16* d_out = z.row(z.d_out, query, q_head, z.heads);
      const double s = dot(z.row(z.q, query, q_head, z.heads), z.row(z.k, key, k_head, z.kv), z.dim),
                   dp = dot(d_out, z.row(z.v, key, k_head, z.kv), z.dim),
                   delta = dot(d_out, z.row(z.out, query, q_head, z.heads), z.dim);
      const double given = exp(s - z.lse[static_cast<std::int64_t>(q_head) * z.tokens + query]);
      p[i] = kOfKeys ? given : exp(s - lse[place]);
      ds[i] = given * (dp - delta);
    }
    __syncthreads();
    for (int d = static_cast<int>(threadIdx.x); d < z.dim; d += kThreads) {
      double a = 0, b = 0;
      for (int i = 0; i < kThreads && from + i < stop; ++i) {
        const int other = begin[blockIdx.x] + (from + i) / members;
        const int h = kOfKeys ? head * group + (from + i) % members : head / group;
        const int of = kOfKeys ? z.heads : z.kv;
        a += p[i] * static_cast<double>(__bfloat162float(z.row(kOfKeys ? z.d_out : z.v, other, h, of)[d]));
        b += ds[i] * static_cast<double>(__bfloat162float(z.row(kOfKeys ? z.q : z.k, other, h, of)[d]));
      }
      atomicAdd(first + place * z.dim + d, a);
      atomicAdd(second + place * z.dim + d, b);
    }
    __syncthreads();
  }
}

/// A copy on the device of `values`, or zeros.
template <class T>
struct DeviceArray {
  explicit DeviceArray(std::size_t count) : size(count) {
    cuda_ok(cudaMalloc(&data, std::max<std::size_t>(count, 1) * sizeof(T)), "cudaMalloc");
    cuda_ok(cudaMemset(data, 0, count * sizeof(T)), "cudaMemset");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    cuda_ok(cudaMemcpy(data, values.data(), size * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  std::vector<T> host() const {
    std::vector<T> out(size);
    cuda_ok(cudaMemcpy(out.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return out;
  }
  T* data = nullptr;
  std::size_t size;
};

/// Sampled tokens and what each meets: as queries their keys, as keys the queries that see them.
struct Sample {
  std::vector<int> token, key_begin, key_end, query_begin, query_end;
  explicit Sample(const Scene& s) {
    constexpr std::int64_t kMost = 96;
    std::set<int> chosen;
    std::mt19937 rng(11);
    for (std::int64_t i = 0; i < std::min<std::int64_t>(s.tokens, 4); ++i)
      chosen.insert({static_cast<int>(i), static_cast<int>(s.tokens - 1 - i)});
    for (int t = 0; s.tokens <= kMost && t < s.tokens; ++t) chosen.insert(t);
    while (static_cast<std::int64_t>(chosen.size()) < std::min(s.tokens, kMost))
      chosen.insert(static_cast<int>(rng() % static_cast<unsigned>(s.tokens)));
    token.assign(chosen.begin(), chosen.end());
    const auto first_above = [](const std::vector<std::int32_t>& x, int bound) {
      return static_cast<int>(std::upper_bound(x.begin(), x.end(), bound) - x.begin());
    };
    for (const int t : token) {
      key_begin.push_back(s.keys.lo[static_cast<std::size_t>(t)]);
      key_end.push_back(s.keys.hi[static_cast<std::size_t>(t)]);
      query_begin.push_back(first_above(s.keys.hi, t));
      query_end.push_back(first_above(s.keys.lo, t));
    }
  }
};

// ---------------------------------------------------------------------------------------- comparisons

// Results carry the roundings of p, of ds and their own, 2^-9 each at most: about 3e-3 of the result's rms.
// Single elements are sums whose terms may cancel. Gradients of one token alone are differences of equal
// numbers: only their size is bounded.
constexpr double kRelative = 4e-3, kWorst = 0.1, kTiny = 1e-2;

/// The rows of the sampled tokens of x [N, heads, dim].
std::vector<double> sampled_rows(const Tensor& x, const Sample& sample) {
  const auto row = static_cast<std::size_t>(x.size(1) * x.size(2));
  std::vector<Bf16> words(row);
  std::vector<double> out;
  for (const int t : sample.token) {
    cuda_ok(cudaMemcpy(words.data(), ptr<Bf16>(x) + static_cast<std::size_t>(t) * row, row * sizeof(Bf16),
                       cudaMemcpyDeviceToHost),
            "cudaMemcpy");
    for (const Bf16 word : words) out.push_back(static_cast<double>(__bfloat162float(word)));
  }
  return out;
}

/// Expected [head, place of the sample, dim] against the rows of a result [N, heads, dim].
void expect_close(const char* name, const Tensor& result, const Sample& sample,
                  const std::vector<double>& expected) {
  const auto heads = static_cast<std::size_t>(result.size(1)), dim = static_cast<std::size_t>(result.size(2));
  const std::vector<double> rows = sampled_rows(result, sample);
  double square = 0, error = 0;
  for (const double x : expected) square += x * x;
  const double rms = std::sqrt(square / static_cast<double>(expected.size()));
  std::size_t bad = 0;
  std::ostringstream first_bad;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::size_t place = i / dim / heads, h = i / dim % heads, d = i % dim;
    const double x = expected[(h * sample.token.size() + place) * dim + d], e = std::fabs(rows[i] - x);
    error += e * e;
    if (e <= kWorst * (std::max(rms, kTiny) + std::fabs(x)) || bad++ > 0) continue;
    first_bad << "token " << sample.token[place] << " head " << h << " column " << d << ": found " << rows[i]
              << ", expected " << x;
  }
  const double relative = std::sqrt(error / (square + 1e-300));
  std::printf("  %s %.2e", name, relative);
  EXPECT_EQ(bad, 0u) << name << ": " << first_bad.str();
  EXPECT_TRUE(relative <= kRelative || rms < kTiny) << name << ": relative error " << relative;
}

class AttentionCuda : public testing::TestWithParam<Scene> {
 protected:
  void SetUp() override {
    const char* device = std::getenv("LAPIDARY_TEST_DEVICE");
    if (!device || std::strcmp(device, "cuda") != 0) GTEST_SKIP() << "LAPIDARY_TEST_DEVICE is not cuda";
  }
};

/// Operands and results of one scene, random with scores of a few units.
struct Layer {
  Layer(Backend& backend, Stream& to, const Scene& scene)
      : s(scene), stream(to), memory(backend, "test", bytes_of(scene)) {
    const auto normal = [&](std::int64_t heads, double std, std::uint64_t seed) {
      const Tensor x = allocate(heads);
      run(stream, FillNormal{.out = x.reshape({x.numel()}), .std = std, .seed = seed});
      return x;
    };
    const double scale = 1.5 / std::sqrt(std::sqrt(static_cast<double>(s.kind.dim)));
    q = normal(s.kind.heads, scale, 1), k = normal(s.kind.kv, scale, 2), v = normal(s.kind.kv, 1, 3);
    d_out = normal(s.kind.heads, 1, 4);
    lo = memory.allocate(DType::i32, {s.tokens}), hi = memory.allocate(DType::i32, {s.tokens});
    backend.copy_to_device(stream, lo.data(), s.keys.lo.data(), lo.bytes());
    backend.copy_to_device(stream, hi.data(), s.keys.hi.data(), hi.bytes());
  }
  static std::size_t bytes_of(const Scene& s) {
    const auto heads = static_cast<std::size_t>(6 * s.kind.heads + 6 * s.kind.kv);
    return static_cast<std::size_t>(s.tokens) * (heads * static_cast<std::size_t>(s.kind.dim) * 2 +
                                                 static_cast<std::size_t>(s.kind.heads) * 8 + 8) +
           (std::size_t{1} << 20);
  }
  Tensor allocate(std::int64_t heads) {
    const Tensor x = memory.allocate(DType::bf16, {s.tokens, heads, s.kind.dim});
    cuda_ok(cudaMemsetAsync(x.data(), 0xff, x.bytes(), cuda_stream(stream)), "NaN");
    return x;
  }

  struct Results {
    Tensor out, lse, d_q, d_k, d_v;
  };
  Results compute() {
    Results r{allocate(s.kind.heads), memory.allocate(DType::f32, {s.kind.heads, s.tokens}),
              allocate(s.kind.heads), allocate(s.kind.kv), allocate(s.kind.kv)};
    const std::int32_t *host_lo = s.host_bounds ? s.keys.lo.data() : nullptr,
                       *host_hi = s.host_bounds ? s.keys.hi.data() : nullptr;
    run(stream, Attention{.q = q,
                          .k = k,
                          .v = v,
                          .lo = lo,
                          .hi = hi,
                          .out = r.out,
                          .lse = r.lse,
                          .host_lo = host_lo,
                          .host_hi = host_hi});
    run(stream, AttentionBackward{.d_out = d_out,
                                  .q = q,
                                  .k = k,
                                  .v = v,
                                  .lo = lo,
                                  .hi = hi,
                                  .out = r.out,
                                  .lse = r.lse,
                                  .d_q = r.d_q,
                                  .d_k = r.d_k,
                                  .d_v = r.d_v,
                                  .host_lo = host_lo,
                                  .host_hi = host_hi});
    cuda_ok(cudaDeviceSynchronize(), "attention");
    return r;
  }

  const Scene& s;
  Stream& stream;
  Arena memory;
  Tensor q, k, v, d_out, lo, hi;
};

__global__ void count_differences(const int* a, const int* b, std::int64_t words, unsigned long long* count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < words && a[i] != b[i]) atomicAdd(count, 1ull);
}

void expect_same_bits(const char* name, const Tensor& a, const Tensor& b) {
  const auto words = static_cast<std::int64_t>(a.bytes() / sizeof(int));
  const DeviceArray<unsigned long long> count(1);
  count_differences<<<blocks_for(words, kThreads), kThreads>>>(
      static_cast<const int*>(a.data()), static_cast<const int*>(b.data()), words, count.data);
  launched("count_differences");
  EXPECT_EQ(count.host()[0], 0u) << name << ": words that differ from run to run";
}

void expect_lse(const Tensor& result, const Sample& sample, const std::vector<double>& expected) {
  std::vector<float> all(static_cast<std::size_t>(result.numel()));
  cuda_ok(cudaMemcpy(all.data(), result.data(), result.bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const std::size_t head = i / sample.token.size(),
                      t = static_cast<std::size_t>(sample.token[i % sample.token.size()]);
    const double found = static_cast<double>(all[head * static_cast<std::size_t>(result.size(1)) + t]);
    if (std::isinf(expected[i]) && found == expected[i]) continue;
    const double e = std::fabs(found - expected[i]) / std::max(1.0, std::fabs(expected[i]));
    EXPECT_LE(e, 1e-5) << "lse of token " << t << " head " << head << ": " << found << ", expected "
                       << expected[i];
    worst = std::max(worst, e);
  }
  std::printf("  lse %.2e", worst);
}

TEST_P(AttentionCuda, EqualsFloat64SumsAndGivesTheSameBitsTwice) {
  const Scene& s = GetParam();
  Backend& backend = cuda_backend(0);
  const auto stream = backend.make_stream("test");
  Arena workspace(backend, "workspace", std::size_t{320} << 20);
  stream->set_workspace(&workspace);
  Layer layer(backend, *stream, s);
  const Layer::Results r = layer.compute(), again = layer.compute();
  if (s.tokens == 32768) EXPECT_LE(workspace.peak(), std::size_t{256} << 20) << "bytes of scratch";
  expect_same_bits("out", r.out, again.out);
  expect_same_bits("lse", r.lse, again.lse);
  expect_same_bits("d_q", r.d_q, again.d_q);
  expect_same_bits("d_k", r.d_k, again.d_k);
  expect_same_bits("d_v", r.d_v, again.d_v);

  const Sample sample(s);
  const auto heads = static_cast<unsigned>(s.kind.heads), kv = static_cast<unsigned>(s.kind.kv),
             count = static_cast<unsigned>(sample.token.size());
  const View z{ptr<Bf16>(layer.q),         ptr<Bf16>(layer.k),
               ptr<Bf16>(layer.v),         ptr<Bf16>(r.out),
               ptr<Bf16>(layer.d_out),     ptr<float>(r.lse),
               static_cast<int>(s.tokens), static_cast<int>(heads),
               static_cast<int>(kv),       static_cast<int>(s.kind.dim)};
  const DeviceArray<int> token(sample.token), key_begin(sample.key_begin), key_end(sample.key_end),
      query_begin(sample.query_begin), query_end(sample.query_end);
  const auto numbers = [&](unsigned of) {
    return static_cast<std::size_t>(of) * count * static_cast<std::size_t>(s.kind.dim);
  };
  const DeviceArray<double> lse(static_cast<std::size_t>(heads) * count), out(numbers(heads)),
      d_q(numbers(heads)), d_k(numbers(kv)), d_v(numbers(kv));
  reference_lse<<<dim3(count, heads), kThreads>>>(z, token.data, key_begin.data, key_end.data, lse.data);
  reference_sums<false><<<dim3(count, heads, 2), kThreads>>>(z, token.data, key_begin.data, key_end.data,
                                                             lse.data, out.data, d_q.data);
  reference_sums<true><<<dim3(count, kv, 64 / kv), kThreads>>>(z, token.data, query_begin.data,
                                                               query_end.data, nullptr, d_v.data, d_k.data);
  launched("reference");
  cuda_ok(cudaDeviceSynchronize(), "reference");
  expect_lse(r.lse, sample, lse.host());
  expect_close("out", r.out, sample, out.host());
  expect_close("d_q", r.d_q, sample, d_q.host());
  expect_close("d_k", r.d_k, sample, d_k.host());
  expect_close("d_v", r.d_v, sample, d_v.host());
  std::printf("\n");
}

INSTANTIATE_TEST_SUITE_P(Scenes, AttentionCuda, testing::ValuesIn(scenes()),
                         [](const auto& info) { return info.param.name; });

}  // namespace

}  // namespace lapidary
