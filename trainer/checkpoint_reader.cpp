#include "trainer/checkpoint_reader.h"

#include <algorithm>

#include "kernels/check.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {

namespace {

/// The first that ends behind the element.
std::vector<CheckpointManifest::Slice>::const_iterator slice_with(const CheckpointManifest::Tensor& tensor,
                                                                  std::int64_t element) {
  return std::upper_bound(
      tensor.slices.begin(), tensor.slices.end(), element,
      [](std::int64_t at, const CheckpointManifest::Slice& s) { return at < s.begin + s.count; });
}

}  // namespace

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

CheckpointReader::Place CheckpointReader::place(const CheckpointManifest::Tensor& tensor,
                                                std::int64_t element) const {
  const auto slice = slice_with(tensor, element);
  return {static_cast<std::size_t>(slice->file),
          slice->offset + (element - slice->begin) * static_cast<std::int64_t>(size_of(tensor.dtype))};
}

void CheckpointReader::read(const CheckpointManifest::Tensor& tensor, std::int64_t begin, std::int64_t count,
                            void* to) {
  const std::int64_t elements = tensor.elements();
  require(begin >= 0 && count >= 0 && begin <= elements - count,
          "{}: {} ({}): asked for elements [{}, {} + {}) of {}", checkpoint_->path, tensor.name, tensor.part,
          begin, begin, count, elements);
  const auto size = static_cast<std::int64_t>(size_of(tensor.dtype));
  auto from = slice_with(tensor, begin);
  auto* out = static_cast<char*>(to);
  for (std::int64_t at = begin, end = begin + count; at < end; ++from) {
    const std::int64_t n = std::min(end, from->begin + from->count) - at;
    open(static_cast<std::size_t>(from->file)).read(out, n * size, from->offset + (at - from->begin) * size);
    out += n * size;
    at += n;
  }
}

CheckpointReader::OpenFile& CheckpointReader::open(std::size_t number) {
  OpenFile& open = files_[number];
  if (open.file.path().empty())
    open.file =
        File::open_to_read(fmt::format("{}/{}", checkpoint_->path, checkpoint_->manifest.files[number].name));
  return open;
}

void CheckpointReader::OpenFile::read(void* to, std::int64_t bytes, std::int64_t offset) {
  if (checksum && offset > hashed) hash_until(offset);
  file.read_at(to, static_cast<std::size_t>(bytes), offset);
  const std::int64_t end = offset + bytes;
  if (!checksum || end <= hashed) return;
  checksum->add(static_cast<const char*>(to) + (hashed - offset), static_cast<std::size_t>(end - hashed));
  hashed = end;
}

void CheckpointReader::OpenFile::hash_until(std::int64_t end) {
  constexpr std::int64_t kPiece = 4 << 20;
  std::vector<char> piece(static_cast<std::size_t>(std::min(kPiece, end - hashed)));
  while (hashed < end) read(piece.data(), std::min(kPiece, end - hashed), hashed);
}

void CheckpointReader::hash(const std::vector<std::size_t>& files) {
  for (const std::size_t number : files) open(number).checksum.emplace();
}

void CheckpointReader::compare_checksums() {
  for (auto& [number, open] : files_) {
    if (!open.checksum) continue;
    open.hash_until(open.file.size());
    compare_checksum(open.checksum->hex(), checkpoint_->path, checkpoint_->manifest.files[number]);
  }
}

Checkpoint open_manifest(const std::string& path, HostGroup& group) {
  Checkpoint checkpoint{path, {}, {}};
  std::string text;
  group.all_or_error("checkpoint: manifest", [&] {
    if (group.rank() == 0) text = to_text(read_manifest(path));
  });
  text = group.broadcast(std::move(text), 0, "checkpoint: manifest");
  checkpoint.manifest = parse_manifest(text, path);
  return checkpoint;
}

std::vector<std::size_t> files_to_hash(const CheckpointManifest& manifest, const HostGroup& group) {
  const std::size_t shards = static_cast<std::size_t>(std::max(manifest.ranks, 1)),
                    ranks = static_cast<std::size_t>(group.size());
  std::vector<std::size_t> mine;
  for (std::size_t i = 0; i < manifest.files.size(); ++i)
    if (std::min(i * ranks / shards, ranks - 1) == static_cast<std::size_t>(group.rank())) mine.push_back(i);
  return mine;
}

void compare_checksum(const std::string& found, const std::string& path,
                      const CheckpointManifest::File& expected) {
  require(found == expected.checksum, "{}/{}: damaged: checksum {}, expected {}", path, expected.name, found,
          expected.checksum);
}

}  // namespace lapidary
