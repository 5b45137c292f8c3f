// lapidary bench attention: both kinds of layer of Gemma 4 12B, forward and backward, under several masks.
#include <algorithm>
#include <cmath>
#include <iostream>

#include "kernels/attention_tiles.h"
#include "kernels/batch.h"
#include "kernels/check.h"
#include "kernels/op_traffic.h"
#include "kernels/ops.h"
#include "launch/bench.h"
#include "launch/commands.h"
#include "trainer/run_setup.h"

namespace lapidary {

namespace {

/// What a kind of layer asks of attention.
struct LayerKind {
  const char* name;
  std::int64_t heads, kv_heads, dim;
  bool full;
};
constexpr LayerKind kKinds[] = {
    {"sliding layer, 16 query and 8 key heads of 256, window 1024", 16, 8, 256, false},
    {"full layer, 16 query heads and 1 key head of 512", 16, 1, 512, true}};
constexpr std::int32_t kWindow = 1024;

/// A row as repeated text and pictures; each repetition may be a document of its own.
struct Layout {
  const char* name;
  std::int64_t text, picture;  ///< tokens; text 0: all of the row
  bool documents;
};
constexpr Layout kLayouts[] = {{"causal, one document", 0, 0, false},
                               {"documents of 2048", 2048, 0, true},
                               {"documents of 1024", 1024, 0, true},
                               {"documents of 512", 512, 0, true},
                               {"documents of 128", 128, 0, true},
                               {"pictures of 280, text of 100", 100, 280, false},
                               {"pictures of 1120, text of 200", 200, 1120, false}};

Intervals intervals_of(const Layout& layout, std::int64_t tokens, bool full) {
  std::vector<std::int32_t> document(static_cast<std::size_t>(tokens), 0);
  std::vector<std::uint8_t> vision(document.size(), 0);
  const std::int64_t period = layout.text == 0 ? tokens : layout.text + layout.picture;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto at = static_cast<std::size_t>(t);
    if (layout.documents) document[at] = static_cast<std::int32_t>(t / period);
    vision[at] = layout.picture > 0 && t % period >= layout.text ? 1 : 0;
  }
  Intervals whole, sliding;
  attention_intervals(document, vision, kWindow, ImageAttention::sliding, whole, sliding);
  return full ? whole : sliding;
}

double pairs_of(const Intervals& keys) {
  double pairs = 0;
  for (std::size_t q = 0; q < keys.lo.size(); ++q) pairs += keys.hi[q] - keys.lo[q];
  return pairs;
}

/// One kind of layer at one length, random numbers with scores of a few units.
class AttentionBench {
 public:
  AttentionBench(Backend& backend, Stream& stream, const LayerKind& kind, std::int64_t tokens)
      : backend_(backend), stream_(stream), kind_(kind), tokens_(tokens), memory_(backend, "bench", bytes()) {
    const auto normal = [&](std::int64_t heads, double std, std::uint64_t seed) {
      const Tensor x = allocate(heads);
      run(stream_, FillNormal{.out = x.reshape({x.numel()}), .std = std, .seed = seed});
      return x;
    };
    const double scale = 1.5 / std::sqrt(std::sqrt(static_cast<double>(kind.dim)));
    q_ = normal(kind.heads, scale, 1), k_ = normal(kind.kv_heads, scale, 2);
    v_ = normal(kind.kv_heads, 1, 3), d_out_ = normal(kind.heads, 1, 4);
    out_ = allocate(kind.heads), d_q_ = allocate(kind.heads);
    d_k_ = allocate(kind.kv_heads), d_v_ = allocate(kind.kv_heads);
    lse_ = memory_.allocate(DType::f32, {kind.heads, tokens});
  }

  void time(int rounds);

 private:
  /// A mask, on the host and on the device.
  struct Mask {
    Intervals keys;
    Tensor lo, hi;
  };

  DType type() const { return backend_.device() == Device::cuda ? DType::bf16 : DType::f32; }
  std::size_t bytes() const {
    const std::int64_t rows = 4 * kind_.heads + 4 * kind_.kv_heads;
    const auto numbers = static_cast<std::size_t>(tokens_ * (rows * kind_.dim + kind_.heads));
    return numbers * sizeof(float) + std::size(kLayouts) * 2 * static_cast<std::size_t>(tokens_ + 256) * 4 +
           (std::size_t{1} << 20);
  }
  Tensor allocate(std::int64_t heads) { return memory_.allocate(type(), {tokens_, heads, kind_.dim}); }

  Mask mask(const Layout& layout) {
    Mask out{intervals_of(layout, tokens_, kind_.full), {}, {}};
    out.lo = memory_.allocate(DType::i32, {tokens_}), out.hi = memory_.allocate(DType::i32, {tokens_});
    backend_.copy_to_device(stream_, out.lo.data(), out.keys.lo.data(), out.lo.bytes());
    backend_.copy_to_device(stream_, out.hi.data(), out.keys.hi.data(), out.hi.bytes());
    return out;
  }
  Attention forward(const Mask& m) const {
    return {.q = q_,
            .k = k_,
            .v = v_,
            .lo = m.lo,
            .hi = m.hi,
            .out = out_,
            .lse = lse_,
            .host_lo = m.keys.lo.data(),
            .host_hi = m.keys.hi.data()};
  }
  AttentionBackward backward(const Mask& m) const {
    return {.d_out = d_out_,
            .q = q_,
            .k = k_,
            .v = v_,
            .lo = m.lo,
            .hi = m.hi,
            .out = out_,
            .lse = lse_,
            .d_q = d_q_,
            .d_k = d_k_,
            .d_v = d_v_,
            .host_lo = m.keys.lo.data(),
            .host_hi = m.keys.hi.data()};
  }
  /// Bytes that have to be moved whatever the mask: what is read, once, and what is written, once.
  double traffic(bool back) const {
    const double side = static_cast<double>((q_.bytes() + k_.bytes()) * 2 + (back ? 0 : lse_.bytes()));
    return back ? 2 * side + static_cast<double>(lse_.bytes()) : side;
  }
  Copy copy() const {
    const auto rows = [&](const Tensor& x) { return x.reshape({tokens_ * kind_.heads, kind_.dim}); };
    return {.in = rows(q_), .out = rows(d_q_)};
  }
  void print(const std::vector<Mask>& masks, const std::vector<BenchTime>& times) const;

  Backend& backend_;
  Stream& stream_;
  LayerKind kind_;
  std::int64_t tokens_;
  Arena memory_;
  Tensor q_, k_, v_, d_out_, out_, d_q_, d_k_, d_v_, lse_;
};

void AttentionBench::time(int rounds) {
  std::vector<Mask> masks;
  std::vector<BenchCase> cases;
  for (const Layout& layout : kLayouts) masks.push_back(mask(layout));
  Arena workspace(backend_, "workspace",
                  std::max(forward(masks[0]).scratch_bytes(backend_.device()),
                           backward(masks[0]).scratch_bytes(backend_.device())) +
                      Arena::kAlignment);
  stream_.set_workspace(&workspace);
  for (const Mask& m : masks) {
    // The backward of a mask needs its forward's results; run untimed, they are there in any case.
    run(stream_, forward(m));
    cases.push_back({"forward", [this, &m] { run(stream_, forward(m)); }});
    cases.push_back({"backward", [this, &m] { run(stream_, backward(m)); }});
  }
  cases.push_back({"copy", [this] { run(stream_, copy()); }});
  BenchOptions options;
  options.rounds = rounds;
  print(masks, time_in_turn(stream_, cases, options));
  std::cout << fmt::format("scratch {:.1f} MiB\n", static_cast<double>(workspace.peak()) / 1048576.0);
  stream_.set_workspace(nullptr);
}

void AttentionBench::print(const std::vector<Mask>& masks, const std::vector<BenchTime>& times) const {
  std::cout << fmt::format("\n{} tokens, {}\n{:<32}{:>12}", tokens_, kind_.name, "", "keys/query");
  for (const char* side : {"forward ms", "backward ms"})
    std::cout << fmt::format("{:>12}{:>9}{:>8}{:>8}{:>8}", side, "TFLOP/s", "a pair", "tiles", "floor");
  std::cout << "\n";
  const double bytes_per_ms = traffic_of(copy()) / times.back().median;
  double first[2] = {};
  for (std::size_t i = 0; i < masks.size(); ++i) {
    const double pairs = pairs_of(masks[i].keys);
    const double products = 2.0 * static_cast<double>(kind_.heads * kind_.dim) * pairs;
    const AttentionTiles computed =
        attention_tiles(masks[i].keys, kind_.heads, kind_.kv_heads, kind_.dim, type());
    std::string line = fmt::format("{:<32}{:>12.1f}", kLayouts[i].name, pairs / static_cast<double>(tokens_));
    for (std::size_t side = 0; side < 2; ++side) {
      const double ms = times[2 * i + side].median, cost = ms / pairs;
      if (i == 0) first[side] = cost;
      const double floor = std::max(first[side] * pairs, traffic(side == 1) / bytes_per_ms);
      line += fmt::format("{:>12.3f}{:>9.0f}{:>7.2f}x{:>7.2f}x{:>7.2f}x", ms,
                          (side == 0 ? 2 : 5) * products / ms * 1e-9, cost / first[side],
                          (side == 0 ? computed.forward : computed.backward) / pairs, ms / floor);
    }
    std::cout << line << "\n" << std::flush;
  }
  std::cout << fmt::format("operands and results at the rate of a copy, {:.0f} GB/s: {:.3f} ms, {:.3f} ms\n",
                           bytes_per_ms * 1e-6, traffic(false) / bytes_per_ms, traffic(true) / bytes_per_ms);
}

}  // namespace

int run_bench_attention(const BenchAttentionArguments& arguments) {
  Backend& backend = open_backend(choose_device(arguments.device), NodePlace{});
  const auto stream = backend.make_stream("bench");
  std::cout
      << backend.description()
      << "\nUseful products: 2 forward, 5 backward, of 2 d FLOP for every visible pair and head. \"a pair\": "
         "cost of a visible pair against the first row. \"tiles\": pairs in the tiles that are computed, for "
         "every "
         "visible one. \"floor\": the time against the larger of the first row's for as many pairs and that "
         "of a copy of as many bytes as operands and results have.\n";
  for (const int tokens : arguments.tokens)
    for (const LayerKind& kind : kKinds)
      AttentionBench(backend, *stream, kind, tokens).time(arguments.rounds);
  return 0;
}

}  // namespace lapidary
