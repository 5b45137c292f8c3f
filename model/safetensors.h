// Reads model folders and files as Hugging Face libraries write them. Tensors are read by element range, so
// that each rank takes only its part from the disk, and converted on the way.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "model/safetensors_header.h"

namespace lapidary {

/// All tensors of one .safetensors file, or of a folder with model.safetensors or
/// model.safetensors.index.json and the files it names. The constructor reads and checks headers only. Files
/// are opened for each read and nothing is cached: reading is safe from several threads. Errors (bad input)
/// name the file and the tensor: see safetensors_header.h; besides, index and files must agree in both
/// directions, and a name may appear in one file only.
class Safetensors {
 public:
  explicit Safetensors(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<std::string>& files() const { return files_; }       ///< paths
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  ///< by file, then by place in it
  const std::map<std::string, std::string>& metadata() const { return metadata_; }  ///< of the first file
  const StoredTensor* find(const std::string& name) const;  ///< nullptr: there is none
  const StoredTensor& at(const std::string& name) const;    ///< Error: there is none

  /// Elements [first, first + count), row-major, as they are stored.
  void read_bytes(const StoredTensor& tensor, std::int64_t first, std::int64_t count, void* to) const;

  /// The same, converted. float, double and bf16 take F64, F32, F16 and BF16 (to nearest even; F64 reaches
  /// bf16 by way of float, as in PyTorch); int64 takes I64, I32, I16, U8 and BOOL. Anything else is an Error.
  template <class T>
  void read(const StoredTensor& tensor, std::int64_t first, std::int64_t count, T* to) const;

  /// A whole tensor by name.
  template <class T>
  std::vector<T> read_all(const std::string& name) const {
    const StoredTensor& tensor = at(name);
    std::vector<T> values(static_cast<std::size_t>(tensor.elements));
    read(tensor, 0, tensor.elements, values.data());
    return values;
  }

 private:
  void add_file(const std::string& path);
  void add_folder(const std::string& folder);

  std::string path_;
  std::vector<std::string> files_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::size_t> index_;  ///< name -> tensors_
  std::map<std::string, std::string> metadata_;
};

extern template void Safetensors::read(const StoredTensor&, std::int64_t, std::int64_t, float*) const;
extern template void Safetensors::read(const StoredTensor&, std::int64_t, std::int64_t, double*) const;
extern template void Safetensors::read(const StoredTensor&, std::int64_t, std::int64_t, bf16*) const;
extern template void Safetensors::read(const StoredTensor&, std::int64_t, std::int64_t, std::int64_t*) const;

/// IEEE half precision to float, exactly, and back to nearest even; a NaN keeps what fits of its payload.
float half_to_float(std::uint16_t bits);
std::uint16_t float_to_half(float value);

}  // namespace lapidary
