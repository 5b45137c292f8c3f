#include "kernels/hdf5_file.h"

#include <hdf5.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/check.h"

namespace lapidary {

namespace {

/// Owns any kind of HDF5 identifier.
class Id {
 public:
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Id& operator=(Id&&) = delete;
  ~Id() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }  // so that it can be passed to the C API
  bool ok() const { return id_ >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

/// The innermost entry of the library's error stack says what really happened.
std::string library_reason() {
  std::string reason;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
        auto& text = *static_cast<std::string*>(out);
        if (text.empty() && entry->desc) text = entry->desc;
        return 0;
      },
      &reason);
  H5Eclear2(H5E_DEFAULT);
  return reason.empty() ? "no reason given" : reason;
}

template <class... Args>
[[noreturn]] void hdf5_error(const std::filesystem::path& path, fmt::format_string<Args...> format,
                             Args&&... args) {
  const std::string reason = library_reason();
  fail("{}: {} (HDF5: {})", path.string(), fmt::format(format, std::forward<Args>(args)...), reason);
}

/// The library's error printing is a setting of each thread, so every entry into this file calls it.
void prepare_thread() {
  static const bool once = [] {
    // A file that could not be closed (disk full) stays in the library's tables, and its exit handler crashes
    // on it.
    H5dont_atexit();
    hbool_t safe = false;
    H5is_library_threadsafe(&safe);
    require(safe, "HDF5 {} was built without thread safety: the serial, thread-safe build is needed",
            H5_VERS_INFO);
    H5PLset_loading_state(0);  // no plugin that a file asks for is ever loaded
    return true;
  }();
  static_cast<void>(once);
  thread_local const herr_t silenced = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  static_cast<void>(silenced);
}

Id access_properties() {
  Id properties(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(properties, false, true);
  H5Pset_fclose_degree(properties, H5F_CLOSE_SEMI);
  // Large arrays start on a page, so that direct reads of them are aligned.
  H5Pset_alignment(properties, 64 << 10, 4 << 10);
  return properties;
}

Id file_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return Id(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
    case DType::f64:
      return Id(H5Tcopy(H5T_IEEE_F64LE), H5Tclose);
    case DType::i64:
      return Id(H5Tcopy(H5T_STD_I64LE), H5Tclose);
    case DType::i32:
      return Id(H5Tcopy(H5T_STD_I32LE), H5Tclose);
    case DType::i16:
      return Id(H5Tcopy(H5T_STD_I16LE), H5Tclose);
    case DType::u8:
      return Id(H5Tcopy(H5T_STD_U8LE), H5Tclose);
    case DType::bf16: {
      Id type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
      H5Tset_fields(type, 15, 7, 8, 0, 7);  // sign bit, exponent at 7 (8 bits), mantissa at 0 (7 bits)
      H5Tset_size(type, 2);
      H5Tset_ebias(type, 127);
      return type;
    }
  }
  fail("hdf5: element type {} cannot be stored", static_cast<int>(dtype));
}

bool element_type(hid_t type, DType& found) {
  for (const DType dtype :
       {DType::f32, DType::bf16, DType::f64, DType::i64, DType::i32, DType::i16, DType::u8}) {
    if (H5Tequal(type, file_type(dtype)) > 0) {
      found = dtype;
      return true;
    }
  }
  return false;
}

Id simple_space(const std::vector<std::int64_t>& dims) {
  const std::vector<hsize_t> extent(dims.begin(), dims.end());
  return Id(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), H5Sclose);
}

Id open_dataset(const std::filesystem::path& path, hid_t file, const std::string& name) {
  Id dataset(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!dataset.ok()) hdf5_error(path, "dataset '{}' cannot be opened", name);
  return dataset;
}

Hdf5Shape shape_of(const std::filesystem::path& path, hid_t dataset, const std::string& name) {
  Hdf5Shape shape;
  const Id space(H5Dget_space(dataset), H5Sclose), type(H5Dget_type(dataset), H5Tclose);
  const Id properties(H5Dget_create_plist(dataset), H5Pclose);
  if (!space.ok() || !type.ok() || !properties.ok())
    hdf5_error(path, "dataset '{}' cannot be described", name);
  const int rank = H5Sget_simple_extent_ndims(space);
  require(rank >= 1 && rank <= 8, "{}: dataset '{}' has {} dimensions, expected 1 to 8", path.string(), name,
          rank);
  require(element_type(type, shape.dtype), "{}: dataset '{}' has an element type that is none of ours",
          path.string(), name);
  require(H5Pget_external_count(properties) == 0, "{}: dataset '{}' keeps its values in another file",
          path.string(), name);
  hsize_t dims[8] = {};
  H5Sget_simple_extent_dims(space, dims, nullptr);
  auto elements = static_cast<hsize_t>(size_of(shape.dtype));
  for (int d = 0; d < rank; ++d) {
    require(dims[d] == 0 || elements <= std::numeric_limits<std::int64_t>::max() / dims[d],
            "{}: dataset '{}' claims more bytes than a file can hold", path.string(), name);
    elements *= std::max<hsize_t>(dims[d], 1);
    shape.dims.push_back(static_cast<std::int64_t>(dims[d]));
  }
  const haddr_t offset = H5Dget_offset(dataset);
  H5Eclear2(H5E_DEFAULT);  // asking a dataset without an offset leaves an entry
  if (offset != HADDR_UNDEF) shape.offset = static_cast<std::int64_t>(offset);
  return shape;
}

/// Selects rows [first, first + rows) in the file and makes the matching memory space.
std::pair<Id, Id> row_selection(const std::filesystem::path& path, hid_t dataset, const std::string& name,
                                const Hdf5Shape& shape, std::int64_t first, std::int64_t rows) {
  require(first >= 0 && rows >= 0 && first <= shape.dims[0] - rows,
          "{}: dataset '{}' has {} rows, asked for [{}, {})", path.string(), name, shape.dims[0], first,
          first + rows);
  std::vector<hsize_t> start(shape.dims.size(), 0), count(shape.dims.begin(), shape.dims.end());
  start[0] = static_cast<hsize_t>(first);
  count[0] = static_cast<hsize_t>(rows);
  Id space(H5Dget_space(dataset), H5Sclose);
  Id memory(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr), H5Sclose);
  if (!space.ok() || !memory.ok() ||
      H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr) < 0) {
    hdf5_error(path, "dataset '{}': rows [{}, {}) cannot be selected", name, first, first + rows);
  }
  return {std::move(space), std::move(memory)};
}

void add_attribute(const std::filesystem::path& path, hid_t file, const std::string& name, hid_t type,
                   const void* value) {
  const Id space(H5Screate(H5S_SCALAR), H5Sclose);
  const Id attribute(H5Acreate2(file, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (!attribute.ok() || H5Awrite(attribute, type, value) < 0) {
    hdf5_error(path, "attribute '{}' cannot be written", name);
  }
}

}  // namespace

std::int64_t Hdf5Shape::elements() const {
  std::int64_t n = 1;
  for (const std::int64_t d : dims) n *= d;
  return n;
}

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  prepare_thread();
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access_properties());
  if (id < 0) hdf5_error(path, "cannot be created");
  return Hdf5File(path, id);
}

Hdf5File Hdf5File::create_in_memory(const File& memory) {
  prepare_thread();
  const Id access = access_properties();
  H5Pset_fapl_stdio(
      access);  // the default driver insists on resolving links, and such a path is one to nowhere
  const hid_t id = H5Fcreate(memory.path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  if (id < 0) hdf5_error(memory.path(), "cannot be created");
  return Hdf5File(memory.path(), id);
}

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  prepare_thread();
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access_properties());
  if (id < 0) hdf5_error(path, "cannot be opened as an HDF5 file");
  return Hdf5File(path, id);
}

Hdf5File::Hdf5File(Hdf5File&& other) noexcept
    : path_(std::move(other.path_)), id_(std::exchange(other.id_, -1)) {}

Hdf5File::~Hdf5File() {
  if (id_ < 0) return;
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  H5Fclose(id_);
}

void Hdf5File::close() {
  prepare_thread();
  const hid_t id = std::exchange(id_, -1);
  if (id >= 0 && H5Fclose(id) < 0) hdf5_error(path_, "cannot be closed: what was written may be incomplete");
}

void Hdf5File::create_dataset(const std::string& name, DType dtype, const std::vector<std::int64_t>& dims) {
  prepare_thread();
  require(!dims.empty(), "{}: dataset '{}' needs at least one dimension", path_.string(), name);
  const Id space = simple_space(dims);
  const Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose), layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  H5Pset_layout(layout, H5D_CONTIGUOUS);
  H5Pset_alloc_time(layout, H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(layout, H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(layout, false);  // equal contents make equal files
  const Id dataset(H5Dcreate2(id_, name.c_str(), file_type(dtype), space, links, layout, H5P_DEFAULT),
                   H5Dclose);
  if (!dataset.ok()) hdf5_error(path_, "dataset '{}' cannot be created", name);
}

void Hdf5File::create_virtual_dataset(const std::string& name, DType dtype,
                                      const std::vector<std::int64_t>& dims,
                                      const std::vector<Hdf5Block>& blocks) {
  prepare_thread();
  const Id space = simple_space(dims), type = file_type(dtype);
  const Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose), layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  H5Pset_obj_track_times(layout, false);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const bool is_float = H5Tget_class(type) == H5T_FLOAT;
  if (is_float && H5Pset_fill_value(layout, H5T_NATIVE_FLOAT, &nan) < 0)
    hdf5_error(path_, "dataset '{}': no fill value", name);
  for (const Hdf5Block& block : blocks) {
    require(block.start.size() == dims.size() && block.count.size() == dims.size(),
            "{}: dataset '{}': a block has other dimensions", path_.string(), name);
    const std::vector<hsize_t> start(block.start.begin(), block.start.end());
    const std::vector<hsize_t> count(block.count.begin(), block.count.end());
    hsize_t first = static_cast<hsize_t>(block.first), values = 1;
    for (const hsize_t n : count) values *= n;
    const Id source = simple_space({block.length});
    if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr) < 0 ||
        H5Sselect_hyperslab(source, H5S_SELECT_SET, &first, nullptr, &values, nullptr) < 0 ||
        H5Pset_virtual(layout, space, block.file.c_str(), block.dataset.c_str(), source) < 0)
      hdf5_error(path_, "dataset '{}': a block cannot be mapped to {}", name, block.file);
  }
  H5Sselect_all(space);
  const Id dataset(H5Dcreate2(id_, name.c_str(), type, space, links, layout, H5P_DEFAULT), H5Dclose);
  if (!dataset.ok()) hdf5_error(path_, "dataset '{}' cannot be created", name);
}

void Hdf5File::write_rows(const std::string& name, std::int64_t first, std::int64_t rows,
                          const void* values) {
  prepare_thread();
  const Id dataset = open_dataset(path_, id_, name);
  const Hdf5Shape shape = shape_of(path_, dataset, name);
  const auto [space, memory] = row_selection(path_, dataset, name, shape, first, rows);
  if (shape.elements() == 0 || rows == 0) return;
  if (H5Dwrite(dataset, file_type(shape.dtype), memory, space, H5P_DEFAULT, values) < 0) {
    hdf5_error(path_, "dataset '{}': rows [{}, {}) cannot be written", name, first, first + rows);
  }
}

void Hdf5File::write(const std::string& name, DType dtype, const std::vector<std::int64_t>& dims,
                     const void* values) {
  create_dataset(name, dtype, dims);
  write_rows(name, 0, dims[0], values);
}

void Hdf5File::write_attribute(const std::string& name, std::int64_t value) {
  prepare_thread();
  add_attribute(path_, id_, name, H5T_NATIVE_INT64, &value);
}

void Hdf5File::write_attribute(const std::string& name, const std::string& text) {
  prepare_thread();
  const Id type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, text.size() + 1);
  H5Tset_cset(type, H5T_CSET_UTF8);
  add_attribute(path_, id_, name, type, text.c_str());
}

bool Hdf5File::contains(const std::string& name) const {
  prepare_thread();
  for (std::size_t end = name.find('/'); end != std::string::npos; end = name.find('/', end + 1)) {
    if (end > 0 && H5Lexists(id_, name.substr(0, end).c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return H5Lexists(id_, name.c_str(), H5P_DEFAULT) > 0;
}

Hdf5Shape Hdf5File::shape(const std::string& name) const {
  prepare_thread();
  return shape_of(path_, open_dataset(path_, id_, name), name);
}

void Hdf5File::read_rows(const std::string& name, DType dtype, std::int64_t first, std::int64_t rows,
                         void* out) const {
  prepare_thread();
  const Id dataset = open_dataset(path_, id_, name);
  const Hdf5Shape shape = shape_of(path_, dataset, name);
  require(shape.dtype == dtype, "{}: dataset '{}' holds {}, expected {}", path_.string(), name,
          name_of(shape.dtype), name_of(dtype));
  const auto [space, memory] = row_selection(path_, dataset, name, shape, first, rows);
  if (shape.elements() == 0 || rows == 0) return;
  if (H5Dread(dataset, file_type(dtype), memory, space, H5P_DEFAULT, out) < 0) {
    hdf5_error(path_, "dataset '{}': rows [{}, {}) cannot be read", name, first, first + rows);
  }
}

std::int64_t Hdf5File::integer_attribute(const std::string& name) const {
  prepare_thread();
  const Id attribute(H5Aopen(id_, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.ok()) hdf5_error(path_, "attribute '{}' is missing", name);
  const Id type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
  std::int64_t value = 0;
  require(H5Tget_class(type) == H5T_INTEGER && H5Sget_simple_extent_npoints(space) == 1,
          "{}: attribute '{}' is not one integer", path_.string(), name);
  if (H5Aread(attribute, H5T_NATIVE_INT64, &value) < 0)
    hdf5_error(path_, "attribute '{}' cannot be read", name);
  return value;
}

std::string Hdf5File::text_attribute(const std::string& name) const {
  prepare_thread();
  const Id attribute(H5Aopen(id_, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.ok()) hdf5_error(path_, "attribute '{}' is missing", name);
  const Id type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
  require(H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 &&
              H5Sget_simple_extent_npoints(space) == 1,
          "{}: attribute '{}' is not one string of fixed length", path_.string(), name);
  std::string text(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, text.data()) < 0) hdf5_error(path_, "attribute '{}' cannot be read", name);
  text.resize(std::min(text.find('\0'), text.size()));
  return text;
}

std::vector<std::string> Hdf5File::datasets() const {
  prepare_thread();
  std::vector<std::string> names;
  const herr_t visited = H5Ovisit2(
      id_, H5_INDEX_NAME, H5_ITER_INC,
      [](hid_t, const char* name, const H5O_info_t* info, void* out) -> herr_t {
        if (info->type == H5O_TYPE_DATASET) static_cast<std::vector<std::string>*>(out)->emplace_back(name);
        return 0;
      },
      &names, H5O_INFO_BASIC);
  if (visited < 0) hdf5_error(path_, "its datasets cannot be listed");
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace lapidary
