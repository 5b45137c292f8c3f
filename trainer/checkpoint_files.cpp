#include "trainer/checkpoint_files.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

using Manifest = CheckpointManifest;

constexpr std::int64_t kPiece = 1 << 20;  // bytes written, then hashed: still in the cache

/// The values of one dataset: where they go, and where they come from.
struct Extent {
  std::int64_t offset = 0;
  std::int64_t element_size = 0;
  std::vector<CheckpointSlice> slices;
};

std::vector<CheckpointSlice> sorted_slices(const CheckpointTensor& tensor, std::int64_t elements) {
  std::vector<CheckpointSlice> slices = tensor.slices;
  std::sort(slices.begin(), slices.end(),
            [](const CheckpointSlice& a, const CheckpointSlice& b) { return a.begin < b.begin; });
  for (const CheckpointSlice& s : slices)
    require(s.begin >= 0 && s.count > 0 && s.begin <= elements - s.count && s.host != nullptr,
            "{} ({}): slice [{}, {} + {}) of {} elements", tensor.name, tensor.part, s.begin, s.begin,
            s.count, elements);
  return slices;
}

/// Writes `layout`, a file in memory, to a new file at `path`, with the values in their places, and syncs it.
Manifest::File write_file(const std::string& folder, const std::string& name, const File& layout,
                          const std::vector<Extent>& extents, const CheckpointHook& hook) {
  File file = File::create(fmt::format("{}/{}", folder, name));
  Checksum checksum;
  std::int64_t at = 0;
  const auto put = [&](const char* bytes, std::size_t count) {
    file.write_at(bytes, count, at);
    checksum.add(bytes, count);
    at += static_cast<std::int64_t>(count);
  };
  std::vector<char> buffer(static_cast<std::size_t>(kPiece));
  const auto copy_until = [&](std::int64_t end) {
    require(end >= at, "{}: datasets overlap", file.path());
    while (at < end) {
      const auto count = static_cast<std::size_t>(std::min(kPiece, end - at));
      layout.read_at(buffer.data(), count, at);
      put(buffer.data(), count);
    }
  };
  for (const Extent& extent : extents) {
    copy_until(extent.offset);
    for (const CheckpointSlice& slice : extent.slices) {
      const std::int64_t bytes = slice.count * extent.element_size;
      for (std::int64_t done = 0; done < bytes; done += kPiece)
        put(static_cast<const char*>(slice.host) + done,
            static_cast<std::size_t>(std::min(kPiece, bytes - done)));
    }
    hook("tensor written");
  }
  copy_until(layout.size());
  hook("file written");
  file.sync();
  file.close();
  return {name, at, checksum.hex()};
}

/// Creates the datasets and finds out where HDF5 put them.
void lay_out(const File& layout, WrittenShard& shard, std::vector<Extent>& extents) {
  Hdf5File file = Hdf5File::create_in_memory(layout);
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const Manifest::Tensor& tensor = shard.tensors[i];
    const std::int64_t length =
        std::accumulate(extents[i].slices.begin(), extents[i].slices.end(), std::int64_t{0},
                        [](std::int64_t sum, const CheckpointSlice& s) { return sum + s.count; });
    file.create_dataset(checkpoint_dataset(tensor.name, tensor.part), tensor.dtype, {length});
  }
  for (std::size_t i = 0; i < extents.size(); ++i) {
    Manifest::Tensor& tensor = shard.tensors[i];
    extents[i].offset = file.shape(checkpoint_dataset(tensor.name, tensor.part)).offset;
    require(extents[i].offset >= 0, "{} ({}): HDF5 gave it no place", tensor.name, tensor.part);
    std::int64_t at = extents[i].offset;
    for (Manifest::Slice& slice : tensor.slices) {
      slice.offset = at;
      at += slice.count * extents[i].element_size;
    }
  }
  file.close();
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

std::string shard_file_name(int rank) {
  return fmt::format("shard-{:05}.h5", rank);
}

WrittenShard write_shard(const std::string& folder, int rank, const std::vector<CheckpointTensor>& tensors,
                         const CheckpointHook& hook) {
  WrittenShard shard;
  std::vector<Extent> extents;
  for (const CheckpointTensor& from : tensors) {
    check_checkpoint_tensor(from.name, from.part, from.shape, "checkpoint");
    if (from.slices.empty()) continue;
    Manifest::Tensor tensor{from.name, from.part, from.dtype, from.shape, {}};
    Extent extent{0, static_cast<std::int64_t>(size_of(from.dtype)), sorted_slices(from, tensor.elements())};
    for (const CheckpointSlice& slice : extent.slices)
      tensor.slices.push_back({rank, slice.begin, slice.count, 0});
    shard.tensors.push_back(std::move(tensor));
    extents.push_back(std::move(extent));
  }
  const File layout = File::in_memory();
  lay_out(layout, shard, extents);
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
  shard.file = write_file(folder, shard_file_name(rank), layout, extents, hook);
  hook("shard synced");
  return shard;
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
  Manifest::File file = write_file(folder, kIndexFileName, layout, {}, hook);
  hook("index synced");
  return file;
}

}  // namespace lapidary
