// Checkpoints of the model's real size with synthetic values, without the memory of a run:
//   checkpoint_size make CONFIG FOLDER       a Hugging Face folder with bf16 weights in files of 5 GB
//   checkpoint_size list FOLDER              size and checksum of every file
//   checkpoint_size save CONFIG DIRECTORY    a checkpoint with bf16 weights, float32 masters and moments, as
//   a
//                                            run saves it: staged in 2 GiB of host memory
//   checkpoint_size resume CONFIG DIRECTORY  reads all of it as ranks would, and compares every value
// under mpirun; tests/trainer/checkpoint_size.sh runs all and compares with dd. Prints seconds, rate and the
// most memory that a rank had.
#include <mpi.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <map>
#include <random>
#include <set>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"
#include "kernels/json.h"
#include "model/config.h"
#include "model/parameter_table.h"
#include "tests/model/safetensors_writer.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_saver.h"

namespace lapidary {
namespace {

/// Values of elements [first, first + bytes / size) of a tensor, at the speed of a copy: parts of one random
/// table, which repeats only every 16 MB.
void fill_synthetic(std::size_t tensor, std::int64_t first, std::int64_t size, std::int64_t bytes, void* to) {
  constexpr std::int64_t kPeriod = (16 << 20) - 4;  // of 4-byte words
  static const std::vector<std::byte> table = [] {
    std::vector<std::byte> made(static_cast<std::size_t>(kPeriod));
    std::mt19937 random(12);
    for (std::size_t i = 0; i < made.size(); i += 4) {
      // Below the exponent of infinity in every type, so that NaNs do not get in the way of comparisons.
      const auto word = static_cast<std::uint32_t>(random()) & 0x3fff3fffU;
      std::memcpy(made.data() + i, &word, 4);
    }
    return made;
  }();
  std::int64_t place = (static_cast<std::int64_t>(tensor) * 4'000'004 + first * size) % kPeriod;
  auto* out = static_cast<std::byte*>(to);
  while (bytes > 0) {
    const std::int64_t count = std::min(bytes, kPeriod - place);
    std::memcpy(out, table.data() + place, static_cast<std::size_t>(count));
    out += count;
    bytes -= count;
    place = 0;
  }
}

/// Addresses that nothing is ever stored at.
class Addresses {
 public:
  explicit Addresses(std::size_t bytes) : bytes_(bytes) {
    base_ = static_cast<std::byte*>(
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    require(base_ != MAP_FAILED, "no room for {} bytes of addresses", bytes);
  }
  ~Addresses() { ::munmap(base_, bytes_); }
  Addresses(const Addresses&) = delete;
  Addresses& operator=(const Addresses&) = delete;
  std::byte* at(std::int64_t offset) const { return base_ + offset; }
  std::int64_t offset_of(const void* address) const { return static_cast<const std::byte*>(address) - base_; }

 private:
  std::size_t bytes_;
  std::byte* base_;
};

struct Holding {
  std::vector<CheckpointTensor> tensors;
  std::map<std::int64_t, std::pair<std::size_t, std::int64_t>> places;  ///< offset -> tensor, first element
  std::int64_t bytes = 0;

  std::int64_t size_of_element(std::size_t tensor) const {
    return static_cast<std::int64_t>(size_of(tensors[tensor].dtype));
  }
  /// Tensor and element at an offset.
  std::pair<std::size_t, std::int64_t> place_of(std::int64_t offset) const {
    const auto place = std::prev(places.upper_bound(offset));
    const auto [tensor, begin] = place->second;
    return {tensor, begin + (offset - place->first) / size_of_element(tensor)};
  }
  /// Makes offsets addresses.
  void place_at(const Addresses& addresses) {
    for (const auto& [offset, place] : places)
      tensors[place.first].slices.front().data = addresses.at(offset);
  }
};

/// A device whose memory is nothing but addresses; what is copied from it is made up on the way.
class SyntheticBackend : public Backend {
 public:
  SyntheticBackend(const Holding& holding, const Addresses& addresses)
      : holding_(&holding), addresses_(&addresses) {}
  void copy_to_host(const Stream&, void* to, const void* from, std::size_t bytes) override {
    const auto [tensor, element] = holding_->place_of(addresses_->offset_of(from));
    fill_synthetic(tensor, element, holding_->size_of_element(tensor), static_cast<std::int64_t>(bytes), to);
  }
  Device device() const override { return cpu_.device(); }
  std::string description() const override { return "synthetic values"; }
  DeviceMemory memory() const override { return cpu_.memory(); }
  void* allocate(std::size_t bytes) override { return cpu_.allocate(bytes); }
  void release(void* data) noexcept override { cpu_.release(data); }
  void* allocate_host(std::size_t bytes) override { return cpu_.allocate_host(bytes); }
  void release_host(void* data) noexcept override { cpu_.release_host(data); }
  std::unique_ptr<Stream> make_stream(const char* name) override { return cpu_.make_stream(name); }
  void copy_to_device(const Stream& stream, void* to, const void* from, std::size_t bytes) override {
    cpu_.copy_to_device(stream, to, from, bytes);
  }
  Event record(const Stream& stream) override { return cpu_.record(stream); }
  Event record_timed(const Stream& stream) override { return cpu_.record_timed(stream); }
  double seconds_between(const Event& from, const Event& to) override {
    return cpu_.seconds_between(from, to);
  }
  void wait(const Stream& stream, const Event& event) override { cpu_.wait(stream, event); }
  void synchronize(const Stream& stream) override { cpu_.synchronize(stream); }
  void synchronize(const Event& event) override { cpu_.synchronize(event); }

 private:
  Backend& cpu_ = cpu_backend();
  const Holding* holding_;
  const Addresses* addresses_;
};

/// Every rank holds an equal part of each tensor; `data` are offsets, made addresses later.
Holding hold(const ParameterTable& table, int rank, int ranks) {
  Holding out;
  const std::vector<std::pair<const char*, DType>> parts = {
      {"weight", DType::bf16}, {"master", DType::f32}, {"exp_avg", DType::f32}, {"exp_avg_sq", DType::f32}};
  for (const ParameterSpec& spec : table.specs) {
    for (const auto& [part, type] : parts) {
      if (!spec.trainable && std::string_view(part) != "weight") continue;
      const std::int64_t n = spec.numel(), begin = n * rank / ranks, end = n * (rank + 1) / ranks;
      CheckpointTensor tensor{spec.name, part, type, spec.shape, {}};
      if (begin < end) {
        out.places[out.bytes] = {out.tensors.size(), begin};
        tensor.slices.push_back({begin, end - begin, nullptr});
        out.bytes += (end - begin) * static_cast<std::int64_t>(size_of(type));
      }
      out.tensors.push_back(std::move(tensor));
    }
  }
  return out;
}

void save(const ParameterTable& table, const std::string& directory, HostGroup& group) {
  Holding holding = hold(table, group.rank(), group.size());
  const Addresses addresses(static_cast<std::size_t>(holding.bytes));
  holding.place_at(addresses);
  SyntheticBackend backend(holding, addresses);
  CheckpointSaver saver(directory, {}, holding.tensors, backend, std::size_t{2} << 30, group.duplicate());
  const std::unique_ptr<Stream> compute = backend.make_stream("compute");
  saver.start(1, "{}", std::nullopt, *compute);
  const auto outcome = saver.wait();
  require(outcome->error.empty(), "{}", outcome->error);
}

void resume(const ParameterTable& table, const std::string& directory, HostGroup& group) {
  Holding holding = hold(table, group.rank(), group.size());
  const Addresses addresses(static_cast<std::size_t>(holding.bytes));
  holding.place_at(addresses);
  std::vector<std::byte> expected;
  CheckpointReadOptions options;
  std::int64_t seen = 0;
  options.store = [&](void* to, const void* host, std::size_t bytes) {
    const auto [tensor, element] = holding.place_of(addresses.offset_of(to));
    expected.resize(bytes);
    fill_synthetic(tensor, element, holding.size_of_element(tensor), static_cast<std::int64_t>(bytes),
                   expected.data());
    require(std::memcmp(expected.data(), host, bytes) == 0, "{} ({}): other values than were saved",
            holding.tensors[tensor].name, holding.tensors[tensor].part);
    seen += static_cast<std::int64_t>(bytes);
  };
  const auto found = restore_newest_checkpoint(directory, false, holding.tensors, group, options);
  require(found.has_value(), "{}: no checkpoint", directory);
  require(seen == holding.bytes, "{} of {} bytes were read", seen, holding.bytes);
}

void list(const std::string& folder) {
  std::set<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.insert(entry.path());
  for (const auto& path : paths)
    std::cout << fmt::format("{} {} {}\n", path.filename().string(), std::filesystem::file_size(path),
                             checksum_of_file(path));
}

void make(const ParameterTable& table, const std::string& config, const std::string& folder,
          HostGroup& group) {
  constexpr std::int64_t kFile = 5'000'000'000;
  std::vector<std::vector<StoredTensor>> files(1);
  std::map<std::string, std::size_t> number;
  std::int64_t bytes = 0, total = 0;
  for (std::size_t i = 0; i < table.specs.size(); ++i) {
    StoredTensor tensor;
    tensor.name = table.specs[i].name;
    tensor.type = StoredType::bf16;
    tensor.shape = table.specs[i].shape;
    tensor.elements = table.specs[i].numel();
    number[tensor.name] = i;
    if (bytes > 0 && bytes + tensor.bytes() > kFile) {
      files.emplace_back();
      bytes = 0;
    }
    bytes += tensor.bytes();
    total += tensor.bytes();
    files.back().push_back(std::move(tensor));
  }
  if (group.rank() == 0) std::filesystem::create_directories(folder);
  group.barrier("folder");
  nlohmann::json map;
  std::vector<std::byte> piece;
  for (std::size_t f = 0; f < files.size(); ++f) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", f + 1, files.size());
    for (const StoredTensor& tensor : files[f]) map[tensor.name] = name;
    if (f % static_cast<std::size_t>(group.size()) != static_cast<std::size_t>(group.rank())) continue;
    sort_as_safetensors(files[f]);
    SafetensorsWriter writer(folder + "/" + name, files[f]);
    constexpr std::int64_t kPiece = 4 << 20;
    for (std::size_t t = 0; t < writer.tensors().size(); ++t) {
      const StoredTensor& tensor = writer.tensors()[t];
      for (std::int64_t at = 0; at < tensor.elements; at += kPiece) {
        const std::int64_t count = std::min(kPiece, tensor.elements - at);
        piece.resize(static_cast<std::size_t>(2 * count));
        fill_synthetic(number[tensor.name], at, 2, 2 * count, piece.data());
        writer.write(t, at, count, piece.data());
      }
    }
    writer.commit();
  }
  group.barrier("files");
  if (group.rank() != 0) return;
  const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  write_new_text_file(folder + "/model.safetensors.index.json", index.dump(2));
  write_new_text_file(folder + "/config.json", read_text_file(config, 1 << 20));
}

int run(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "list") {
    list(argv[2]);
    return 0;
  }
  require(argc == 4, "usage: checkpoint_size make|save|resume CONFIG FOLDER, or list FOLDER");
  const std::string verb = argv[1];
  HostGroup group(MPI_COMM_WORLD, std::chrono::minutes(30));
  const ParameterTable table = make_parameter_table(read_model_config(argv[2]));
  const auto begun = std::chrono::steady_clock::now();
  if (verb == "make")
    make(table, argv[2], argv[3], group);
  else if (verb == "save")
    save(table, argv[3], group);
  else
    resume(table, argv[3], group);
  group.barrier("end");
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const std::int64_t peak = group.all_reduce(std::int64_t{usage.ru_maxrss}, HostGroup::Reduce::max, "memory");
  const double per_element = verb == "make" ? 2 : 14;
  const double gigabytes = static_cast<double>(table.stored_elements()) * per_element / 1e9;
  if (group.rank() == 0)
    std::cout << fmt::format("{}: {} tensors, {:.2f} GB, {:.1f} s, {:.0f} MB/s, at most {:.0f} MiB a rank\n",
                             verb, table.specs.size(), gigabytes, seconds, 1000 * gigabytes / seconds,
                             static_cast<double>(peak) / 1024);
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  int code = 1;
  try {
    code = lapidary::run(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << e.what() << std::endl;
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return code;
}
