// Writes the safetensors files that tests read: loaded by other libraries and, for the same tensors, byte for
// byte what the safetensors library writes. (An export makes its files of blocks:
// trainer/checkpoint_export_weights.cpp.)
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/file.h"
#include "model/safetensors_header.h"

namespace lapidary {

/// Writes into a hidden file beside `path` and publishes it whole with commit(). Without commit(), an
/// exception on the way included, the destructor removes it and whatever was at `path` stays as it was.
class SafetensorsWriter {
 public:
  /// name, type and shape of every tensor, in the order wanted in the file; the other members are filled in
  /// here.
  SafetensorsWriter(const std::string& path, std::vector<StoredTensor> tensors,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  const std::vector<StoredTensor>& tensors() const { return tensors_; }

  /// Elements [first, first + count) of tensors()[tensor], as they are to be stored. Any order; each element
  /// once.
  void write(std::size_t tensor, std::int64_t first, std::int64_t count, const void* from);

  /// Error if any element was not written. fsync, rename, fsync of the folder.
  void commit();

 private:
  struct HiddenFile {  ///< removed when it goes, unless its path was cleared
    std::string path;
    ~HiddenFile();
  };
  std::string path_;
  HiddenFile hidden_;
  std::vector<StoredTensor> tensors_;
  std::vector<std::int64_t> missing_;  ///< elements not yet written, of each tensor
  File file_;
};

}  // namespace lapidary
