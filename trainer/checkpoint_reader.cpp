#include "trainer/checkpoint_reader.h"

#include <algorithm>

#include "kernels/check.h"

namespace lapidary {

CheckpointReader::CheckpointReader(const Checkpoint& checkpoint) : checkpoint_(&checkpoint) {
  std::int64_t next = 0;
  for (const CheckpointManifest::Tensor& tensor : checkpoint.manifest.tensors)
    index_[{tensor.name, tensor.part}] = next++;
}

std::int64_t CheckpointReader::index_of(const std::string& name, const std::string& part) const {
  const auto found = index_.find({name, part});
  return found == index_.end() ? -1 : found->second;
}

const CheckpointManifest::Tensor* CheckpointReader::find(const std::string& name,
                                                         const std::string& part) const {
  const std::int64_t at = index_of(name, part);
  return at < 0 ? nullptr : &checkpoint_->manifest.tensors[static_cast<std::size_t>(at)];
}

void CheckpointReader::read(const CheckpointManifest::Tensor& tensor, std::int64_t begin, std::int64_t count,
                            void* to) {
  const std::int64_t elements = tensor.elements();
  require(begin >= 0 && count >= 0 && begin <= elements - count,
          "{}: {} ({}): asked for elements [{}, {} + {}) of {}", checkpoint_->path, tensor.name, tensor.part,
          begin, begin, count, elements);
  const auto size = static_cast<std::int64_t>(size_of(tensor.dtype));
  auto from = std::upper_bound(
      tensor.slices.begin(), tensor.slices.end(), begin,
      [](std::int64_t at, const CheckpointManifest::Slice& s) { return at < s.begin + s.count; });
  auto* out = static_cast<char*>(to);
  for (std::int64_t at = begin, end = begin + count; at < end; ++from) {
    const std::int64_t n = std::min(end, from->begin + from->count) - at;
    File& file = files_[from->file];
    if (file.path().empty()) {
      const auto& name = checkpoint_->manifest.files[static_cast<std::size_t>(from->file)].name;
      file = File::open_to_read(fmt::format("{}/{}", checkpoint_->path, name));
    }
    file.read_at(out, static_cast<std::size_t>(n * size), from->offset + (at - from->begin) * size);
    out += n * size;
    at += n;
  }
}

}  // namespace lapidary
