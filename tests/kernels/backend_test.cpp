// The CPU backend, the backend of planned runs, and the checks around them.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/arena.h"
#include "kernels/cpu/check_blas.h"
#include "kernels/error.h"
#include "kernels/host_pages.h"
#include "kernels/ops.h"

namespace lapidary {
namespace {

TEST(CpuBackend, MemoryIsAlignedAndZero) {
  Backend& cpu = cpu_backend();
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{255}, std::size_t{100000}}) {
    auto* data = static_cast<unsigned char*>(cpu.allocate(bytes));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 256, 0u);
    for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], 0);
    cpu.release(data);
  }
}

TEST(CpuBackend, NamesTheSizeThatCannotBeHad) {
  try {
    cpu_backend().allocate(std::size_t{1} << 60);
    FAIL() << "allocated an exabyte";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("1152921504606846976 bytes"), std::string::npos) << e.what();
  }
}

TEST(CpuBackend, KnowsItsMemoryAndCopies) {
  Backend& cpu = cpu_backend();
  EXPECT_EQ(cpu.device(), Device::cpu);
  EXPECT_FALSE(cpu.dry());
  EXPECT_GT(cpu.memory().free, 0u);
  EXPECT_LE(cpu.memory().free, cpu.memory().total);
  const auto stream = cpu.make_stream("test");
  int from = 5, to = 0;
  cpu.copy_to_device(*stream, &to, &from, sizeof(int));
  EXPECT_EQ(to, 5);
  from = 0;
  cpu.copy_to_host(*stream, &from, &to, sizeof(int));
  EXPECT_EQ(from, 5);
  cpu.wait(*stream, cpu.record(*stream));
  cpu.synchronize(*stream);
}

TEST(HostPages, AreZeroAndTheCallersAlone) {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{4097}, (std::size_t{512} << 20) + 12345}) {
    auto* data = static_cast<unsigned char*>(map_host_pages(bytes));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % Arena::kAlignment, 0u);
    for (std::size_t i = 0; i < bytes; i += 4096) ASSERT_EQ(data[i], 0) << i;
    EXPECT_EQ(data[bytes - 1], 0);
    std::memset(data, 1, bytes);
    unmap_host_pages(data, bytes);
  }
}

TEST(HostPages, SaysWhatIsAskedAndWhatThereIs) {
  try {
    map_host_pages(std::size_t{1} << 60);
    FAIL() << "mapped an exabyte";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("1152921504606846976 bytes"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("are available"), std::string::npos) << e.what();
  }
}

TEST(PlanBackend, CountsScratchAndComputesNothing) {
  for (const Device target : {Device::cpu, Device::cuda}) {
    Backend& plan = plan_backend(target);
    EXPECT_TRUE(plan.dry());
    EXPECT_EQ(plan.device(), target);
    const auto stream = plan.make_stream("test");
    Arena arena(plan, "activations", 0), workspace(plan, "workspace", 0);
    stream->set_workspace(&workspace);
    BiasBackward op{arena.allocate(DType::bf16, {1 << 20, 4096}), arena.allocate(DType::f32, {4096})};
    run(*stream, op);  // 8 GiB that do not exist
    EXPECT_GE(arena.peak(), std::size_t{8} << 30);
    EXPECT_EQ(workspace.used(), 0u);
    EXPECT_GE(workspace.peak(), op.scratch_bytes(target));
    EXPECT_LT(workspace.peak(), op.scratch_bytes(target) + Arena::kAlignment);
  }
}

TEST(CudaBackend, SaysWhyThereIsNone) {
  if (kCudaBuilt) return;
  std::string why;
  EXPECT_EQ(cuda_device_count(&why), 0);
  EXPECT_NE(why, "");
  EXPECT_EQ(cuda_device_count(), 0);
  EXPECT_THROW(cuda_backend(0), Error);
}

TEST(Blas, MultipliesRightly) {
  EXPECT_NO_THROW(check_blas());
}

TEST(LossScoreDType, KeepsComputingPrecisionOnTheCpu) {
  EXPECT_EQ(loss_score_dtype(Device::cpu, DType::bf16), DType::f32);
  EXPECT_EQ(loss_score_dtype(Device::cpu, DType::f32), DType::f32);
  EXPECT_EQ(loss_score_dtype(Device::cpu, DType::f64), DType::f64);
}

}  // namespace
}  // namespace lapidary
