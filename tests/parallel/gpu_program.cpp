// Collectives between GPUs against sums that every rank computes for itself, and their bandwidth: over NCCL
// (a GPU for each rank) or staged through MPI (ranks share one), and by copy engines beside either. Needs
// GPUs, so it is started by hand (mpirun -np 2 parallel_gpu_program), not by ctest.
#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <optional>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "parallel/nccl_communicator.h"
#include "tests/parallel/collectives.h"

namespace lapidary {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f64, DType::i32};
constexpr std::int64_t kCounts[] = {1, 13, 1000, 600011};
constexpr std::int64_t kMostBytes = 8 * 600011;

/// A GPU tensor and its copy on the host.
class Mirror {
 public:
  Mirror(Stream& stream, DType dtype, std::int64_t count)
      : stream_(stream), arena_(std::in_place, stream.backend(), "test", bytes_of(dtype, count)) {
    view(arena_->allocate(dtype, {count}));
  }
  /// The beginning of memory that stays.
  Mirror(Stream& stream, const Tensor& memory, DType dtype, std::int64_t count) : stream_(stream) {
    view(Tensor(memory.data(), dtype, {count}));
  }
  const Tensor& device() const { return device_; }
  const Tensor& host() const { return view_; }
  void upload() { stream_.backend().copy_to_device(stream_, device_.data(), host_.data(), device_.bytes()); }
  void download() {
    stream_.backend().copy_to_host(stream_, host_.data(), device_.data(), device_.bytes());
    stream_.backend().synchronize(stream_);
  }

 private:
  static std::size_t bytes_of(DType dtype, std::int64_t count) {
    return (static_cast<std::size_t>(count) * size_of(dtype) + 255) / 256 * 256;
  }
  void view(const Tensor& device) {
    device_ = device;
    host_.resize(device.bytes());
    view_ = Tensor(host_.data(), device.dtype(), {device.numel()});
  }

  Stream& stream_;
  std::optional<Arena> arena_;
  std::vector<std::byte> host_;
  Tensor device_, view_;
};

double part(int rank, DType dtype, std::int64_t i) {
  std::byte one[8];
  const Tensor rounded(one, dtype, {1});
  set(rounded, 0, noise(static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(i)));
  return get(rounded, 0);
}

void fill_part(Mirror& m, int rank, std::int64_t begin, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i)
    set(m.host(), begin + i, noise(static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(i)));
  m.upload();
}

void expect_sum(const World& world, DType dtype, std::int64_t i, double found, const char* what) {
  double sum = 0, size = 0;
  for (int rank = 0; rank < world.size; ++rank) {
    sum += part(rank, dtype, i);
    size += std::abs(part(rank, dtype, i));
  }
  const double unit = dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f32 ? 0x1p-23 : 0x1p-52;
  require(std::abs(found - sum) <= unit * size * world.size, "{} of {}: element {} is {}, expected {}", what,
          name_of(dtype), i, found, sum);
}

void check_type(const World& world, Mesh& mesh, Stream& stream, DType dtype, std::int64_t count) {
  Mirror small(stream, dtype, count), large(stream, dtype, count * world.size);
  fill_part(small, world.rank, 0, count);
  Ticket gathered = mesh.gather->all_gather(stream, small.device(), large.device());
  mesh.gather->wait(stream, gathered);
  large.download();
  for (int rank = 0; rank < world.size; ++rank)
    for (std::int64_t i = 0; i < count; i += 7)
      require(get(large.host(), rank * count + i) == part(rank, dtype, i), "all_gather of {}: rank {}'s {}",
              name_of(dtype), rank, i);
  fill_part(large, world.rank, 0, count * world.size);
  Ticket reduced = mesh.reduce->reduce_scatter(stream, large.device(), small.device());
  mesh.reduce->wait(stream, reduced);
  small.download();
  for (std::int64_t i = 0; i < count; i += 7)
    expect_sum(world, dtype, world.rank * count + i, get(small.host(), i), "reduce_scatter");
  fill_part(small, world.rank, 0, count);
  Ticket all = mesh.vocabulary->all_reduce(stream, small.device(), Reduction::sum);
  mesh.vocabulary->wait(stream, all);
  small.download();
  for (std::int64_t i = 0; i < count; i += 7) expect_sum(world, dtype, i, get(small.host(), i), "all_reduce");
}

/// Memory that ranks read from each other, for every type and count.
struct SharedMemory {
  Arena arena;
  Tensor small, large;

  SharedMemory(const World& world, Mesh& mesh, Backend& backend)
      : arena(backend, "shared", static_cast<std::size_t>((world.size + 2) * kMostBytes)),
        small(arena.allocate(DType::u8, {kMostBytes})),
        large(arena.allocate(DType::u8, {world.size * kMostBytes})) {
    mesh.gather->share(small);
    mesh.reduce->share(large);
  }
};

/// The same over shared memory; several rounds, so that numbers and buffers come again.
void check_copies(const World& world, Mesh& mesh, const SharedMemory& shared, Stream& stream, DType dtype,
                  std::int64_t count) {
  Mirror small(stream, shared.small, dtype, count), large(stream, shared.large, dtype, count * world.size),
      whole(stream, dtype, count * world.size), parts(stream, dtype, count * (world.size - 1));
  const Tensor place = large.device().flat_range(world.rank * count, count);
  mesh.gather->share(place);
  for (int round = 0; round < 8; ++round) {
    const bool in_place = round % 2 == 1;
    // What rank r brings in a round is its part of 16 r + round. Some ranks come late.
    const int now = 16 * world.rank + round;
    fill_part(small, now, 0, count);
    if (round % world.size == world.rank) {
      for (int i = 0; i < 200; ++i) run(stream, Fill{.x = whole.device(), .value = 1.0});
    }
    if (in_place) run(stream, Copy{.in = small.device(), .out = place});
    const Mirror& to = in_place ? large : whole;
    Ticket gathered = mesh.gather->all_gather(stream, in_place ? place : small.device(), to.device());
    mesh.gather->wait(stream, gathered);
    (in_place ? large : whole).download();
    for (int rank = 0; rank < world.size; ++rank)
      for (std::int64_t i = 0; i < count; i += 7)
        require(get(to.host(), rank * count + i) == part(16 * rank + round, dtype, i),
                "round {}: copied all_gather of {}: rank {}'s {}", round, name_of(dtype), rank, i);
    fill_part(large, now, 0, count * world.size);
    Ticket exchanged =
        mesh.reduce->exchange(stream, large.device(), parts.device().reshape({world.size - 1, count}));
    mesh.reduce->wait(stream, exchanged);
    parts.download();
    for (int rank = 0; rank < world.size; ++rank) {
      if (rank == world.rank) continue;
      const std::int64_t row = rank < world.rank ? rank : rank - 1;
      for (std::int64_t i = 0; i < count; i += 7)
        require(get(parts.host(), row * count + i) == part(16 * rank + round, dtype, world.rank * count + i),
                "round {}: exchange of {}: rank {}'s {}", round, name_of(dtype), rank, i);
    }
  }
}

/// GB/s per rank that an all-gather and a reduce-scatter of one decoder layer's size move.
void measure(const World& world, Mesh& mesh, Stream& stream) {
  constexpr std::int64_t kLayer = 224148992;
  const std::int64_t count = kLayer / world.size;
  Arena arena(stream.backend(), "test", std::size_t{2} << 30);
  const Tensor shard = arena.allocate(DType::bf16, {count}),
               whole = arena.allocate(DType::bf16, {count * world.size});
  const auto time = [&](const char* name, const auto& collective) {
    for (int i = 0; i < 3; ++i) collective();
    stream.backend().synchronize(stream);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 10; ++i) collective();
    stream.backend().synchronize(stream);
    const double ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count() / 10;
    const double moved = static_cast<double>(shard.bytes()) * (world.size - 1);
    if (world.rank == 0) std::printf("%s of one layer: %.3f ms, %.0f GB/s\n", name, ms, moved / ms / 1e6);
  };
  time("all_gather", [&] {
    Ticket ticket = mesh.gather->all_gather(stream, shard, whole);
    mesh.gather->wait(stream, ticket);
  });
  if (mesh.reduce->copies()) {
    const Tensor parts = arena.allocate(DType::bf16, {world.size - 1, count});
    mesh.gather->share(shard);
    mesh.reduce->share(whole);
    time("all_gather by copies", [&] {
      Ticket ticket = mesh.gather->all_gather(stream, shard, whole);
      mesh.gather->wait(stream, ticket);
    });
    time("exchange by copies", [&] {
      Ticket ticket = mesh.reduce->exchange(stream, whole, parts);
      mesh.reduce->wait(stream, ticket);
    });
    const Tensor own = whole.flat_range(world.rank * count, count), squares = arena.allocate(DType::f64, {1});
    RankSum sum{.own = own, .others = parts, .rank = world.rank, .out = shard, .squares = squares};
    Arena workspace(stream.backend(), "workspace", sum.scratch_bytes(Device::cuda) + Arena::kAlignment);
    stream.set_workspace(&workspace);
    sum.squares = {};
    time("sum of the parts", [&] { run(stream, sum); });
    sum.squares = squares;
    time("sum of the parts and of its squares", [&] { run(stream, sum); });
    stream.set_workspace(nullptr);
  }
  time("reduce_scatter", [&] {
    Ticket ticket = mesh.reduce->reduce_scatter(stream, whole, shard);
    mesh.reduce->wait(stream, ticket);
  });
}

int run_checks() {
  const World world;
  const auto start = std::chrono::steady_clock::now();
  const auto report = [&](const std::string& what) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (world.rank == 0) std::printf("%6.2f s: %s\n", seconds, what.c_str());
    std::fflush(stdout);
  };
  const int gpus = std::max(1, cuda_device_count());
  Backend& backend = cuda_backend(world.rank % gpus);
  const auto stream = backend.make_stream("test");
  const bool nccl = world.size <= gpus && nccl_built();
  report("the GPU is there");
  MeshShape shape = resolve_mesh(world.size, world.rank, 0, 0, world.size);
  shape.copies = true;
  Mesh mesh = nccl ? make_nccl_mesh(shape, backend) : make_mpi_mesh(shape, backend);
  require(mesh.gather->copies() && mesh.reduce->copies(), "the ranks cannot map each other's memory");
  const SharedMemory shared(world, mesh, backend);
  report("the mesh is there");
  for (const DType dtype : kTypes) {
    for (const std::int64_t count : kCounts) {
      check_type(world, mesh, *stream, dtype, count);  // memory that is not shared: no copies
      check_copies(world, mesh, shared, *stream, dtype, count);
    }
    report(fmt::format("every collective of {} as expected", name_of(dtype)));
  }
  measure(world, mesh, *stream);
  report(fmt::format("{} ranks over {} and by copies: done", world.size, nccl ? "NCCL" : "MPI"));
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int code = 1;
  try {
    code = lapidary::run_checks();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return code;
}
