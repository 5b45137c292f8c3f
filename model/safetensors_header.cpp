#include "model/safetensors_header.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

using nlohmann::json;

struct TypeRow {
  StoredType type;
  const char* name;
  std::int64_t size;
};
constexpr std::array<TypeRow, 9> kTypes{{{StoredType::boolean, "BOOL", 1},
                                         {StoredType::u8, "U8", 1},
                                         {StoredType::i16, "I16", 2},
                                         {StoredType::f16, "F16", 2},
                                         {StoredType::bf16, "BF16", 2},
                                         {StoredType::i32, "I32", 4},
                                         {StoredType::f32, "F32", 4},
                                         {StoredType::f64, "F64", 8},
                                         {StoredType::i64, "I64", 8}}};

const TypeRow& row_of(StoredType type) {
  return kTypes[static_cast<std::size_t>(type)];
}

StoredType parse_type(const std::string& name, const std::string& where) {
  for (const TypeRow& row : kTypes)
    if (name == row.name) return row.type;
  fail("{}: dtype \"{:.40}\" is not one of F64, F32, F16, BF16, I64, I32, I16, U8, BOOL", where, name);
}

/// Offsets still count from the end of the header.
StoredTensor parse_tensor(const std::string& name, const json& description, std::int64_t data_bytes,
                          const std::string& where) {
  require(description.is_object() && description.size() == 3,
          "{}: expected an object with dtype, shape and data_offsets", where);
  StoredTensor tensor;
  tensor.name = name;
  tensor.type = parse_type(json_string(description, "dtype", where), where);
  tensor.shape = as_counts(json_member(description, "shape", json::value_t::array, where), where + ": shape");
  tensor.elements = checked_product(tensor.shape, where + ": shape");
  const auto range = as_counts(json_member(description, "data_offsets", json::value_t::array, where),
                               where + ": data_offsets");
  require(range.size() == 2 && range[0] <= range[1] && range[1] <= data_bytes,
          "{}: data_offsets [{}], expected a begin and an end within the {} bytes of tensors", where,
          fmt::join(range, ", "), data_bytes);
  std::int64_t bytes = 0;
  const bool fits = !__builtin_mul_overflow(tensor.elements, size_of(tensor.type), &bytes);
  require(fits && bytes == range[1] - range[0], "{}: {} [{}] does not take the {} bytes of data_offsets [{}]",
          where, name_of(tensor.type), fmt::join(tensor.shape, ", "), range[1] - range[0],
          fmt::join(range, ", "));
  tensor.offset = range[0];
  return tensor;
}

std::map<std::string, std::string> parse_metadata(const json& object, const std::string& where) {
  require(object.is_object(), "{}: expected an object of strings", where);
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.items()) {
    require(value.is_string(), "{}: \"{}\" is {}, expected a string", where, key, value.type_name());
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

}  // namespace

std::int64_t size_of(StoredType type) {
  return row_of(type).size;
}
const char* name_of(StoredType type) {
  return row_of(type).name;
}

bool is_float(StoredType type) {
  return type == StoredType::bf16 || type == StoredType::f16 || type == StoredType::f32 ||
         type == StoredType::f64;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, std::int64_t data_bytes,
                                           const std::string& where) {
  require(text.starts_with('{'), "{}: the header does not begin with '{{': not a safetensors file?", where);
  const json object = parse_json(text, where, 4);
  SafetensorsHeader header;
  for (const auto& [name, description] : object.items()) {
    if (name == "__metadata__")
      header.metadata = parse_metadata(description, where + ": __metadata__");
    else
      header.tensors.push_back(
          parse_tensor(name, description, data_bytes, fmt::format("{}: {:.200}", where, name)));
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::make_tuple(a.offset, a.bytes()) < std::make_tuple(b.offset, b.bytes());
  });
  std::int64_t end = 0;
  for (StoredTensor& tensor : header.tensors) {
    require(tensor.offset == end,
            "{}: {:.200}: begins at byte {} of the tensors, expected {}: a gap or an overlap", where,
            tensor.name, tensor.offset, end);
    end += tensor.bytes();
    tensor.offset += 8 + static_cast<std::int64_t>(text.size());
  }
  require(end == data_bytes, "{}: the tensors end at byte {} of {}", where, end, data_bytes);
  return header;
}

void sort_as_safetensors(std::vector<StoredTensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::tie(b.type, a.name) < std::tie(a.type, b.name);
  });
}

std::string make_safetensors_header(std::vector<StoredTensor>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + json(metadata).dump() + ",";
  std::int64_t at = 0;
  for (StoredTensor& tensor : tensors) {
    tensor.offset = at;
    at += tensor.bytes();
    text +=
        fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}},)", json(tensor.name).dump(),
                    name_of(tensor.type), fmt::join(tensor.shape, ","), tensor.offset, at);
  }
  if (text.back() == ',') text.pop_back();
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  for (StoredTensor& tensor : tensors) tensor.offset += 8 + static_cast<std::int64_t>(text.size());
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[static_cast<std::size_t>(i)] = static_cast<char>(text.size() >> (8 * i));
  return length + text;
}

SafetensorsHeader read_safetensors_header(const std::string& path) {
  const File file = File::open_to_read(path);
  const std::int64_t size = file.size();
  require(size >= 8, "{}: {} bytes: too short for a safetensors file", path, size);
  std::array<unsigned char, 8> raw{};
  file.read_at(raw.data(), 8, 0);
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < 8; ++i) length |= std::uint64_t{raw[i]} << (8 * i);
  const std::int64_t limit = std::min(size - 8, kLargestSafetensorsHeader);
  require(length <= static_cast<std::uint64_t>(limit),
          "{}: header length {}, expected at most {}: truncated, or not a safetensors file?", path, length,
          limit);
  std::string text(length, '\0');
  file.read_at(text.data(), text.size(), 8);
  return parse_safetensors_header(text, size - 8 - static_cast<std::int64_t>(length), path);
}

std::map<std::string, std::string> read_safetensors_index(const std::string& path) {
  const json index = read_json_file(path, kLargestSafetensorsHeader);
  std::map<std::string, std::string> file_of;
  for (const auto& [name, file] : json_member(index, "weight_map", json::value_t::object, path).items()) {
    require(file.is_string(), "{}: weight_map: {:.200} is {}, expected a file name", path, name,
            file.type_name());
    const auto text = file.get<std::string>();
    require(!text.empty() && text.front() != '.' && text.find('/') == std::string::npos &&
                text.find('\0') == std::string::npos,
            "{}: weight_map: {:.200}: \"{:.200}\" is not the name of a file beside the index", path, name,
            text);
    file_of[name] = text;
  }
  return file_of;
}

}  // namespace lapidary
