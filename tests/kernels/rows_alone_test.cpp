// Operations on rows that do not touch each other: each row is what it is alone, bit for bit, however many
// rows a GPU's blocks walk over, and the weight gradients are the sums of the rows' own. On the GPU
// (LAPIDARY_TEST_DEVICE=cuda) with the 12B's sizes and more rows than one walk takes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "kernels/arena.h"
#include "kernels/ops.h"

namespace lapidary {
namespace {

class RowsAlone : public testing::Test {
 protected:
  static bool on_gpu() {
    const char* device = std::getenv("LAPIDARY_TEST_DEVICE");
    return device != nullptr && std::string(device) == "cuda";
  }

  Tensor values(DType type, std::initializer_list<std::int64_t> shape, double mean = 0.0) {
    const Tensor t = arena_.allocate(type, shape);
    run(*stream_,
        FillNormal{.out = t.reshape({t.numel()}), .mean = mean, .std = 1.0, .seed = 7, .stream = ++fills_});
    return t;
  }
  Tensor zeros(DType type, std::initializer_list<std::int64_t> shape) {
    const Tensor t = arena_.allocate(type, shape);
    run(*stream_, Fill{.x = t, .value = 0.0});
    return t;
  }

  std::vector<std::byte> bytes(const Tensor& t) {
    std::vector<std::byte> out(t.bytes());
    backend_.copy_to_host(*stream_, out.data(), t.data(), out.size());
    backend_.synchronize(*stream_);
    return out;
  }
  std::vector<float> floats(const Tensor& t) {
    std::vector<float> out(static_cast<std::size_t>(t.numel()));
    backend_.copy_to_host(*stream_, out.data(), t.data(), t.bytes());
    backend_.synchronize(*stream_);
    return out;
  }

  /// one(first, last): runs the operation on those rows; `results` hold a row of theirs for each of its rows,
  /// `sums` are added to.
  template <class Run>
  void expect_rows_alone(std::int64_t rows, const std::vector<Tensor>& results,
                         const std::vector<Tensor>& sums, Run&& one) {
    one(0, rows);
    const auto read = [&](const std::vector<Tensor>& tensors, auto&& one_of) {
      std::vector<decltype(one_of(tensors[0]))> out(tensors.size());
      std::ranges::transform(tensors, out.begin(), one_of);
      return out;
    };
    const auto whole = read(results, [&](const Tensor& t) { return bytes(t); });
    const auto whole_sums = read(sums, [&](const Tensor& t) { return floats(t); });
    for (const Tensor& t : results) run(*stream_, Fill{.x = t, .value = 0.0});
    for (const Tensor& t : sums) run(*stream_, Fill{.x = t, .value = 0.0});
    for (std::int64_t r = 0; r < rows; ++r) one(r, r + 1);
    for (std::size_t i = 0; i < results.size(); ++i) {
      const std::vector<std::byte> alone = bytes(results[i]);
      const auto row = alone.size() / static_cast<std::size_t>(rows);
      for (std::size_t at = 0; at < alone.size(); ++at)
        ASSERT_EQ(whole[i][at], alone[at]) << "result " << i << ", row " << at / row << ", byte " << at % row;
    }
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const std::vector<float> alone = floats(sums[i]);
      for (std::size_t at = 0; at < alone.size(); ++at)
        ASSERT_NEAR(whole_sums[i][at], alone[at], 1e-5 * std::sqrt(static_cast<double>(rows)) * 10)
            << "sum " << i << ", element " << at;
    }
  }

  void check_norms(std::int64_t rows, std::int64_t n, DType type) {
    const ArenaScope scope(arena_);
    const Tensor g = values(type, {rows, n}), x = values(type, {rows, n}), w = values(type, {n}, 1.0),
                 rstd = values(DType::f32, {rows}, 1.0), before = values(type, {rows, n}),
                 dx = zeros(type, {rows, n}), dw = zeros(DType::f32, {n});
    expect_rows_alone(rows, {dx}, {dw}, [&](std::int64_t first, std::int64_t last) {
      const auto part = [&](const Tensor& t) { return t.row_range(first, last); };
      run(*stream_, Copy{.in = part(before), .out = part(dx)});
      run(*stream_, RmsNormBackward{.dy = part(g),
                                    .x = part(x),
                                    .rstd = part(rstd),
                                    .weight = w,
                                    .dx = part(dx),
                                    .add_to_dx = true,
                                    .d_weight = dw});
    });
    const Tensor next = values(type, {rows, n}), out = values(type, {rows, n}),
                 w_next = values(type, {n}, 1.0), d_branch = zeros(type, {rows, n}),
                 dw_next = zeros(DType::f32, {n});
    run(*stream_, Fill{.x = dw, .value = 0.0});
    expect_rows_alone(rows, {dx, d_branch}, {dw, dw_next}, [&](std::int64_t first, std::int64_t last) {
      const auto part = [&](const Tensor& t) { return t.row_range(first, last); };
      run(*stream_, ResidualNormBackward{.d_out = part(g),
                                         .d_next = part(next),
                                         .out = part(out),
                                         .branch = part(x),
                                         .branch_weight = w,
                                         .next_weight = w_next,
                                         .branch_rstd = part(rstd),
                                         .next_rstd = part(rstd),
                                         .d_residual = part(dx),
                                         .d_branch = part(d_branch),
                                         .d_branch_weight = dw,
                                         .d_next_weight = dw_next});
    });
  }

  void check_heads(std::int64_t tokens, std::int64_t heads, std::int64_t kv, std::int64_t dim,
                   std::int64_t pairs, bool shared) {
    const ArenaScope scope(arena_);
    const DType type = DType::bf16;
    const std::int64_t slots = heads + (shared ? 1 : 2) * kv;
    const Tensor d_q = values(type, {tokens, heads, dim}), d_k = values(type, {tokens, kv, dim}),
                 d_v = values(type, {tokens, kv, dim}), qkv = values(type, {tokens, slots * dim}),
                 q_weight = values(type, {dim}, 1.0), k_weight = values(type, {dim}, 1.0),
                 cos = values(DType::f32, {tokens, pairs}), sin = values(DType::f32, {tokens, pairs}),
                 rstd = values(DType::f32, {tokens, heads + 2 * kv}, 1.0),
                 d_qkv = zeros(type, {tokens, slots * dim}), d_q_weight = zeros(DType::f32, {dim}),
                 d_k_weight = zeros(DType::f32, {dim});
    expect_rows_alone(tokens, {d_qkv}, {d_q_weight, d_k_weight}, [&](std::int64_t first, std::int64_t last) {
      const auto part = [&](const Tensor& t) { return t.row_range(first, last); };
      run(*stream_, QkvNormRopeBackward{.d_q = part(d_q),
                                        .d_k = part(d_k),
                                        .d_v = part(d_v),
                                        .qkv = part(qkv),
                                        .q_weight = q_weight,
                                        .k_weight = k_weight,
                                        .cos = part(cos),
                                        .sin = part(sin),
                                        .rstd = part(rstd),
                                        .shared_kv = shared,
                                        .d_qkv = part(d_qkv),
                                        .d_q_weight = d_q_weight,
                                        .d_k_weight = d_k_weight});
    });
  }

  Backend& backend_ = on_gpu() ? cuda_backend(0) : cpu_backend();
  std::unique_ptr<Stream> stream_ = backend_.make_stream("test");
  Arena arena_{backend_, "test", std::size_t{on_gpu() ? 512u : 16u} << 20};
  Arena workspace_{backend_, "test workspace", std::size_t{64} << 20};
  std::uint64_t fills_ = 0;

  void SetUp() override { stream_->set_workspace(&workspace_); }
};

TEST_F(RowsAlone, BackwardNorms) {
  check_norms(on_gpu() ? 1000 : 20, on_gpu() ? 3840 : 96, DType::bf16);
  check_norms(on_gpu() ? 700 : 20, 101, DType::bf16);  // no whole packs
  check_norms(on_gpu() ? 700 : 20, 256, DType::f32);
  if (on_gpu()) check_norms(500, 12000, DType::bf16);  // a single row fills the stages in shared memory
}

TEST_F(RowsAlone, BackwardQueriesKeysAndValues) {
  const std::int64_t tokens = on_gpu() ? 1000 : 5;
  check_heads(tokens, 16, 8, 256, 128, false);
  check_heads(tokens, 16, 1, 512, 64, true);
  check_heads(tokens, 3, 1, 128, 24, false);   // a head that shares its warp with none
  check_heads(tokens, 40, 10, 64, 32, false);  // more heads than a block's warps take at once
  check_heads(tokens, 2, 2, 36, 7, true);      // no whole packs
}

}  // namespace
}  // namespace lapidary
