// An HDF5 file for data shards and checkpoints: a small owner around the C API of the serial, thread-safe
// library. Datasets are contiguous arrays of our element types, named by path, or virtual ones made of blocks
// of those; there are no variable-length types, filters or links. The library crashes on damaged files: check
// a file against its recorded checksum (checksum.h) before it is opened here.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/file.h"

namespace lapidary {

/// What a file says about one dataset.
struct Hdf5Shape {
  DType dtype = DType::f32;
  std::vector<std::int64_t> dims;
  std::int64_t offset = -1;  ///< where its bytes stand in the file; -1: empty or not contiguous

  std::int64_t elements() const;
};

/// A block of a virtual dataset whose values stand elsewhere: in row-major order they are the elements
/// [first, first + product of count) of a one-dimensional dataset.
struct Hdf5Block {
  std::vector<std::int64_t> start, count;  ///< of the block, one number per dimension
  std::string file;                        ///< name of the file that holds the values, beside this one
  std::string dataset;                     ///< in that file, of the same element type
  std::int64_t first = 0;
  std::int64_t length = 0;  ///< of that dataset
};

/// Every failure throws Error naming the file, the dataset and the library's own reason. Elements are
/// little-endian; bf16 is a two-byte float type of its own, which h5py reads as float32. Separate objects may
/// be used from separate threads (the library has one lock inside); one object belongs to one thread at a
/// time.
class Hdf5File {
 public:
  /// Replaces what is there. File locks are off: they fail on some network file systems and nobody shares a
  /// file.
  static Hdf5File create(const std::filesystem::path& path);
  /// Writes into a File::in_memory(), which must outlive this object. The library does not survive a failing
  /// disk (what it could not write makes it crash later), so files that matter are laid out here, without the
  /// values of large datasets, and brought to the disk by their writer.
  static Hdf5File create_in_memory(const File& memory);
  static Hdf5File open(const std::filesystem::path& path);  ///< read-only
  Hdf5File(Hdf5File&& other) noexcept;
  Hdf5File& operator=(Hdf5File&&) = delete;
  Hdf5File(const Hdf5File&) = delete;
  /// Closes without reporting errors: after writing, call close().
  ~Hdf5File();

  /// Flushes and closes; nothing may be called afterwards. Does not sync: see file.h.
  void close();

  /// A dataset of `dims` (row-major, at least one dimension; sizes may be 0), not yet filled. Groups in
  /// `name` are created ("model/layers"); names are otherwise free.
  void create_dataset(const std::string& name, DType dtype, const std::vector<std::int64_t>& dims);
  /// Fills rows [first, first + rows) of the first dimension.
  void write_rows(const std::string& name, std::int64_t first, std::int64_t rows, const void* values);
  /// Creates and fills a dataset.
  void write(const std::string& name, DType dtype, const std::vector<std::int64_t>& dims, const void* values);
  template <class T>
  void write(const std::string& name, const std::vector<T>& values) {
    write(name, DTypeOf<T>::value, {static_cast<std::int64_t>(values.size())}, values.data());
  }
  /// A dataset without values of its own: readers see those of other files in its blocks (HDF5's virtual
  /// datasets). Elements in no block, or whose file is gone, read as NaN in float types, as 0 in others.
  void create_virtual_dataset(const std::string& name, DType dtype, const std::vector<std::int64_t>& dims,
                              const std::vector<Hdf5Block>& blocks);
  /// Attributes of the file's root.
  void write_attribute(const std::string& name, std::int64_t value);
  void write_attribute(const std::string& name, const std::string& text);

  bool contains(const std::string& name) const;
  Hdf5Shape shape(const std::string& name) const;
  /// Reads rows [first, first + rows) into `out`; Error where the dataset's element type is not `dtype`.
  void read_rows(const std::string& name, DType dtype, std::int64_t first, std::int64_t rows,
                 void* out) const;
  /// A whole dataset, row-major.
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const Hdf5Shape found = shape(name);
    std::vector<T> values(static_cast<std::size_t>(found.elements()));
    read_rows(name, DTypeOf<T>::value, 0, found.dims[0], values.data());
    return values;
  }
  std::int64_t integer_attribute(const std::string& name) const;
  std::string text_attribute(const std::string& name) const;
  /// Full names of all datasets, sorted.
  std::vector<std::string> datasets() const;

  const std::filesystem::path& path() const { return path_; }

 private:
  Hdf5File(std::filesystem::path path, std::int64_t id) : path_(std::move(path)), id_(id) {}

  std::filesystem::path path_;
  std::int64_t id_ = -1;  // hid_t, kept out of the header so that users do not need HDF5's
};

}  // namespace lapidary
