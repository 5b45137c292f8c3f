// lapidary bench gemm: the layers' matrix products of a configuration, each beside a large square product and
// the library's own choice of algorithm.
#include <algorithm>
#include <iostream>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "launch/bench.h"
#include "launch/commands.h"
#include "trainer/step_work.h"

namespace lapidary {

namespace {

/// A product of the step, or the square one that shows what the device can do.
struct Product {
  OpWork work;
  std::int64_t calls = 0;
};

double flops_of_call(const Product& p) {
  return 2.0 * static_cast<double>(p.work.product.m * p.work.product.n) *
         static_cast<double>(p.work.product.k);
}

class GemmBench {
 public:
  GemmBench(const BenchGemmArguments& arguments, const RunConfig& config, Backend& backend)
      : arguments_(arguments), backend_(backend), stream_(backend.make_stream("bench")) {
    const RunSetup setup = make_run_setup(config, 1, 0, 1, true);
    for (const OpTimer::Line& line : step_operations(config, setup, backend.device()))
      if (line.work.product.m > 0) products_.push_back({line.work, line.count});
    std::ranges::stable_sort(products_, std::greater{}, [](const Product& p) { return p.work.flops; });
    add_square(setup.options.model.type);
    allocate();
  }

  void run() {
    std::cout << fmt::format(
                     "{}\nmatrix products of one rank's step, {} tokens a micro-batch, random numbers\n",
                     backend_.description(), products_.front().work.product.m)
              << std::flush;
    const std::vector<BenchTime> first = time();
    std::vector<BenchTime> chosen;
    if (backend_.device() == Device::cuda) {
      backend_.measure_products(true);
      for (const Product& p : products_) run_once(p);
      backend_.synchronize(*stream_);
      backend_.measure_products(false);
      chosen = time();
    }
    print(chosen.empty() ? first : chosen, chosen.empty() ? std::vector<BenchTime>() : first);
  }

 private:
  void add_square(DType type) {
    const std::int64_t side = backend_.device() == Device::cuda ? 8192 : 1024;
    OpWork work{.kind = "square", .label = "square"};
    work.product = {.m = side, .n = side, .k = side, .transpose_b = true, .in = type, .out = type};
    products_.push_back({work, 0});
  }

  void allocate() {
    std::size_t a = 0, b = 0, c = 0;
    for (const Product& p : products_) {
      const ProductShape& s = p.work.product;
      a = std::max(a, static_cast<std::size_t>(s.m * s.k) * size_of(s.in));
      b = std::max(b, static_cast<std::size_t>(s.n * s.k) * size_of(s.in));
      c = std::max(c, static_cast<std::size_t>(s.m * s.n) * size_of(s.out));
    }
    memory_ = std::make_unique<Arena>(backend_, "operands", a + b + c + 3 * Arena::kAlignment);
    const DType type = products_.front().work.product.in;
    std::uint64_t seed = 1;
    for (const auto& [bytes, to] : {std::pair{a, &a_}, std::pair{b, &b_}}) {
      *to = memory_->allocate(type, {static_cast<std::int64_t>(bytes / size_of(type))});
      lapidary::run(*stream_, FillNormal{.out = *to, .seed = seed++});
    }
    c_ = memory_->allocate_bytes(c);
  }

  /// All products read the same random numbers and write to the same place, each in its own shape.
  void run_once(const Product& p) const {
    const ProductShape& s = p.work.product;
    const auto matrix = [](const Tensor& from, DType type, std::int64_t rows, std::int64_t columns) {
      return Tensor(from.data(), type, {rows, columns});
    };
    lapidary::run(*stream_,
                  MatMul{.a = matrix(a_, s.in, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k),
                         .b = matrix(b_, s.in, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n),
                         .c = matrix(c_, s.out, s.m, s.n),
                         .transpose_a = s.transpose_a,
                         .transpose_b = s.transpose_b,
                         .accumulate = s.accumulate});
  }

  std::vector<BenchTime> time() {
    std::vector<BenchCase> cases;
    for (const Product& p : products_) cases.push_back({p.work.label, [this, &p] { run_once(p); }});
    BenchOptions options;
    options.rounds = arguments_.rounds;
    return time_in_turn(*stream_, cases, options);
  }

  /// `first`: with the library's first choice of algorithm, where `times` are those of the fastest.
  void print(const std::vector<BenchTime>& times, const std::vector<BenchTime>& first) const {
    const double square = flops_of_call(products_.back()) / times.back().median;
    std::cout << fmt::format("{:<48}{:>7}{:>10}{:>10}{:>11}{:>18}\n", "product m x n x k", "calls", "ms",
                             "TFLOP/s", "of square", first.empty() ? "" : "first choice ms");
    double ms = 0, flops = 0;
    for (std::size_t i = 0; i < products_.size(); ++i) {
      const Product& p = products_[i];
      const double rate = flops_of_call(p) / times[i].median;
      ms += static_cast<double>(p.calls) * times[i].median;
      flops += static_cast<double>(p.calls) * flops_of_call(p);
      const std::string label = p.calls > 0 ? p.work.label : fmt::format("square of {}", p.work.product.m);
      std::cout << fmt::format("{:<48}{:>7}{:>10.3f}{:>10.3f}{:>10.1f}%{:>18}\n", label, p.calls,
                               times[i].median, rate * 1e-9, 100 * rate / square,
                               first.empty() ? ""
                                             : fmt::format("{:.3f} ({:.2f}x)", first[i].median,
                                                           first[i].median / times[i].median));
    }
    std::cout << fmt::format("{:<48}{:>7}{:>10.3f}{:>10.3f}{:>10.1f}%\n", "all of a step", "", ms,
                             flops / ms * 1e-9, 100 * flops / ms / square);
  }

  const BenchGemmArguments& arguments_;
  Backend& backend_;
  std::unique_ptr<Stream> stream_;
  std::vector<Product> products_;
  std::unique_ptr<Arena> memory_;
  Tensor a_, b_, c_;
};

}  // namespace

int run_bench_gemm(const BenchGemmArguments& arguments) {
  const RunConfig config = load_config(arguments.config.sources);
  GemmBench(arguments, config, open_backend(choose_device(config.run.device), NodePlace{})).run();
  return 0;
}

}  // namespace lapidary
