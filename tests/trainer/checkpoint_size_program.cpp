// Checkpoints of the model's real size with synthetic values, without the memory of a run:
//   checkpoint_size make CONFIG FOLDER       a Hugging Face folder with bf16 weights in files of 5 GB
//   checkpoint_size save CONFIG DIRECTORY    a checkpoint with bf16 weights, float32 masters and moments
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

#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/json.h"
#include "model/config.h"
#include "model/parameter_table.h"
#include "model/safetensors_writer.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_files.h"

namespace lapidary {
namespace {

/// Value bytes of elements [first, first + bytes / size) of a tensor: no two places look alike, and it is
/// fast.
void fill_synthetic(std::size_t tensor, std::int64_t first, std::int64_t size, std::int64_t bytes, void* to) {
  auto* out = static_cast<std::byte*>(to);
  for (std::int64_t at = 0; at < bytes; at += size) {
    const std::uint64_t place =
        static_cast<std::uint64_t>(first + at / size) + (static_cast<std::uint64_t>(tensor) << 36);
    // Below the exponent of infinity in every type, so that NaNs do not get in the way of comparisons.
    const auto value = static_cast<std::uint32_t>((place * 0x9e3779b97f4a7c15ULL) >> 33) & 0x3fff3fffU;
    std::memcpy(out + at, &value, static_cast<std::size_t>(size));
  }
}

class SyntheticValues : public ShardValues {
 public:
  const void* next(const ShardPiece& piece) override {
    buffer_.resize(static_cast<std::size_t>(piece.bytes));
    fill_synthetic(piece.tensor, piece.slice->begin + piece.first, piece.bytes / piece.count, piece.bytes,
                   buffer_.data());
    return buffer_.data();
  }

 private:
  std::vector<std::byte> buffer_;
};

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
  const Holding holding = hold(table, group.rank(), group.size());
  const ShardPlan plan = plan_shard(group.rank(), holding.tensors);
  SyntheticValues values;
  write_checkpoint(directory, 1, {&plan, 1}, values, "{}", group);
}

void resume(const ParameterTable& table, const std::string& directory, HostGroup& group) {
  Holding holding = hold(table, group.rank(), group.size());
  const Addresses addresses(static_cast<std::size_t>(holding.bytes));
  for (const auto& [offset, place] : holding.places)
    holding.tensors[place.first].slices.front().data = addresses.at(offset);
  std::vector<std::byte> expected;
  CheckpointReadOptions options;
  std::int64_t seen = 0;
  options.store = [&](void* to, const void* host, std::size_t bytes) {
    const std::int64_t offset = addresses.offset_of(to);
    const auto place = std::prev(holding.places.upper_bound(offset));
    const auto [tensor, begin] = place->second;
    const auto size = static_cast<std::int64_t>(size_of(holding.tensors[tensor].dtype));
    expected.resize(bytes);
    fill_synthetic(tensor, begin + (offset - place->first) / size, size, static_cast<std::int64_t>(bytes),
                   expected.data());
    require(std::memcmp(expected.data(), host, bytes) == 0, "{} ({}): other values than were saved",
            holding.tensors[tensor].name, holding.tensors[tensor].part);
    seen += static_cast<std::int64_t>(bytes);
  };
  const auto found = find_newest_checkpoint(directory, false, group);
  require(found.has_value(), "{}: no checkpoint", directory);
  read_checkpoint(*found, holding.tensors, group, options);
  require(seen == holding.bytes, "{} of {} bytes were read", seen, holding.bytes);
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
  require(argc == 4, "usage: checkpoint_size make|save|resume CONFIG FOLDER");
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
