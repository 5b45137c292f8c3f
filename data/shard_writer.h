// Writes a data set: a directory of HDF5 shards with an index and a manifest (docs/data-format.md). A shard
// is collected in memory and written in one piece, so every array in it is one contiguous run of bytes.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "data/document.h"

namespace lapidary {

/// Not thread-safe: documents are added by one thread, and their order is the order of the data set.
///
///   ShardWriter writer("out/train", layout);
///   start_after(writer.progress());                 // null: a fresh directory
///   for (each document) {
///     writer.add(document);
///     if (writer.full()) writer.commit(progress);   // progress: where the input stands after this document
///   }
///   writer.finish(notes);
///
/// Nothing is visible as a data set before finish() has returned: files are written under temporary names,
/// synced and renamed, the manifest last. After a kill a new writer in the same directory finds the committed
/// shards.
class ShardWriter {
 public:
  /// A shard holds a few large reads and is the unit that is lost when a build is killed; it is also what the
  /// writer keeps in memory.
  static constexpr std::int64_t kShardBytes = std::int64_t{256} << 20;

  /// Creates `directory` where it does not exist. Shards that an interrupted build committed there are kept,
  /// after a check of their sizes and hashes; leftovers are removed. Throws Error where the directory already
  /// holds a finished data set, a damaged shard or one with another token layout, or cannot be written.
  ShardWriter(std::filesystem::path directory, const TokenLayout& layout,
              std::int64_t shard_bytes = kShardBytes);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  /// What was given to the last commit() that reached the disk; null where no shard is there.
  const nlohmann::json& progress() const;

  /// Appends one document. Throws Error, starting with document.source, where check_document() does.
  void add(const Document& document);

  /// The collected documents have reached shard_bytes.
  bool full() const;

  /// Writes the collected documents, if any, as a shard, together with `progress`, and returns when both are
  /// durable.
  void commit(const nlohmann::json& progress);

  /// Writes what is left as the last shard and completes the data set: writes index.h5 and manifest.json, the
  /// latter with `notes` (a JSON object: what was dropped and why, sources, settings) under "notes", and
  /// removes the progress records. A data set without documents is allowed here and refused by the loader.
  void finish(const nlohmann::json& notes);

  std::int64_t documents() const;  ///< in the whole data set so far, earlier builds' shards included
  std::int64_t tokens() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lapidary
