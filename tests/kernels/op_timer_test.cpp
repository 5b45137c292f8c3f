// What operations say of themselves: bytes and operations, counted on a dry stream, timed on a real one; and
// the clock of a forecast.
#include "kernels/op_timer.h"

#include <gtest/gtest.h>

#include "kernels/ops.h"

namespace lapidary {
namespace {

Tensor shape(DType type, std::initializer_list<std::int64_t> extents) {
  return {nullptr, type, extents};
}

std::vector<OpTimer::Line> counted(const std::function<void(Stream&)>& work) {
  Backend& plan = plan_backend(Device::cuda);
  Arena workspace(plan, "workspace", 0);
  const auto stream = plan.make_stream("test");
  stream->set_workspace(&workspace);
  OpTimer timer;
  stream->set_timer(&timer);
  work(*stream);
  return timer.collect(*stream);
}

TEST(OpTimer, CountsBytesThatAreReadAndWritten) {
  const auto lines = counted([](Stream& s) {
    for (int i = 0; i < 3; ++i)
      run(s, RmsNorm{.x = shape(DType::bf16, {100, 64}),
                     .weight = shape(DType::bf16, {64}),
                     .y = shape(DType::bf16, {100, 64}),
                     .rstd = shape(DType::f32, {100})});
  });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].work.label, "RmsNorm");
  EXPECT_EQ(lines[0].count, 3);
  EXPECT_EQ(lines[0].work.flops, 0);
  EXPECT_EQ(lines[0].work.bytes, 3 * (2 * 100 * 64 * 2 + 64 * 2 + 100 * 4));
}

TEST(OpTimer, CountsWhatAnUpdateReadsAndWritesByItsLayout) {
  const auto bytes = [](DType moments, bool master, bool remainder) {
    AdamW op{};
    op.param = shape(DType::bf16, {1000});
    if (master) op.master = shape(DType::f32, {1000});
    if (remainder) op.remainder = shape(DType::i16, {1000});
    op.m = op.v = shape(moments, {1000});
    op.grad = shape(DType::bf16, {1000});
    return traffic_of(op) / 1000;
  };
  EXPECT_EQ(bytes(DType::f32, true, false), 2 * 12 + 2 + 2);  // the weight is only written
  EXPECT_EQ(bytes(DType::bf16, false, true), 2 * (2 + 4) + 2 * 2 + 2);
  EXPECT_EQ(bytes(DType::bf16, false, false), 2 * 4 + 2 * 2 + 2);
}

TEST(OpTimer, TellsTheThreeProductsOfALinearLayerApart) {
  const Tensor x = shape(DType::bf16, {100, 30}), y = shape(DType::bf16, {100, 70}),
               w = shape(DType::bf16, {70, 30});
  const auto lines = counted([&](Stream& s) {
    run(s, MatMul{.a = x, .b = w, .c = y, .transpose_b = true});
    run(s, MatMul{.a = y, .b = w, .c = x});
    run(s, MatMul{.a = y, .b = x, .c = w, .transpose_a = true});
  });
  ASSERT_EQ(lines.size(), 3u);
  for (const OpTimer::Line& line : lines) EXPECT_EQ(line.work.flops, 2.0 * 100 * 30 * 70) << line.work.label;
  EXPECT_EQ(lines[0].work.label, "MatMul forward 100 x 70 x 30");
  EXPECT_EQ(lines[1].work.label, "MatMul input gradient 100 x 30 x 70");
  EXPECT_EQ(lines[2].work.label, "MatMul weight gradient 70 x 30 x 100");
  EXPECT_EQ(lines[2].work.kind, "MatMul weight gradient");
  EXPECT_EQ(lines[2].work.product.k, 100);
}

TEST(OpTimer, CountsVisiblePairsOfAttention) {
  const std::vector<std::int32_t> lo{0, 0, 1}, hi{1, 2, 3};
  const Tensor q = shape(DType::bf16, {3, 4, 16}), k = shape(DType::bf16, {3, 2, 16}),
               bound = shape(DType::i32, {3});
  const auto lines = counted([&](Stream& s) {
    run(s, Attention{.q = q,
                     .k = k,
                     .v = k,
                     .lo = bound,
                     .hi = bound,
                     .out = q,
                     .lse = shape(DType::f32, {4, 3}),
                     .host_lo = lo.data(),
                     .host_hi = hi.data()});
  });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].work.label, "Attention d = 16");
  EXPECT_EQ(lines[0].work.flops, 4.0 * 5 * 4 * 16);
}

TEST(OpTimer, TimesWhatRuns) {
  Backend& cpu = cpu_backend();
  const auto stream = cpu.make_stream("test");
  Arena memory(cpu, "test", 1 << 20);
  const Tensor x = memory.allocate(DType::f32, {1000}), y = memory.allocate(DType::f32, {1000});
  OpTimer timer;
  stream->set_timer(&timer);
  run(*stream, Fill{.x = x, .value = 2});
  run(*stream, Copy{.in = x, .out = y});
  run(*stream, Copy{.in = x, .out = y});
  const auto lines = timer.collect(*stream);
  ASSERT_EQ(lines.size(), 2u);
  for (const OpTimer::Line& line : lines) {
    EXPECT_GT(line.seconds, 0);
    EXPECT_EQ(line.work.bytes, line.work.label == "Copy" ? 2 * 8000 : 4000);
  }
  EXPECT_EQ(y.as<float>()[999], 2.0f);
  EXPECT_TRUE(timer.collect(*stream).empty());
}

TEST(OpTimer, AForecastsClockStandsWhereTheWorkWouldBe) {
  OpTimer timer({.operation = [](const OpWork& work) { return work.bytes; }, .transfer = {}});
  timer.count({.kind = "a", .label = "a", .bytes = 2});
  timer.count({.kind = "a", .label = "a", .bytes = 3});
  EXPECT_EQ(timer.clock(), 5);
  timer.wait_until(4);  // long over
  EXPECT_EQ(timer.waited(), 0);
  timer.wait_until(7);
  EXPECT_EQ(timer.clock(), 7);
  EXPECT_EQ(timer.waited(), 2);
}

}  // namespace
}  // namespace lapidary
