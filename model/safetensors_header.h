// The header of a safetensors file: 8 bytes of little-endian length, a JSON object that gives every tensor's
// type, shape and byte range, then the tensors without gaps. Files come from elsewhere, so nothing in a
// header is believed before it was checked against the file's size.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

/// Element types that we read, ordered as the safetensors library lays them out in a file: the last one
/// first.
enum class StoredType : std::uint8_t { boolean, u8, i16, f16, bf16, i32, f32, f64, i64 };

std::int64_t size_of(StoredType type);  ///< bytes
const char* name_of(StoredType type);   ///< "BF16"
bool is_float(StoredType type);

struct StoredTensor {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;  ///< may be empty (a scalar) and may contain 0
  std::int64_t elements = 0;
  std::int64_t offset = 0;  ///< byte in the file where its first element lies
  int file = 0;             ///< index into the files of the reader
  std::int64_t bytes() const { return elements * size_of(type); }
};

struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;  ///< in the order of their bytes
  std::map<std::string, std::string> metadata;
};

/// No header is longer; the safetensors library has the same limit.
inline constexpr std::int64_t kLargestSafetensorsHeader = 100'000'000;

/// text: the JSON object, between byte 8 and the tensors; data_bytes: how many bytes follow it. Error,
/// beginning with `where`, for anything but a JSON object with unique keys, known types, shapes whose checked
/// product is the byte range, and byte ranges that follow each other from 0 to data_bytes.
SafetensorsHeader parse_safetensors_header(std::string_view text, std::int64_t data_bytes,
                                           const std::string& where);

/// The order in which the safetensors library lays tensors out: wider types first, then by name.
void sort_as_safetensors(std::vector<StoredTensor>& tensors);

/// The inverse of parsing: length, JSON and padding as the safetensors library writes them, byte for byte,
/// for tensors in the given order. Sets their offset.
std::string make_safetensors_header(std::vector<StoredTensor>& tensors,
                                    const std::map<std::string, std::string>& metadata);

/// Reads and checks the header of a file.
SafetensorsHeader read_safetensors_header(const std::string& path);

/// Which file holds a tensor, from model.safetensors.index.json. File names with a folder in them are an
/// Error.
std::map<std::string, std::string> read_safetensors_index(const std::string& path);

}  // namespace lapidary
