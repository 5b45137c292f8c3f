#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

struct half {
  std::uint16_t bits;
  explicit operator float() const { return half_to_float(bits); }
};

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, bf16>)
    return bf16(static_cast<float>(value));
  else if constexpr (std::is_same_v<From, bf16> || std::is_same_v<From, half>)
    return static_cast<To>(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

template <class From, class To>
void convert_piece(const std::byte* from, std::int64_t count, To* to) {
  for (std::int64_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, from + i * static_cast<std::int64_t>(sizeof(From)), sizeof(From));
    to[i] = convert<To>(value);
  }
}

/// The function that converts `type` to T, or nullptr if that is not allowed.
template <class T>
auto converter(StoredType type) -> void (*)(const std::byte*, std::int64_t, T*) {
  if constexpr (std::is_same_v<T, std::int64_t>) {
    switch (type) {
      case StoredType::i64:
        return convert_piece<std::int64_t, T>;
      case StoredType::i32:
        return convert_piece<std::int32_t, T>;
      case StoredType::i16:
        return convert_piece<std::int16_t, T>;
      case StoredType::u8:
      case StoredType::boolean:
        return convert_piece<std::uint8_t, T>;
      default:
        return nullptr;
    }
  } else {
    switch (type) {
      case StoredType::f64:
        return convert_piece<double, T>;
      case StoredType::f32:
        return convert_piece<float, T>;
      case StoredType::bf16:
        return convert_piece<bf16, T>;
      case StoredType::f16:
        return convert_piece<half, T>;
      default:
        return nullptr;
    }
  }
}

template <class T>
bool same_type(StoredType type) {
  return (std::is_same_v<T, float> && type == StoredType::f32) ||
         (std::is_same_v<T, double> && type == StoredType::f64) ||
         (std::is_same_v<T, bf16> && type == StoredType::bf16) ||
         (std::is_same_v<T, std::int64_t> && type == StoredType::i64);
}

}  // namespace

float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t fraction = bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {  // zero and subnormal numbers: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {  // NaN
    const std::uint32_t payload = (magnitude >> 13) & 0x3ffu;
    return static_cast<std::uint16_t>(sign | 0x7c00u | (payload != 0 ? payload : 0x200u));
  }
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u) {  // subnormal: multiples of 2^-24
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::lrintf(scaled)));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

Safetensors::Safetensors(const std::string& path) : path_(path) {
  if (std::filesystem::is_directory(path))
    add_folder(path);
  else
    add_file(path);
}

void Safetensors::add_file(const std::string& path) {
  SafetensorsHeader header = read_safetensors_header(path);
  if (files_.empty()) metadata_ = std::move(header.metadata);
  for (StoredTensor& tensor : header.tensors) {
    tensor.file = static_cast<int>(files_.size());
    const auto [other, is_new] = index_.emplace(tensor.name, tensors_.size());
    require(is_new, "{}: {:.200} is also in {}", path, tensor.name,
            is_new ? "" : files_[static_cast<std::size_t>(tensors_[other->second].file)]);
    tensors_.push_back(std::move(tensor));
  }
  files_.push_back(path);
}

void Safetensors::add_folder(const std::string& folder) {
  const std::string single = folder + "/model.safetensors";
  const std::string index = folder + "/model.safetensors.index.json";
  if (std::filesystem::exists(single)) return add_file(single);
  require(std::filesystem::exists(index),
          "{}: found neither model.safetensors nor model.safetensors.index.json", folder);
  const auto file_of = read_safetensors_index(index);
  std::set<std::string> names;
  for (const auto& [tensor, file] : file_of) names.insert(file);
  require(!names.empty(), "{}: weight_map is empty", index);
  for (const std::string& name : names) {
    const std::string file = fmt::format("{}/{}", folder, name);
    require(std::filesystem::exists(file), "{}: names {}, which does not exist", index, name);
    add_file(file);
  }
  for (const StoredTensor& tensor : tensors_) {
    const std::string& file = files_[static_cast<std::size_t>(tensor.file)];
    const auto entry = file_of.find(tensor.name);
    require(entry != file_of.end(), "{}: {:.200}, found in {}, is not in weight_map", index, tensor.name,
            file);
    require(fmt::format("{}/{}", folder, entry->second) == file, "{}: {:.200} should be in {}, found in {}",
            index, tensor.name, entry->second, file);
  }
  for (const auto& [tensor, file] : file_of)
    require(find(tensor) != nullptr, "{}: {:.200} should be in {}, which does not have it", index, tensor,
            file);
}

const StoredTensor* Safetensors::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const StoredTensor& Safetensors::at(const std::string& name) const {
  const StoredTensor* tensor = find(name);
  require(tensor != nullptr, "{}: there is no tensor {}", path_, name);
  return *tensor;
}

void Safetensors::read_bytes(const StoredTensor& tensor, std::int64_t first, std::int64_t count,
                             void* to) const {
  require(first >= 0 && count >= 0 && first <= tensor.elements && count <= tensor.elements - first,
          "{}: elements [{}, {} + {}) of {}, which has {}", path_, first, first, count, tensor.name,
          tensor.elements);
  const std::int64_t size = size_of(tensor.type);
  File::open_to_read(files_[static_cast<std::size_t>(tensor.file)])
      .read_at(to, static_cast<std::size_t>(count * size), tensor.offset + first * size);
}

template <class T>
void Safetensors::read(const StoredTensor& tensor, std::int64_t first, std::int64_t count, T* to) const {
  if (same_type<T>(tensor.type)) return read_bytes(tensor, first, count, to);
  const auto convert_to = converter<T>(tensor.type);
  require(convert_to != nullptr, "{}: {} holds {}, which cannot be read as {}", path_, tensor.name,
          name_of(tensor.type), name_of(DTypeOf<T>::value));
  constexpr std::int64_t kPiece = 1 << 18;  // elements
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min(count, kPiece) * size_of(tensor.type)));
  for (std::int64_t done = 0; done < count; done += kPiece) {
    const std::int64_t n = std::min(kPiece, count - done);
    read_bytes(tensor, first + done, n, piece.data());
    convert_to(piece.data(), n, to + done);
  }
}

template void Safetensors::read(const StoredTensor&, std::int64_t, std::int64_t, float*) const;
template void Safetensors::read(const StoredTensor&, std::int64_t, std::int64_t, double*) const;
template void Safetensors::read(const StoredTensor&, std::int64_t, std::int64_t, bf16*) const;
template void Safetensors::read(const StoredTensor&, std::int64_t, std::int64_t, std::int64_t*) const;

}  // namespace lapidary
