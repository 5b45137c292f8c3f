// The values of a checkpoint's tensors by range, wherever its ranks wrote them. HDF5 takes no part: the
// manifest says where the bytes are.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/checksum.h"
#include "kernels/file.h"
#include "trainer/checkpoint.h"

namespace lapidary {

/// Opens files as they are needed and keeps them open. One thread at a time.
class CheckpointReader {
 public:
  /// The checkpoint must outlive the reader.
  explicit CheckpointReader(const Checkpoint& checkpoint);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  /// Place in the manifest's list, or -1.
  std::int64_t index_of(const std::string& name, const std::string& part) const;
  const CheckpointManifest::Tensor* find(const std::string& name, const std::string& part) const;

  /// Where an element is stored: number of the file and byte in it.
  using Place = std::pair<std::size_t, std::int64_t>;
  Place place(const CheckpointManifest::Tensor& tensor, std::int64_t element) const;

  /// Elements [begin, begin + count), row-major, as they are stored. Error where a file ends too early.
  void read(const CheckpointManifest::Tensor& tensor, std::int64_t begin, std::int64_t count, void* to);

  /// From now on these files (numbers in the manifest's list) are hashed while they are read, forward reads
  /// for nothing: what lies between two of them is read as well. Nothing of them has been read yet.
  void hash(const std::vector<std::size_t>& files);
  /// Reads what is left of those files. Error naming the first whose checksum is not the manifest's.
  void compare_checksums();

 private:
  struct OpenFile {
    File file;
    std::optional<Checksum> checksum;
    std::int64_t hashed = 0;  ///< bytes from the beginning
    void read(void* to, std::int64_t bytes, std::int64_t offset);
    void hash_until(std::int64_t end);
  };
  OpenFile& open(std::size_t number);

  const Checkpoint* checkpoint_;
  std::map<std::pair<std::string, std::string>, std::int64_t> index_;
  std::map<std::size_t, OpenFile> files_;
};

/// The manifest, its checksum and the sizes of all files are right; nothing is known of what is in them: who
/// believes their values hashes them too. Rank 0 reads and tells the others. Collective.
Checkpoint open_manifest(const std::string& path, HostGroup& group);

/// The files whose checksums are this rank's work, in order; each is one rank's. Where as many ranks read as
/// wrote, its own part.
std::vector<std::size_t> files_to_hash(const CheckpointManifest& manifest, const HostGroup& group);

/// Error unless what was computed of a checkpoint's file is what the manifest says.
void compare_checksum(const std::string& found, const std::string& path,
                      const CheckpointManifest::File& expected);

}  // namespace lapidary
