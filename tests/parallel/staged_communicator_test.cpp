// GPU tensors staged through the host, with a device whose memory the host cannot touch: its addresses are
// not valid ones, only its copies translate them. The results must be the CPU's, bit for bit.
#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/check.h"
#include "tests/parallel/collectives.h"

namespace lapidary {
namespace {

class RemoteMemory final : public Backend {
 public:
  Device device() const override { return Device::cuda; }
  std::string description() const override { return "a device for tests"; }
  DeviceMemory memory() const override { return {}; }
  void* allocate(std::size_t bytes) override {
    auto* data = static_cast<std::byte*>(allocate_host(bytes + 1));
    return data + kFar;
  }
  void release(void* data) noexcept override { std::free(static_cast<std::byte*>(data) - kFar); }
  void* allocate_host(std::size_t bytes) override { return std::calloc(bytes, 1); }
  void release_host(void* data) noexcept override { std::free(data); }
  std::unique_ptr<Stream> make_stream(const char*) override {
    return std::make_unique<Stream>(*this, nullptr, nullptr);
  }
  void copy_to_device(const Stream&, void* to, const void* from_host, std::size_t bytes) override {
    std::memcpy(static_cast<std::byte*>(to) - kFar, from_host, bytes);
  }
  void copy_to_host(const Stream&, void* to_host, const void* from, std::size_t bytes) override {
    std::memcpy(to_host, static_cast<const std::byte*>(from) - kFar, bytes);
  }
  Event record(const Stream&) override { return {}; }
  Event record_timed(const Stream&) override { return {}; }
  double seconds_between(const Event&, const Event&) override { return 0; }
  void wait(const Stream&, const Event&) override {}
  void synchronize(const Stream&) override {}
  void synchronize(const Event&) override {}

 private:
  static constexpr std::ptrdiff_t kFar = std::ptrdiff_t{1} << 48;  // beyond every address of a process
};

// One tensor on both devices, with this rank's numbers.
class Twin {
 public:
  Twin(Backend& device, int rank, DType dtype, std::int64_t count)
      : device_(device), here(dtype, {count}), there(device.allocate(here.view().bytes()), dtype, {count}) {
    for (std::int64_t i = 0; i < count; ++i) {
      set(here.view(), i, noise(static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(i)));
    }
    device_.copy_to_device(*device_.make_stream(""), there.data(), here.bytes(), there.bytes());
  }
  ~Twin() { device_.release(there.data()); }
  Twin(const Twin&) = delete;
  Twin& operator=(const Twin&) = delete;

  bool equal() const {
    HostTensor back(here.view().dtype(), {here.view().numel()});
    device_.copy_to_host(*device_.make_stream(""), back.view().data(), there.data(), there.bytes());
    return here.same_bits(back.view());
  }

 private:
  Backend& device_;

 public:
  HostTensor here;
  Tensor there;
};

TEST(StagedCommunicator, GivesTheBitsOfTheCpu) {
  const World world;
  RemoteMemory device;
  const Mesh cpu = world.mesh(0, 0);
  const Mesh gpu = make_mpi_mesh(cpu.shape, device);
  const auto near = cpu_backend().make_stream("near"), far = device.make_stream("far");
  const auto finish = [](Communicator& group, Stream& stream, Ticket ticket) { group.wait(stream, ticket); };
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64, DType::i32}) {
    for (const std::int64_t count : {0, 1, 77, 30000, 700001}) {  // the last one takes several rounds
      SCOPED_TRACE(fmt::format("{} {}", name_of(dtype), count));
      Twin part(device, world.rank, dtype, count), whole(device, world.rank, dtype, count * world.size);
      finish(*cpu.reduce, *near, cpu.reduce->reduce_scatter(*near, whole.here.view(), part.here.view()));
      finish(*gpu.reduce, *far, gpu.reduce->reduce_scatter(*far, whole.there, part.there));
      EXPECT_TRUE(part.equal());
      finish(*cpu.gather, *near, cpu.gather->all_gather(*near, part.here.view(), whole.here.view()));
      finish(*gpu.gather, *far, gpu.gather->all_gather(*far, part.there, whole.there));
      EXPECT_TRUE(whole.equal());
      for (const Reduction reduction : {Reduction::sum, Reduction::max}) {
        finish(*cpu.reduce, *near, cpu.reduce->all_reduce(*near, part.here.view(), reduction));
        finish(*gpu.reduce, *far, gpu.reduce->all_reduce(*far, part.there, reduction));
        EXPECT_TRUE(part.equal());
      }
    }
  }
}

TEST(StagedCommunicator, SeveralOperationsShareTheStaging) {
  const World world;
  RemoteMemory device;
  const Mesh gpu = make_mpi_mesh(resolve_mesh(world.size, world.rank, 0, 0, world.size), device);
  const auto far = device.make_stream("far");
  constexpr std::int64_t kCount = 600000;
  Twin a(device, world.rank, DType::f32, kCount), b(device, world.rank + 10, DType::f32, kCount);
  Ticket first = gpu.reduce->all_reduce(*far, a.there, Reduction::sum);
  Ticket second = gpu.reduce->all_reduce(*far, b.there, Reduction::sum);
  gpu.reduce->wait(*far, second);
  gpu.reduce->wait(*far, first);
  const Mesh cpu = world.mesh(0, 0);
  const auto near = cpu_backend().make_stream("near");
  for (Twin* twin : {&a, &b}) {
    Ticket ticket = cpu.reduce->all_reduce(*near, twin->here.view(), Reduction::sum);
    cpu.reduce->wait(*near, ticket);
    EXPECT_TRUE(twin->equal());
  }
}

}  // namespace
}  // namespace lapidary
