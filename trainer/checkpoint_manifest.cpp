#include "trainer/checkpoint_manifest.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

using nlohmann::json;
using Manifest = CheckpointManifest;

constexpr const char* kFormat = "lapidary checkpoint";
constexpr std::string_view kChecksumKey = "\"xxh3_128\":\"";
constexpr std::string_view kEnd = "\"}\n";
constexpr std::size_t kDigits = 32;

DType parse_dtype(const std::string& name, const std::string& where) {
  constexpr std::array kTypes = {DType::f32, DType::bf16, DType::f64, DType::i64,
                                 DType::i32, DType::i16,  DType::u8};
  for (const DType dtype : kTypes)
    if (name == name_of(dtype)) return dtype;
  fail("{}: dtype \"{:.40}\" is unknown", where, name);
}

json slices_to_json(const std::vector<Manifest::Slice>& slices) {
  json list = json::array();
  for (const auto& s : slices) list.push_back({s.file, s.begin, s.count, s.offset});
  return list;
}

Manifest::Slice slice_from_json(const json& value, const std::string& where) {
  const auto numbers = as_counts(value, where);
  require(numbers.size() == 4 && numbers[0] <= 1'000'000,
          "{}: found {}, expected [file, begin, count, offset]", where, fmt::join(numbers, ", "));
  return {static_cast<int>(numbers[0]), numbers[1], numbers[2], numbers[3]};
}

/// Slices must lie in their files.
void check_ranges(const Manifest& manifest, const std::string& where) {
  for (const Manifest::Tensor& tensor : manifest.tensors) {
    for (const Manifest::Slice& slice : tensor.slices) {
      require(slice.file < static_cast<int>(manifest.files.size()), "{}: {}: file number {} of {}", where,
              tensor.name, slice.file, manifest.files.size());
      const Manifest::File& file = manifest.files[static_cast<std::size_t>(slice.file)];
      const std::int64_t bytes = slice.count * static_cast<std::int64_t>(size_of(tensor.dtype));
      require(slice.offset <= file.bytes && bytes <= file.bytes - slice.offset,
              "{}: {}: bytes [{}, {} + {}) lie outside {}, which has {}", where, tensor.name, slice.offset,
              slice.offset, bytes, file.name, file.bytes);
    }
  }
}

std::string list_text(const json& items) {  // one item a line: for people, diff and grep
  std::string text = "[";
  for (const json& item : items) text += (text.size() == 1 ? "\n" : ",\n") + item.dump();
  return text + "]";
}

void compare_checksum(std::string_view text, const std::string& where) {
  const std::size_t tail = kDigits + kEnd.size();
  require(text.size() > tail && text.ends_with(kEnd) &&
              text.substr(0, text.size() - tail).ends_with(kChecksumKey),
          "{}: does not end with its checksum: truncated or damaged", where);
  const std::string_view body = text.substr(0, text.size() - tail);
  const std::string_view recorded = text.substr(body.size(), kDigits);
  const std::string found = checksum_of(body);
  require(found == recorded, "{}: damaged: checksum {}, expected {}", where, found, recorded);
}

}  // namespace

std::int64_t Manifest::Tensor::elements() const {
  return checked_product(shape, name);
}

const Manifest::Tensor* Manifest::find(const std::string& name, const std::string& part) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const Tensor& t) { return t.name == name && t.part == part; });
  return found == tensors.end() ? nullptr : &*found;
}

std::int64_t Manifest::bytes() const {
  std::int64_t sum = 0;
  for (const File& file : files) sum += file.bytes;
  return sum;
}

std::string checkpoint_dataset(const std::string& name, const std::string& part) {
  return part == "weight" ? name : name + "." + part;
}

void check_checkpoint_tensor(const std::string& name, const std::string& part,
                             const std::vector<std::int64_t>& shape, const std::string& where) {
  const auto plain = [](char c) { return c > ' ' && c != '/' && c != '\x7f'; };
  require(!name.empty() && name.size() <= 500 && name.front() != '.' &&
              std::all_of(name.begin(), name.end(), plain),
          "{}: tensor name \"{:.100}\" is empty, too long or has characters other than printable ASCII",
          where, name);
  const auto word = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  require(!part.empty() && part.size() <= 50 && std::all_of(part.begin(), part.end(), word),
          "{}: {}: part \"{:.60}\", expected lower-case letters, digits and _", where, name, part);
  require(!shape.empty() && shape.size() <= 8 && std::find(shape.begin(), shape.end(), 0) == shape.end(),
          "{}: {}: shape [{}], expected 1 to 8 dimensions, none of them 0", where, name,
          fmt::join(shape, ", "));
}

void check_coverage(Manifest::Tensor& tensor, const std::string& where) {
  std::sort(tensor.slices.begin(), tensor.slices.end(),
            [](const Manifest::Slice& a, const Manifest::Slice& b) { return a.begin < b.begin; });
  const std::int64_t elements = tensor.elements();
  std::int64_t next = 0;
  for (const Manifest::Slice& slice : tensor.slices) {
    require(slice.begin >= next, "{}: {} ({}): element {} is there twice", where, tensor.name, tensor.part,
            slice.begin);
    require(slice.begin == next, "{}: {} ({}): nobody has elements [{}, {})", where, tensor.name, tensor.part,
            next, slice.begin);
    require(slice.count > 0 && slice.count <= elements - next, "{}: {} ({}): elements [{}, {} + {}) of {}",
            where, tensor.name, tensor.part, slice.begin, slice.begin, slice.count, elements);
    next += slice.count;
  }
  require(next == elements, "{}: {} ({}): nobody has elements [{}, {})", where, tensor.name, tensor.part,
          next, elements);
}

json to_json(const std::vector<Manifest::Tensor>& tensors) {
  json list = json::array();
  for (const Manifest::Tensor& t : tensors)
    list.push_back({{"name", t.name},
                    {"part", t.part},
                    {"dtype", name_of(t.dtype)},
                    {"shape", t.shape},
                    {"slices", slices_to_json(t.slices)}});
  return list;
}

std::vector<Manifest::Tensor> tensors_from_json(const json& list, const std::string& where) {
  std::vector<Manifest::Tensor> tensors;
  for (const json& item : list) {
    Manifest::Tensor tensor;
    tensor.name = json_string(item, "name", where);
    const std::string place = fmt::format("{}: {:.500}", where, tensor.name);
    tensor.part = json_string(item, "part", place);
    tensor.dtype = parse_dtype(json_string(item, "dtype", place), place);
    tensor.shape = as_counts(json_member(item, "shape", json::value_t::array, place), place);
    check_checkpoint_tensor(tensor.name, tensor.part, tensor.shape, where);
    const std::int64_t elements = checked_product(tensor.shape, place);
    require(elements <= INT64_MAX / static_cast<std::int64_t>(size_of(tensor.dtype)),
            "{}: shape [{}] is too large", place, fmt::join(tensor.shape, ", "));
    for (const json& slice : json_member(item, "slices", json::value_t::array, place))
      tensor.slices.push_back(slice_from_json(slice, place));
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

json to_json(const Manifest::File& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.checksum}};
}

Manifest::File file_from_json(const json& item, const std::string& where) {
  Manifest::File file{json_string(item, "name", where), json_count(item, "bytes", where),
                      json_string(item, "xxh3_128", where)};
  require(!file.name.empty() && file.name.front() != '.' && file.name.find('/') == std::string::npos &&
              file.name.find('\0') == std::string::npos && file.name != Manifest::kFileName,
          "{}: \"{:.200}\" is not the name of a file of a checkpoint", where, file.name);
  return file;
}

std::string to_text(const Manifest& manifest) {
  json files = json::array();
  for (const auto& file : manifest.files) files.push_back(to_json(file));
  const json metric = manifest.metric ? json(*manifest.metric) : json();
  std::string text = fmt::format(
      "{{\"format\":\"{}\",\n\"version\":{},\n\"step\":{},\n\"ranks\":{},\n\"program\":{},\n\"metric\":{},\n"
      "\"state\":{},\n\"files\":{},\n\"tensors\":{},\n{}",
      kFormat, Manifest::kVersion, manifest.step, manifest.ranks, json(manifest.program).dump(),
      metric.dump(), manifest.state.dump(), list_text(files), list_text(to_json(manifest.tensors)),
      kChecksumKey);
  text += checksum_of(text);
  text += kEnd;
  return text;
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
  compare_checksum(text, where);
  const json object = parse_json(text, where);
  require(json_string(object, "format", where) == kFormat, "{}: format \"{:.60}\", expected \"{}\"", where,
          json_string(object, "format", where), kFormat);
  const std::int64_t version = json_count(object, "version", where);
  require(version == Manifest::kVersion, "{}: format version {}, this program reads version {}", where,
          version, Manifest::kVersion);
  Manifest manifest;
  manifest.step = json_count(object, "step", where);
  manifest.ranks = static_cast<int>(std::min<std::int64_t>(json_count(object, "ranks", where), 1'000'000));
  manifest.program = json_string(object, "program", where);
  const auto metric = object.find("metric");
  if (metric != object.end() && metric->is_number()) manifest.metric = metric->get<double>();
  manifest.state = json_member(object, "state", json::value_t::object, where);
  for (const json& item : json_member(object, "files", json::value_t::array, where))
    manifest.files.push_back(file_from_json(item, where));
  manifest.tensors = tensors_from_json(json_member(object, "tensors", json::value_t::array, where), where);
  std::set<std::string> names;
  for (Manifest::Tensor& tensor : manifest.tensors) {
    require(names.insert(checkpoint_dataset(tensor.name, tensor.part)).second, "{}: {} ({}) is there twice",
            where, tensor.name, tensor.part);
    check_coverage(tensor, where);
  }
  check_ranges(manifest, where);
  return manifest;
}

}  // namespace lapidary
