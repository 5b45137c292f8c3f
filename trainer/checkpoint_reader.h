// The values of a checkpoint's tensors by range, wherever its ranks wrote them. HDF5 takes no part: the
// manifest says where the bytes are.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>

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

  /// Elements [begin, begin + count), row-major, as they are stored. Error where a file ends too early.
  void read(const CheckpointManifest::Tensor& tensor, std::int64_t begin, std::int64_t count, void* to);

 private:
  const Checkpoint* checkpoint_;
  std::map<std::pair<std::string, std::string>, std::int64_t> index_;
  std::map<int, File> files_;
};

}  // namespace lapidary
