// The weights of an export: safetensors files made of a checkpoint's files, which are read once.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/safetensors_header.h"
#include "parallel/host_group.h"
#include "trainer/checkpoint.h"

namespace lapidary {

/// A file as it is to be written.
struct ExportedFile {
  std::string name;
  std::vector<StoredTensor> tensors;  ///< name on disk, type, shape, elements; in the order wanted
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  std::int64_t bytes() const;  ///< of the tensors
};

/// Writes and syncs the files into `folder`, which nobody looks at yet. The checkpoint comes from
/// open_manifest(): nothing is known of its values. Every rank goes through its files of the checkpoint once,
/// hashes what it reads and writes it where it belongs. Error naming the first of them whose checksum is not
/// the manifest's; what was written is of no use then. Collective.
void export_weights(const Checkpoint& checkpoint, const std::string& folder,
                    const std::vector<ExportedFile>& files, HostGroup& group);

}  // namespace lapidary
