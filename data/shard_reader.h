// Reads a data set: its manifest and index at once, documents on demand. Nothing is read whole but the index;
// every byte of a document is checked against the index's hashes, and shards are never given to the HDF5
// library, which crashes on damaged files, but read at the places that the manifest records.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/document.h"
#include "data/shard_format.h"

namespace lapidary {

/// Tokens [begin, end) of a document. Documents with images or sounds are never cut.
struct Piece {
  std::int64_t document = 0;
  std::int32_t begin = 0, end = 0;

  std::int32_t tokens() const { return end - begin; }
  bool operator==(const Piece&) const = default;
};

/// Memory: 8 bytes a document and 8 bytes per 256 KiB of shards, and the tables of the shards that are open
/// (at most kOpenShards). For one thread at a time.
class DataSet {
 public:
  /// Room for the places that a shuffled order draws on at a time (SourceOrder::kMixedBlocks, some across two
  /// shards).
  static constexpr std::size_t kOpenShards = 96;

  /// Reads manifest and index. Error naming the file where one is missing, damaged or contradicts the other.
  explicit DataSet(std::filesystem::path directory);
  ~DataSet();
  DataSet(const DataSet&) = delete;

  const std::filesystem::path& directory() const { return directory_; }
  const Manifest& manifest() const { return manifest_; }
  std::int64_t documents() const { return manifest_.counts.documents; }
  /// [documents] tokens of every document.
  std::span<const std::int32_t> document_tokens() const { return document_tokens_; }
  /// [documents] memory of a document's images and sounds in KiB, 0 where it has none.
  std::span<const std::int32_t> document_feature_kib() const { return document_feature_kib_; }
  /// [segments of `shard`] the recorded hashes (checked_file.h).
  std::span<const std::int64_t> segment_hashes(std::size_t shard) const;

  /// Compares the sizes of the shards `part`, `part` + `parts`, ... with the manifest. Error naming the first
  /// file that is missing, truncated or replaced.
  void check_sizes(int part = 0, int parts = 1) const;

  /// The pieces as documents, in the order given: read in the order of the files, neighbours together. A
  /// piece that starts inside a document has `trained` 0 at its first token. `source` is filled only
  /// `with_sources`. Error naming shard and document where anything is not as it was written or breaks a rule
  /// of check_document().
  std::vector<Document> read(std::span<const Piece> pieces, bool with_sources = false);

  std::int64_t bytes_read() const { return bytes_read_; }  ///< from shards, since construction
  std::int64_t shards_opened() const { return shards_opened_; }

 private:
  struct OpenShard;

  void read_index();
  void check_lengths();
  std::size_t shard_of(std::int64_t document) const;
  std::int64_t first_token(std::int64_t document) const;
  OpenShard& open(std::size_t shard);
  void read_from(std::size_t shard, std::span<const Piece> pieces, std::span<const std::size_t> chosen,
                 bool with_sources, std::vector<Document>& documents);
  void read_sources(OpenShard& shard, std::span<const Piece> pieces, std::span<const std::size_t> chosen,
                    std::vector<Document>& documents);

  std::filesystem::path directory_;
  Manifest manifest_;
  std::vector<std::int32_t> document_tokens_, document_feature_kib_;
  std::vector<std::int64_t> segment_hashes_;
  std::vector<std::int64_t> group_tokens_;        // tokens before every kGroup-th document of the data set
  std::vector<std::int64_t> shard_document_;      // first document of every shard, and the end
  std::vector<std::int64_t> shard_segment_;       // the same for segments
  std::vector<std::unique_ptr<OpenShard>> open_;  // most recently used last
  std::vector<std::byte> scratch_;
  std::int64_t bytes_read_ = 0, shards_opened_ = 0;
};

}  // namespace lapidary
