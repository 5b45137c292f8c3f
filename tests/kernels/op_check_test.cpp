// What the operations refuse: memory shared where it must not be, strides where they are not allowed, values
// that would reach outside a tensor; and that a refusal says what was found and what was expected.
#include "kernels/op_check.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/kernels/op_run.h"

namespace lapidary {
namespace {

Tensor at(std::vector<float>& memory, std::int64_t first, Shape shape) {
  return Tensor(memory.data() + first, DType::f32, shape);
}

TEST(Overlap, SeesEverySharedByteAndOnlyThose) {
  std::vector<float> memory(100);
  const Tensor matrix = at(memory, 0, {10, 10});
  EXPECT_TRUE(overlap(matrix, matrix));
  EXPECT_TRUE(overlap(matrix, at(memory, 99, {1})));
  EXPECT_FALSE(overlap(at(memory, 0, {50}), at(memory, 50, {50})));
  EXPECT_FALSE(overlap(matrix.col_range(0, 4), matrix.col_range(4, 10)));
  EXPECT_TRUE(overlap(matrix.col_range(0, 5), matrix.col_range(4, 10)));
  EXPECT_FALSE(overlap(matrix.col_range(6, 10), matrix.col_range(0, 6)));
  EXPECT_FALSE(overlap(matrix.col_range(6, 10).row_range(2, 9), matrix.col_range(0, 6).row_range(0, 5)));
  EXPECT_TRUE(overlap(matrix.col_range(6, 10).row_range(2, 9), matrix.col_range(9, 10).row_range(8, 10)));
  EXPECT_FALSE(overlap(matrix.row_range(0, 5), matrix.row_range(5, 10)));
  EXPECT_TRUE(overlap(matrix.col_range(2, 3), matrix));
  EXPECT_FALSE(overlap(matrix.row_range(3, 3), matrix));
  EXPECT_FALSE(overlap(Tensor(), matrix));
}

// The table of operations relies on this: a byte written between rows, behind a tensor or into an input is
// found, and those of results are not.
TEST(OpRun, FindsWritesBesideResults) {
  const Arrays given{{"x", {1, 2, 3, 4, 5, 6}}};
  const auto outcome = [&](const char* tensor, std::int64_t element) -> std::string {
    OpRun run(cpu_backend(), given, {.type = DType::f32, .padding = 3});
    const Tensor x = run.in_rows("x", {2, 3}), y = run.out_rows("y", {2, 3});
    (*tensor == 'x' ? x : y).as<float>()[element] = 7.0f;
    try {
      run.results();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  for (const std::int64_t own : {0, 2, 6, 8}) EXPECT_EQ(outcome("y", own), "");
  for (const std::int64_t beside : {3, 5, 9, 12, 70})
    EXPECT_EQ(outcome("y", beside).find("byte " + std::to_string(4 * beside)), 0u) << outcome("y", beside);
  for (const std::int64_t any : {0, 5, 8, 12}) EXPECT_NE(outcome("x", any), "");
}

template <class Op>
std::string refusal(const Op& op) {
  OpRun run(cpu_backend(), {}, {});
  try {
    run(op);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(OpCheck, SharedMemoryIsRefused) {
  std::vector<float> memory(400);
  const Tensor x = at(memory, 0, {4, 10}), y = at(memory, 40, {4, 10}), rstd = at(memory, 80, {4});
  EXPECT_EQ(refusal(RmsNorm{x, {}, y, rstd}), "");
  EXPECT_EQ(refusal(RmsNorm{x, {}, x, rstd}), "RmsNorm: y shares memory with x, expected separate memory");
  EXPECT_EQ(refusal(RmsNorm{x, {}, y, at(memory, 79, {4})}),
            "RmsNorm: rstd shares memory with y, expected separate memory");
  EXPECT_EQ(refusal(MatMul{x, y, at(memory, 70, {4, 4}), false, true}),
            "MatMul: c shares memory with b, expected separate memory");
  EXPECT_EQ(
      refusal(GeGluBackward{at(memory, 0, {4, 5}), at(memory, 20, {4, 10}), at(memory, 21, {4, 10}), {}}),
      "GeGluBackward: d_gate_up shares memory with gate_up, expected the same view or none of it");
  EXPECT_EQ(refusal(Copy{at(memory, 0, {20}), at(memory, 19, {20})}),
            "Copy: out shares memory with in, expected separate memory");
}

TEST(OpCheck, ColumnBlocksOfOneMatrixAreSeparate) {
  std::vector<float> memory(100, 2.0f);
  const Tensor matrix = at(memory, 0, {10, 10});
  EXPECT_EQ(refusal(Copy{matrix.col_range(0, 4), matrix.col_range(4, 8)}), "");
}

TEST(OpCheck, StridedRowsAreRefusedWhereTheyAreNotAllowed) {
  std::vector<float> memory(400);
  const Tensor wide = at(memory, 0, {4, 20}), out = at(memory, 100, {4, 5});
  EXPECT_EQ(refusal(GeGlu{wide.col_range(0, 10), out}),
            "GeGlu: gate_up is f32 [4, 10] with rows 20 elements apart, expected contiguous rows");
}

TEST(OpCheck, AMessageSaysWhatWasFoundAndExpected) {
  std::vector<float> memory(400);
  EXPECT_EQ(refusal(GeGlu{at(memory, 0, {4, 12}), at(memory, 100, {4, 5})}),
            "GeGlu: gate_up is f32 [4, 12], expected [4, 10]");
  EXPECT_EQ(refusal(Add{Tensor(), at(memory, 100, {4, 5})}), "Add: in is not given");
}

TEST(OpCheck, ValuesThatReachOutsideATensorAreRefused) {
  std::vector<float> memory(400);
  std::vector<std::int32_t> ints = {0, 4};
  const Tensor index(ints.data(), DType::i32, {2});
  EXPECT_EQ(refusal(GatherRows{at(memory, 0, {4, 3}), index, at(memory, 50, {2, 3})}),
            "GatherRows: index 1 is 4, expected 0 to 3");
  EXPECT_EQ(refusal(ScatterRows{at(memory, 0, {2, 3}), index, at(memory, 50, {4, 3})}),
            "ScatterRows: index 1 is 4, expected 0 to 3");
  EXPECT_EQ(refusal(GridEmbedding{at(memory, 0, {1, 3}), at(memory, 50, {4, 2, 3}),
                                  Tensor(ints.data(), DType::i32, {1, 2})}),
            "GridEmbedding: patch 0 is at column 0, row 4, expected 0 to 3");
}

TEST(OpCheck, IntervalsThatDecreaseOrReachTooFarAreRefused) {
  std::vector<float> memory(100, 1.0f);
  const auto attend = [&](std::vector<std::int32_t> lo, std::vector<std::int32_t> hi) {
    Attention op{};
    op.q = at(memory, 0, {3, 1, 2});
    op.k = at(memory, 10, {3, 1, 2});
    op.v = at(memory, 20, {3, 1, 2});
    op.lo = Tensor(lo.data(), DType::i32, {3});
    op.hi = Tensor(hi.data(), DType::i32, {3});
    op.out = at(memory, 30, {3, 1, 2});
    op.lse = at(memory, 40, {1, 3});
    return refusal(op);
  };
  EXPECT_EQ(attend({0, 0, 1}, {1, 2, 3}), "");
  const std::string rule = ", expected ends within [0, 3] that never decrease";
  EXPECT_EQ(attend({0, 1, 0}, {1, 2, 3}), "Attention: query 2 sees keys [0, 3)" + rule);
  EXPECT_EQ(attend({0, 0, 0}, {1, 3, 2}), "Attention: query 2 sees keys [0, 2)" + rule);
  EXPECT_EQ(attend({0, 0, 0}, {1, 2, 4}), "Attention: query 2 sees keys [0, 4)" + rule);
  EXPECT_EQ(attend({-1, 0, 0}, {1, 2, 3}), "Attention: query 0 sees keys [-1, 1)" + rule);
  EXPECT_EQ(attend({2, 2, 2}, {1, 2, 3}), "Attention: query 0 sees keys [2, 1)" + rule);
}

}  // namespace
}  // namespace lapidary
