#include "tests/model/safetensors_writer.h"

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "kernels/check.h"
#include "kernels/json.h"

namespace lapidary {

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<StoredTensor> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path), tensors_(std::move(tensors)) {
  std::set<std::string> names;
  for (StoredTensor& tensor : tensors_) {
    require(names.insert(tensor.name).second && tensor.name != "__metadata__",
            "{}: {} cannot be written twice", path_, tensor.name);
    tensor.elements = checked_product(tensor.shape, path_ + ": " + tensor.name);
    missing_.push_back(tensor.elements);
  }
  const std::filesystem::path target(path_);
  hidden_.path = target.parent_path() / fmt::format(".{}.partial", target.filename().string());
  std::error_code ignored;
  std::filesystem::remove(hidden_.path, ignored);  // of a writer that was killed
  const std::string header = make_safetensors_header(tensors_, metadata);
  file_ = File::create(hidden_.path);
  file_.write_at(header.data(), header.size(), 0);
}

SafetensorsWriter::HiddenFile::~HiddenFile() {
  std::error_code ignored;
  if (!path.empty()) std::filesystem::remove(path, ignored);
}

void SafetensorsWriter::write(std::size_t tensor, std::int64_t first, std::int64_t count, const void* from) {
  const StoredTensor& to = tensors_.at(tensor);
  require(first >= 0 && count >= 0 && first <= to.elements && count <= to.elements - first &&
              count <= missing_[tensor],
          "{}: elements [{}, {} + {}) of {}, of which {} of {} are not yet written", path_, first, first,
          count, to.name, missing_[tensor], to.elements);
  const std::int64_t size = size_of(to.type);
  file_.write_at(from, static_cast<std::size_t>(count * size), to.offset + first * size);
  missing_[tensor] -= count;
}

void SafetensorsWriter::commit() {
  for (std::size_t i = 0; i < tensors_.size(); ++i)
    require(missing_[i] == 0, "{}: {} elements of {} were not written", path_, missing_[i], tensors_[i].name);
  file_.sync();
  file_.close();
  publish(hidden_.path, path_);
  hidden_.path.clear();
}

}  // namespace lapidary
