// Any bytes as the shard of a checkpoint whose manifest vouches for them: loading gives an Error or values,
// and verify a verdict, in this process no crash (HDF5 itself runs in a child of verify's).
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"

namespace {

using namespace lapidary;

struct Folder {
  std::string path;
  CheckpointManifest manifest;
  std::vector<float> values = std::vector<float>(1000);
  std::vector<CheckpointTensor> tensors{{"w", "weight", DType::f32, {10, 100}, {{0, 1000, values.data()}}}};

  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lapidary-fuzz-XXXXXX").string();
    HostGroup alone;
    path = write_checkpoint(mkdtemp(pattern.data()), 1, tensors, "{}", alone);
    manifest = read_manifest(path);
  }
  ~Folder() { std::filesystem::remove_all(std::filesystem::path(path).parent_path()); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void put(const std::string& name, const std::string& bytes) const {
    std::ofstream(path + "/" + name, std::ios::binary) << bytes;  // no fsync: it is read at once
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  static Folder folder;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  CheckpointManifest manifest = folder.manifest;
  manifest.files[0].bytes = static_cast<std::int64_t>(size);
  manifest.files[0].checksum = checksum_of(bytes);
  folder.put(manifest.files[0].name, bytes);
  folder.put(CheckpointManifest::kFileName, to_text(manifest));
  HostGroup alone;
  try {
    restore_checkpoint(folder.path, folder.tensors, alone);
  } catch (const Error&) {
  }
  std::ostringstream out;
  verify_checkpoint(folder.path, out);
  if (out.str().empty()) std::abort();
  return 0;
}
