// What a writer with a fault would leave: every hash is right, but a shard's bytes are not as the format
// says.
#pragma once
#include <functional>
#include <string>

#include "data/checked_file.h"
#include "data/shard_format.h"
#include "kernels/file.h"
#include "kernels/hdf5_file.h"

namespace lapidary {

/// Changes the first shard of a data set of one shard, and all hashes with it.
inline void forge_shard(const std::filesystem::path& directory,
                        const std::function<void(File& shard, const ShardRecord& record)>& change) {
  Manifest manifest = read_manifest(directory);
  ShardRecord& record = manifest.shards.at(0);
  const std::string path = (directory / record.file).string();
  {
    File shard = File::open_to_write(path);
    change(shard, record);
  }
  const FileHashes hashes = hash_with_segments(path);
  record.checksum = hashes.checksum;
  const std::string index = (directory / kIndexName).string();
  const Hdf5File old = Hdf5File::open(index);
  const auto tokens = old.read<std::int32_t>("document_tokens"),
             kib = old.read<std::int32_t>("document_feature_kib");
  Hdf5File file = Hdf5File::create(index + ".new");
  file.write("document_tokens", tokens);
  file.write("document_feature_kib", kib);
  file.write("segment_hashes", hashes.segments);
  file.close();
  std::filesystem::rename(index + ".new", index);
  const FileHashes index_hashes = hash_with_segments(index);
  manifest.index_bytes = index_hashes.bytes;
  manifest.index_checksum = index_hashes.checksum;
  write_manifest(directory, manifest);
}

}  // namespace lapidary
