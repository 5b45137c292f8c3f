// What differs between two checkpoints, or between one and a Hugging Face folder.
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <ostream>

#include "kernels/check.h"
#include "model/parameter_table.h"
#include "model/safetensors.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_reader.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {

namespace {

constexpr std::int64_t kPiece = 1 << 20;  // elements

/// One tensor, whichever kind of file it stands in.
struct Side {
  std::string type;  ///< "bf16"
  std::vector<std::int64_t> shape;
  std::int64_t elements = 0, element_size = 0;
  std::function<void(std::int64_t begin, std::int64_t count, void* to)> bytes;
  std::function<void(std::int64_t begin, std::int64_t count, std::vector<double>& to)> values;
};

double value_of(DType type, const std::byte* at) {
  const auto read = [&]<class T>(T value) {
    std::memcpy(&value, at, sizeof(T));
    return value;
  };
  switch (type) {
    case DType::f32:
      return static_cast<double>(read(float{}));
    case DType::bf16:
      return static_cast<double>(static_cast<float>(read(bf16{})));
    case DType::f64:
      return read(double{});
    case DType::i64:
      return static_cast<double>(read(std::int64_t{}));
    case DType::i32:
      return read(std::int32_t{});
    case DType::i16:
      return read(std::int16_t{});
    case DType::u8:
      return read(std::uint8_t{});
  }
  return 0;
}

/// Tensors under "name (part)", and what keeps their files open.
struct Contents {
  std::map<std::string, Side> tensors;
  bool weights_only = false;
  std::shared_ptr<void> owner;
};

Contents contents_of_checkpoint(const std::string& path) {
  struct Owner {
    Checkpoint checkpoint;
    std::optional<CheckpointReader> reader;
  };
  HostGroup alone;
  auto owner = std::make_shared<Owner>();
  owner->checkpoint = open_checkpoint(path, alone);
  owner->reader.emplace(owner->checkpoint);
  Contents out;
  for (const CheckpointManifest::Tensor& tensor : owner->checkpoint.manifest.tensors) {
    Side side{name_of(tensor.dtype),
              tensor.shape,
              tensor.elements(),
              static_cast<std::int64_t>(size_of(tensor.dtype)),
              {},
              {}};
    CheckpointReader* reader = &*owner->reader;
    const CheckpointManifest::Tensor* from = &tensor;
    side.bytes = [=](std::int64_t begin, std::int64_t count, void* to) {
      reader->read(*from, begin, count, to);
    };
    side.values = [bytes = side.bytes, type = tensor.dtype](std::int64_t begin, std::int64_t count,
                                                            std::vector<double>& to) {
      std::vector<std::byte> raw(static_cast<std::size_t>(count) * size_of(type));
      bytes(begin, count, raw.data());
      for (std::size_t i = 0; i < to.size(); ++i) to[i] = value_of(type, raw.data() + i * size_of(type));
    };
    out.tensors[fmt::format("{} ({})", tensor.name, tensor.part)] = std::move(side);
  }
  out.owner = std::move(owner);
  return out;
}

Contents contents_of_folder(const std::string& path) {
  auto files = std::make_shared<Safetensors>(path);
  Contents out;
  out.weights_only = true;
  for (const StoredTensor& tensor : files->tensors()) {
    if (tensor.name == "lm_head.weight") continue;  // the table once more
    std::string type = name_of(tensor.type);
    std::transform(type.begin(), type.end(), type.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    Side side{type, tensor.shape, tensor.elements, size_of(tensor.type), {}, {}};
    const Safetensors* from = files.get();
    const StoredTensor* stored = &tensor;
    side.bytes = [=](std::int64_t begin, std::int64_t count, void* to) {
      from->read_bytes(*stored, begin, count, to);
    };
    side.values = [=](std::int64_t begin, std::int64_t count, std::vector<double>& to) {
      from->read(*stored, begin, count, to.data());
    };
    out.tensors[fmt::format("{} (weight)", on_disk_name(tensor.name))] = std::move(side);
  }
  out.owner = std::move(files);
  return out;
}

Contents contents_of(const std::string& path) {
  const bool is_folder_of_weights = path.ends_with(".safetensors") ||
                                    std::filesystem::exists(path + "/model.safetensors") ||
                                    std::filesystem::exists(path + "/model.safetensors.index.json");
  return is_folder_of_weights ? contents_of_folder(path) : contents_of_checkpoint(find_checkpoint(path));
}

struct Difference {
  std::int64_t elements = 0;  ///< with other bits, or another value where the types differ
  double largest = 0, squares = 0, reference = 0;
  double relative() const { return reference > 0 ? std::sqrt(squares / reference) : std::sqrt(squares); }
};

Difference compare(const Side& a, const Side& b) {
  Difference out;
  std::vector<std::byte> x, y;
  std::vector<double> u, v;
  const bool same_type = a.type == b.type;
  for (std::int64_t at = 0; at < a.elements; at += kPiece) {
    const std::int64_t count = std::min(kPiece, a.elements - at);
    const auto n = static_cast<std::size_t>(count), size = static_cast<std::size_t>(a.element_size);
    if (same_type) {
      x.resize(n * size);
      y.resize(n * size);
      a.bytes(at, count, x.data());
      b.bytes(at, count, y.data());
      if (x == y) continue;
    }
    u.assign(n, 0);
    v.assign(n, 0);
    a.values(at, count, u);
    b.values(at, count, v);
    for (std::size_t i = 0; i < n; ++i) {
      const bool differs = same_type ? std::memcmp(x.data() + i * size, y.data() + i * size, size) != 0
                                     : !(u[i] == v[i]) && !(std::isnan(u[i]) && std::isnan(v[i]));
      if (!differs) continue;
      ++out.elements;
      out.largest = std::max(out.largest, std::abs(u[i] - v[i]));
      out.squares += (u[i] - v[i]) * (u[i] - v[i]);
    }
    for (const double value : u) out.reference += value * value;
  }
  return out;
}

/// Prints what differs; true: nothing.
bool compare_tensor(const std::string& name, const Side& a, const Side& b, std::ostream& out) {
  if (a.shape != b.shape) {
    out << fmt::format("{}: shape [{}] and [{}]\n", name, fmt::join(a.shape, ", "), fmt::join(b.shape, ", "));
    return false;
  }
  const Difference d = compare(a, b);
  if (d.elements == 0 && a.type == b.type) return true;
  const std::string types = a.type == b.type ? "" : fmt::format("{} and {}, ", a.type, b.type);
  out << (d.elements == 0
              ? fmt::format("{}: {}equal values\n", name, types)
              : fmt::format("{}: {}{} of {} elements differ, at most {:.3g}, relative L2 {:.3g}\n", name,
                            types, d.elements, a.elements, d.largest, d.relative()));
  return false;
}

}  // namespace

bool diff_checkpoints(const std::string& a, const std::string& b, std::ostream& out) {
  const Contents left = contents_of(a), right = contents_of(b);
  const bool weights_only = left.weights_only || right.weights_only;
  const auto counts = [&](const std::string& name) { return !weights_only || name.ends_with(" (weight)"); };
  std::int64_t equal = 0, different = 0;
  for (const auto& [name, side] : left.tensors) {
    if (!counts(name)) continue;
    const auto other = right.tensors.find(name);
    bool same = false;
    if (other == right.tensors.end())
      out << fmt::format("{}: only in {}\n", name, a);
    else
      same = compare_tensor(name, side, other->second, out);
    ++(same ? equal : different);
  }
  for (const auto& [name, side] : right.tensors) {
    if (!counts(name) || left.tensors.contains(name)) continue;
    out << fmt::format("{}: only in {}\n", name, b);
    ++different;
  }
  out << fmt::format("{} tensors have the same bits, {} do not\n", equal, different);
  return different == 0;
}

}  // namespace lapidary
