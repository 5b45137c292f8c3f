#include "trainer/checkpoint_files.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

using Manifest = CheckpointManifest;

using Extent = ShardPlan::Extent;

constexpr std::int64_t kBlock = 1 << 20;  // bytes written, then hashed: still in the cache
constexpr std::int64_t kPiece = 8 << 20;  // bytes asked for at a time: long enough for a GPU's copy engine

std::vector<CheckpointSlice> sorted_slices(const CheckpointTensor& tensor, std::int64_t elements) {
  std::vector<CheckpointSlice> slices = tensor.slices;
  std::sort(slices.begin(), slices.end(),
            [](const CheckpointSlice& a, const CheckpointSlice& b) { return a.begin < b.begin; });
  for (const CheckpointSlice& s : slices)
    require(s.begin >= 0 && s.count > 0 && s.begin <= elements - s.count,
            "{} ({}): slice [{}, {} + {}) of {} elements", tensor.name, tensor.part, s.begin, s.begin,
            s.count, elements);
  return slices;
}

/// A new file that is written from its beginning to its end, and hashed on the way.
class HashedFile {
 public:
  explicit HashedFile(const std::string& path) : file_(File::create(path)) {}

  void put(const void* bytes, std::int64_t count) {
    const auto* from = static_cast<const char*>(bytes);
    for (std::int64_t done = 0; done < count; done += kBlock) {
      const auto block = static_cast<std::size_t>(std::min(kBlock, count - done));
      file_.write_at(from + done, block, at_);
      checksum_.add(from + done, block);
      at_ += static_cast<std::int64_t>(block);
    }
  }
  /// What stands in `layout` from here to `end`.
  void copy_until(const File& layout, std::int64_t end) {
    require(end >= at_, "{}: datasets overlap", file_.path());
    std::vector<char> buffer(static_cast<std::size_t>(std::min(kBlock, end - at_)));
    while (at_ < end) {
      const std::int64_t count = std::min(kBlock, end - at_);
      layout.read_at(buffer.data(), static_cast<std::size_t>(count), at_);
      put(buffer.data(), count);
    }
  }
  Manifest::File finish(const std::string& name) {
    file_.sync();
    file_.close();
    return {name, at_, checksum_.hex()};
  }

 private:
  File file_;
  Checksum checksum_;
  std::int64_t at_ = 0;
};

/// The file in memory is under the limit too, HDF5 does not survive it, and at the disk it is a signal.
void check_file_size_limit(std::int64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0)
    fail_with_errno("cannot read", "the limit on file sizes", errno);
  const double needed = size_of_files(bytes);
  require(limit.rlim_cur == RLIM_INFINITY || needed <= static_cast<double>(limit.rlim_cur),
          "the limit on file sizes (ulimit -f) is {:.3f} GiB, this rank's part takes {:.3f} GiB",
          static_cast<double>(limit.rlim_cur) / (1 << 30), needed / (1 << 30));
}

/// Creates the datasets and finds out where HDF5 put them.
void lay_out(ShardPlan& plan) {
  Hdf5File file = Hdf5File::create_in_memory(plan.layout);
  for (std::size_t i = 0; i < plan.extents.size(); ++i) {
    const Manifest::Tensor& tensor = plan.tensors[i];
    const auto& slices = plan.extents[i].slices;
    const std::int64_t length =
        std::accumulate(slices.begin(), slices.end(), std::int64_t{0},
                        [](std::int64_t sum, const CheckpointSlice& s) { return sum + s.count; });
    file.create_dataset(checkpoint_dataset(tensor.name, tensor.part), tensor.dtype, {length});
  }
  for (std::size_t i = 0; i < plan.extents.size(); ++i) {
    Manifest::Tensor& tensor = plan.tensors[i];
    Extent& extent = plan.extents[i];
    extent.offset = file.shape(checkpoint_dataset(tensor.name, tensor.part)).offset;
    require(extent.offset >= 0, "{} ({}): HDF5 gave it no place", tensor.name, tensor.part);
    std::int64_t at = extent.offset;
    for (Manifest::Slice& slice : tensor.slices) {
      slice.offset = at;
      at += slice.count * extent.element_size;
    }
  }
  file.close();
}

void for_each_piece_of(const Extent& extent, const std::function<void(const ShardPiece&)>& f) {
  const std::int64_t most = kPiece / extent.element_size;
  for (const CheckpointSlice& slice : extent.slices) {
    for (std::int64_t done = 0; done < slice.count; done += most) {
      const std::int64_t count = std::min(most, slice.count - done);
      f({extent.tensor, &slice, done, count, count * extent.element_size});
    }
  }
}

void block_ranges(const std::vector<std::int64_t>& strides, std::size_t dim, std::int64_t begin,
                  std::int64_t end, Hdf5Block& open, std::vector<Hdf5Block>& blocks) {
  // [begin, end) within the array of dimensions dim.. ; strides[dim]: elements of one step in dimension dim
  const auto emit = [&](std::int64_t first, std::int64_t steps) {
    open.start[dim] = first;
    open.count[dim] = steps;
    for (std::size_t d = dim + 1; d < strides.size(); ++d) {
      open.start[d] = 0;
      open.count[d] = strides[d - 1] / strides[d];
    }
    blocks.push_back(open);
  };
  const auto descend = [&](std::int64_t step, std::int64_t from, std::int64_t to) {
    open.start[dim] = step;
    open.count[dim] = 1;
    block_ranges(strides, dim + 1, from, to, open, blocks);
  };
  const std::int64_t stride = strides[dim], first = begin / stride, last = (end - 1) / stride;
  const std::int64_t head = begin - first * stride, tail = end - last * stride;
  if (first == last && tail - head < stride) return descend(first, head, tail);
  const std::int64_t whole_begin = head == 0 ? first : first + 1,
                     whole_end = tail == stride ? last + 1 : last;
  if (head != 0) descend(first, head, stride);
  if (whole_begin < whole_end) emit(whole_begin, whole_end - whole_begin);
  if (tail != stride) descend(last, 0, tail);
}

}  // namespace

double size_of_files(std::int64_t bytes) {
  return static_cast<double>(bytes) * 1.01 + (1 << 20);
}

std::string shard_file_name(int rank) {
  return fmt::format("shard-{:05}.h5", rank);
}

ShardPlan plan_shard(int rank, const std::vector<CheckpointTensor>& tensors) {
  ShardPlan plan;
  plan.rank = rank;
  plan.layout = File::in_memory();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const CheckpointTensor& from = tensors[i];
    check_checkpoint_tensor(from.name, from.part, from.shape, "checkpoint");
    if (from.slices.empty()) continue;
    Manifest::Tensor tensor{from.name, from.part, from.dtype, from.shape, {}};
    Extent extent{0, static_cast<std::int64_t>(size_of(from.dtype)), i,
                  sorted_slices(from, tensor.elements())};
    for (const CheckpointSlice& slice : extent.slices) {
      tensor.slices.push_back({rank, slice.begin, slice.count, 0});
      plan.bytes += slice.count * extent.element_size;
    }
    plan.tensors.push_back(std::move(tensor));
    plan.extents.push_back(std::move(extent));
  }
  check_file_size_limit(plan.bytes);
  lay_out(plan);
  std::sort(plan.extents.begin(), plan.extents.end(),
            [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
  return plan;
}

void ShardPlan::for_each_piece(const std::function<void(const ShardPiece&)>& f) const {
  for (const Extent& extent : extents) for_each_piece_of(extent, f);
}

Manifest::File write_shard(const std::string& folder, const ShardPlan& plan, ShardValues& values,
                           const CheckpointHook& hook) {
  const std::string name = shard_file_name(plan.rank);
  HashedFile file(fmt::format("{}/{}", folder, name));
  for (const Extent& extent : plan.extents) {
    file.copy_until(plan.layout, extent.offset);
    for_each_piece_of(extent, [&](const ShardPiece& piece) { file.put(values.next(piece), piece.bytes); });
    hook("tensor written");
  }
  file.copy_until(plan.layout, plan.layout.size());
  hook("file written");
  Manifest::File written = file.finish(name);
  hook("shard synced");
  return written;
}

std::vector<Hdf5Block> blocks_of_range(const std::vector<std::int64_t>& shape, std::int64_t begin,
                                       std::int64_t count) {
  std::vector<std::int64_t> strides(shape.size(), 1);
  for (std::size_t d = shape.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * shape[d];
  Hdf5Block open;
  open.start.resize(shape.size());
  open.count.resize(shape.size());
  std::vector<Hdf5Block> blocks;
  block_ranges(strides, 0, begin, begin + count, open, blocks);
  return blocks;
}

CheckpointManifest::File write_index(const std::string& folder, const CheckpointManifest& manifest,
                                     const CheckpointHook& hook) {
  const File layout = File::in_memory();
  Hdf5File index = Hdf5File::create_in_memory(layout);
  index.write_attribute("format", "lapidary checkpoint");
  index.write_attribute("step", manifest.step);
  index.write_attribute("program", manifest.program);
  const std::string state = manifest.state.dump();
  index.write(kStateDataset, std::vector<std::uint8_t>(state.begin(), state.end()));
  for (const Manifest::Tensor& tensor : manifest.tensors) {
    const std::string dataset = checkpoint_dataset(tensor.name, tensor.part);
    std::map<int, std::int64_t> lengths;  // of the dataset in each file
    for (const Manifest::Slice& slice : tensor.slices) lengths[slice.file] += slice.count;
    std::map<int, std::int64_t> first;
    std::vector<Hdf5Block> blocks;
    for (const Manifest::Slice& slice : tensor.slices) {
      for (Hdf5Block& block : blocks_of_range(tensor.shape, slice.begin, slice.count)) {
        block.file = manifest.files[static_cast<std::size_t>(slice.file)].name;
        block.dataset = dataset;
        block.length = lengths[slice.file];
        block.first = first[slice.file];
        first[slice.file] += std::accumulate(block.count.begin(), block.count.end(), std::int64_t{1},
                                             std::multiplies<std::int64_t>());
        blocks.push_back(std::move(block));
      }
    }
    index.create_virtual_dataset(dataset, tensor.dtype, tensor.shape, blocks);
  }
  index.close();
  HashedFile file(fmt::format("{}/{}", folder, kIndexFileName));
  file.copy_until(layout, layout.size());
  hook("file written");
  Manifest::File written = file.finish(kIndexFileName);
  hook("index synced");
  return written;
}

}  // namespace lapidary
