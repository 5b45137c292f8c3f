#include <algorithm>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "data/checked_file.h"
#include "data/shard_reader.h"
#include "data/show.h"
#include "kernels/check.h"
#include "kernels/hdf5_file.h"

namespace lapidary {

namespace {

// Documents are read in groups of at most this much memory (or one document).
constexpr std::int64_t kGroupBytes = std::int64_t{64} << 20;

class Verifier {
 public:
  Verifier(const std::filesystem::path& directory, std::ostream& out) : set_(directory), out_(out) {}

  std::int64_t run() {
    std::int64_t document = 0;
    for (std::size_t shard = 0; shard < set_.manifest().shards.size(); ++shard) {
      const std::int64_t before = problems_;
      const ShardRecord& record = set_.manifest().shards[shard];
      static_cast<void>(attempt([&] { check_hashes(shard); }) && attempt([&] { check_structure(record); }) &&
                        attempt([&] { check_documents(record, document); }));
      document += record.counts.documents;
      out_ << fmt::format("{}: {} documents, {} tokens, {} bytes: {}\n", record.file, record.counts.documents,
                          record.counts.tokens, record.bytes, problems_ == before ? "good" : "BAD");
    }
    return problems_;
  }

 private:
  bool attempt(const std::function<void()>& check) {
    try {
      check();
      return true;
    } catch (const Error& error) {
      ++problems_;
      out_ << "problem: " << error.what() << '\n';
      return false;
    }
  }

  std::string path_of(const ShardRecord& record) const { return (set_.directory() / record.file).string(); }

  void check_hashes(std::size_t shard) const {
    const ShardRecord& record = set_.manifest().shards[shard];
    const std::string path = path_of(record);
    const FileHashes found = hash_with_segments(path);
    require(found.bytes == record.bytes, "{}: {} bytes, expected {}: truncated or replaced", path,
            found.bytes, record.bytes);
    require(found.checksum == record.checksum, "{}: checksum {}, expected {}: the file is damaged", path,
            found.checksum, record.checksum);
    const auto recorded = set_.segment_hashes(shard);
    require(std::equal(recorded.begin(), recorded.end(), found.segments.begin(), found.segments.end()),
            "{}: the file is as written, but the index has other hashes for its segments", path);
  }

  /// The file means the same to HDF5 as the manifest says.
  void check_structure(const ShardRecord& record) const {
    const std::string path = path_of(record);
    const Hdf5File file = Hdf5File::open(path);
    require(file.text_attribute("format") == kShardFormatName, "{}: format \"{}\", expected \"{}\"", path,
            file.text_attribute("format"), kShardFormatName);
    require(file.integer_attribute("version") == kDataFormatVersion, "{}: format version {}, expected {}",
            path, file.integer_attribute("version"), kDataFormatVersion);
    for (const auto& field : kLayoutFields) {
      require(file.integer_attribute(field.name) == set_.manifest().layout.*field.member,
              "{}: attribute {} is {}, the manifest says {}", path, field.name,
              file.integer_attribute(field.name), set_.manifest().layout.*field.member);
    }
    for (const ShardArray& array : shard_arrays(record.counts, set_.manifest().layout)) {
      const Hdf5Shape shape = file.shape(array.name);
      require(shape.dtype == array.dtype && shape.dims == array.dims,
              "{}: array '{}' is {} [{}], expected {} [{}]", path, array.name, name_of(shape.dtype),
              fmt::join(shape.dims, ", "), name_of(array.dtype), fmt::join(array.dims, ", "));
      require(array.bytes() == 0 || shape.offset == record.places.at(array.name),
              "{}: array '{}' starts at byte {}, the manifest says {}", path, array.name, shape.offset,
              array.bytes() == 0 ? 0 : record.places.at(array.name));
    }
  }

  /// Every document keeps the rules (the reader checks them) and has the counts that are recorded for it.
  void check_documents(const ShardRecord& record, std::int64_t first) {
    const std::string path = path_of(record);
    const Hdf5File file = Hdf5File::open(path);
    const auto offsets = file.read<std::int64_t>("document_offsets");
    const auto counts = file.read<std::int32_t>("document_counts");
    DataCounts sum{.source_bytes = file.read<std::int64_t>("source_offsets").back()};
    for (std::int64_t d = 0; d < record.counts.documents;) {
      std::vector<Piece> pieces;
      std::int64_t bytes = 0;
      const std::int64_t begin = d;
      for (; d < record.counts.documents && (pieces.empty() || bytes < kGroupBytes); ++d) {
        const std::int32_t tokens = set_.document_tokens()[first + d];
        require(offsets[d + 1] - offsets[d] == tokens, "{}: document {} has {} tokens, the index says {}",
                path, d, offsets[d + 1] - offsets[d], tokens);
        pieces.push_back({first + d, 0, tokens});
        bytes += 5 * std::int64_t{tokens} + 1024 * std::int64_t{set_.document_feature_kib()[first + d]};
      }
      const std::vector<Document> documents = set_.read(pieces);
      for (std::size_t i = 0; i < documents.size(); ++i) {
        const std::int64_t number = begin + static_cast<std::int64_t>(i);
        check_counts(documents[i], &counts[number * kCountColumns],
                     fmt::format("{}: document {}", path, number),
                     set_.document_feature_kib()[first + number], sum);
      }
    }
    for (const auto& field : kCountFields) {
      require(sum.*field.member == record.counts.*field.member, "{}: {} {}, the manifest says {}", path,
              sum.*field.member, field.name, record.counts.*field.member);
    }
  }

  void check_counts(const Document& document, const std::int32_t* recorded, const std::string& where,
                    std::int32_t kib, DataCounts& sum) const {
    DataCounts found{.documents = 1,
                     .tokens = static_cast<std::int64_t>(document.tokens.size()),
                     .targets = std::count(document.trained.begin(), document.trained.end(), 1),
                     .images = static_cast<std::int64_t>(document.images.size()),
                     .sounds = static_cast<std::int64_t>(document.sounds.size())};
    for (const DocumentImage& image : document.images)
      found.patches += std::int64_t{image.columns} * image.rows;
    for (const DocumentSound& sound : document.sounds) found.frames += sound.frames;
    require(recorded[count_tokens] == found.tokens && recorded[count_targets] == found.targets &&
                recorded[count_patches] == found.patches && recorded[count_frames] == found.frames,
            "{}: {} tokens, {} targets, {} patches, {} frames, but recorded are {}, {}, {}, {}", where,
            found.tokens, found.targets, found.patches, found.frames, recorded[count_tokens],
            recorded[count_targets], recorded[count_patches], recorded[count_frames]);
    require(kib == feature_kib(found.patches, found.frames, set_.manifest().layout),
            "{}: the index has {} KiB of features, expected {}", where, kib,
            feature_kib(found.patches, found.frames, set_.manifest().layout));
    sum += found;
  }

  DataSet set_;
  std::ostream& out_;
  std::int64_t problems_ = 0;
};

}  // namespace

std::int64_t verify_data_set(const std::filesystem::path& directory, std::ostream& out) {
  return Verifier(directory, out).run();
}

}  // namespace lapidary
