// The manifest of a checkpoint: which files it has, with sizes and checksums, and where in them every element
// of every tensor lies. It is checked against its own checksum first and is complete: reading needs no other
// list.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"

namespace lapidary {

struct CheckpointManifest {
  static constexpr int kVersion = 1;
  static constexpr const char* kFileName = "manifest.json";

  struct File {
    std::string name;  ///< in the checkpoint's folder
    std::int64_t bytes = 0;
    std::string checksum;  ///< XXH3-128
  };
  /// Elements [begin, begin + count) of the tensor are at byte `offset` of files[file].
  struct Slice {
    int file = 0;
    std::int64_t begin = 0, count = 0, offset = 0;
  };
  struct Tensor {
    std::string name, part;
    DType dtype = DType::f32;
    std::vector<std::int64_t> shape;
    std::vector<Slice> slices;  ///< in order, every element exactly once
    std::int64_t elements() const;
    std::int64_t bytes() const { return elements() * static_cast<std::int64_t>(size_of(dtype)); }
  };

  std::int64_t step = 0;
  int ranks = 0;        ///< that wrote it
  std::string program;  ///< version and commit
  std::optional<double> metric;
  nlohmann::json state = nlohmann::json::object();
  std::vector<File> files;
  std::vector<Tensor> tensors;

  const Tensor* find(const std::string& name, const std::string& part) const;
  std::int64_t bytes() const;  ///< of all files
};

/// Name of the tensor's dataset in the HDF5 files: the tensor's name, with ".<part>" behind it unless the
/// part is the weight itself.
std::string checkpoint_dataset(const std::string& name, const std::string& part);

/// Error, beginning with `where`, unless name, part and shape are such that every reader can show the tensor.
void check_checkpoint_tensor(const std::string& name, const std::string& part,
                             const std::vector<std::int64_t>& shape, const std::string& where);

/// Sorts a tensor's slices; Error naming the first element that no slice or more than one slice has.
void check_coverage(CheckpointManifest::Tensor& tensor, const std::string& where);

/// The file's text; its last line is the checksum of all before it.
std::string to_text(const CheckpointManifest& manifest);

/// Believes nothing: checksum, version, names, types, shapes, coverage, ranges within the files. `where`
/// starts every message.
CheckpointManifest parse_manifest(std::string_view text, const std::string& where);

/// A rank's tensors, as it reports them to rank 0, and back.
nlohmann::json to_json(const std::vector<CheckpointManifest::Tensor>& tensors);
std::vector<CheckpointManifest::Tensor> tensors_from_json(const nlohmann::json& json,
                                                          const std::string& where);
nlohmann::json to_json(const CheckpointManifest::File& file);
CheckpointManifest::File file_from_json(const nlohmann::json& json, const std::string& where);

}  // namespace lapidary
