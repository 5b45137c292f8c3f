// MatMul beside OpenBLAS called directly, on shapes of the small multimodal model and on large squares: the
// wrapper must cost nothing. bf16 shows the price of converting tiles.
#include <benchmark/benchmark.h>
#include <cblas.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/ops.h"

namespace lapidary {
namespace {

struct Matrices {
  Matrices(std::int64_t m, std::int64_t n, std::int64_t k)
      : a(static_cast<std::size_t>(m * k)),
        b(static_cast<std::size_t>(n * k)),
        c(static_cast<std::size_t>(m * n)) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (float& x : a) x = normal(rng);
    for (float& x : b) x = normal(rng);
  }
  std::vector<float> a, b, c;
};

void count_flops(benchmark::State& state, std::int64_t m, std::int64_t n, std::int64_t k) {
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * static_cast<double>(m * n * k),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}

/// y = x W^T, as every linear layer.
void openblas(benchmark::State& state) {
  const std::int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  Matrices x(m, n, k);
  const auto blas = [](std::int64_t i) { return static_cast<blasint>(i); };
  for (auto _ : state) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas(m), blas(n), blas(k), 1.0f, x.a.data(), blas(k),
                x.b.data(), blas(k), 0.0f, x.c.data(), blas(n));
    benchmark::ClobberMemory();
  }
  count_flops(state, m, n, k);
}

void matmul_f32(benchmark::State& state) {
  const std::int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  Matrices x(m, n, k);
  const auto stream = cpu_backend().make_stream("bench");
  for (auto _ : state) {
    run(*stream, MatMul{Tensor(x.a.data(), DType::f32, {m, k}), Tensor(x.b.data(), DType::f32, {n, k}),
                        Tensor(x.c.data(), DType::f32, {m, n}), false, true});
    benchmark::ClobberMemory();
  }
  count_flops(state, m, n, k);
}

void matmul_bf16(benchmark::State& state) {
  const std::int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const Matrices x(m, n, k);
  std::vector<bf16> a(x.a.size()), b(x.b.size()), c(x.c.size());
  std::transform(x.a.begin(), x.a.end(), a.begin(), [](float v) { return bf16(v); });
  std::transform(x.b.begin(), x.b.end(), b.begin(), [](float v) { return bf16(v); });
  const auto stream = cpu_backend().make_stream("bench");
  for (auto _ : state) {
    run(*stream, MatMul{Tensor(a.data(), DType::bf16, {m, k}), Tensor(b.data(), DType::bf16, {n, k}),
                        Tensor(c.data(), DType::bf16, {m, n}), false, true});
    benchmark::ClobberMemory();
  }
  count_flops(state, m, n, k);
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->Args({256, 256, 64})->Args({512, 768, 256})->Args({1024, 1024, 1024})->Args({2048, 2048, 512});
  bench->ArgNames({"m", "n", "k"})->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK(openblas)->Apply(shapes);
BENCHMARK(matmul_f32)->Apply(shapes);
BENCHMARK(matmul_bf16)->Apply(shapes);

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
