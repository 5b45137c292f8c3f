#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/check.h"
#include "kernels/file.h"
#include "model/parameter_table.h"
#include "model/safetensors.h"
#include "trainer/checkpoint_convert.h"
#include "trainer/checkpoint_export.h"

namespace lapidary {

namespace {

constexpr std::int64_t kBlock = 1 << 20;

struct ExportedTensor {
  StoredTensor stored;
  TensorRecipe recipe;  ///< f32 where f16 is stored

  std::int64_t end() const { return stored.offset + stored.bytes(); }
  /// Elements [begin, begin + count) as they are stored.
  void make(CheckpointReader& reader, std::int64_t begin, std::int64_t count, char* to) const {
    if (stored.type != StoredType::f16) return recipe.make(reader, begin, count, to);
    std::vector<float> values(static_cast<std::size_t>(count));
    recipe.make(reader, begin, count, values.data());
    for (const float value : values) {
      const std::uint16_t bits = float_to_half(value);
      std::memcpy(to, &bits, sizeof bits);
      to += sizeof bits;
    }
  }
  /// Bytes [begin, end). They may cut an element: nothing aligns tensors in a file that comes from elsewhere.
  void make_bytes(CheckpointReader& reader, std::int64_t begin, std::int64_t end, char* to) const {
    const std::int64_t size = size_of(stored.type), first = begin / size, last = (end + size - 1) / size;
    if (first * size == begin && last * size == end) return make(reader, first, last - first, to);
    std::vector<char> whole(static_cast<std::size_t>((last - first) * size));
    make(reader, first, last - first, whole.data());
    std::memcpy(to, whole.data() + (begin - first * size), static_cast<std::size_t>(end - begin));
  }
};

/// How the tensor is made of what the checkpoint has under its name, on disk or in memory.
TensorRecipe recipe_of(const CheckpointReader& reader, const StoredTensor& tensor) {
  const std::string& path = reader.checkpoint().path;
  const auto* weight = reader.find(tensor.name, "weight");
  if (weight == nullptr) weight = reader.find(in_memory_name(tensor.name), "weight");
  require(weight != nullptr, "{}: has no {}", path, tensor.name);
  require(tensor.type == StoredType::bf16 || tensor.type == StoredType::f16 || tensor.type == StoredType::f32,
          "{}: {}: cannot be exported as {}, expected BF16, F16 or F32", path, tensor.name,
          name_of(tensor.type));
  const DType type = tensor.type == StoredType::bf16 ? DType::bf16 : DType::f32;
  if (weight->dtype == type && tensor.type != StoredType::f16)
    return {TensorRecipe::Form::stored, type, weight};
  auto recipe = value_recipe(reader, weight->name);
  require(recipe.has_value(), "{}: {}: there is no float value to export", path, weight->name);
  recipe->dtype = type;
  return *recipe;
}

struct Layout {
  File file;
  std::string header;
  std::vector<ExportedTensor> tensors;  ///< by place in the file
  std::int64_t bytes = 0;
};

/// Bytes [begin, end) of an exported file. Begins at a multiple of kBlock, so that no page of a file is
/// written by two ranks: hosts that share a network file system would overwrite each other's part of it.
struct Block {
  std::size_t file = 0;
  std::int64_t begin = 0, end = 0;
  std::size_t tensor = 0;        ///< the first of which bytes lie in it
  CheckpointReader::Place from;  ///< of the first value; of a file without any: the first file's beginning
  bool in_order = false;         ///< from there on its values follow each other
};

class WeightsExport {
 public:
  WeightsExport(const Checkpoint& checkpoint, const std::vector<ExportedFile>& files)
      : hashed_(checkpoint), beside_(checkpoint), block_(kBlock) {
    for (const ExportedFile& file : files) {
      Layout& layout = layouts_.emplace_back();
      std::vector<StoredTensor> tensors = file.tensors;
      layout.header = make_safetensors_header(tensors, file.metadata);
      layout.bytes = static_cast<std::int64_t>(layout.header.size()) + file.bytes();
      for (StoredTensor& tensor : tensors) layout.tensors.push_back({tensor, recipe_of(hashed_, tensor)});
    }
  }

  /// Writes what begins in these files of the checkpoint, in the order in which it lies there; Error unless
  /// their checksums are right.
  void run(const std::string& folder, const std::vector<ExportedFile>& files,
           const std::vector<std::size_t>& mine) {
    hashed_.hash(mine);
    for (const Block& block : blocks_of(mine)) {
      Layout& layout = layouts_[block.file];
      if (layout.file.path().empty())
        layout.file = File::open_to_write(fmt::format("{}/{}", folder, files[block.file].name));
      fill(layout, block);
      layout.file.write_at(block_.data(), static_cast<std::size_t>(block.end - block.begin), block.begin);
    }
    hashed_.compare_checksums();
    for (Layout& layout : layouts_) {
      if (layout.file.path().empty()) continue;
      layout.file.sync();
      layout.file.close();
    }
  }

 private:
  std::vector<Block> blocks_of(const std::vector<std::size_t>& mine) const {
    std::vector<Block> blocks;
    for (std::size_t f = 0; f < layouts_.size(); ++f) {
      const Layout& layout = layouts_[f];
      std::size_t tensor = 0;
      for (std::int64_t begin = 0; begin < layout.bytes; begin += kBlock) {
        while (tensor + 1 < layout.tensors.size() && layout.tensors[tensor].end() <= begin) ++tensor;
        Block block{f, begin, std::min(begin + kBlock, layout.bytes), tensor, {}};
        if (!layout.tensors.empty()) find_values(layout.tensors[tensor], block);
        if (std::ranges::binary_search(mine, block.from.first)) blocks.push_back(block);
      }
    }
    std::ranges::sort(blocks, {}, &Block::from);
    return blocks;
  }

  /// Where the block's values come from; `tensor`: its first.
  void find_values(const ExportedTensor& tensor, Block& block) const {
    const std::int64_t size = size_of(tensor.stored.type);
    const std::int64_t first = std::max<std::int64_t>(0, block.begin - tensor.stored.offset) / size;
    block.from = hashed_.place(*tensor.recipe.from, first);
    if (block.end <= tensor.stored.offset || block.end > tensor.end()) return;
    const std::int64_t last = (block.end - 1 - tensor.stored.offset) / size;
    CheckpointReader::Place expected = block.from;
    expected.second += (last - first) * static_cast<std::int64_t>(size_of(tensor.recipe.from->dtype));
    block.in_order = hashed_.place(*tensor.recipe.from, last) == expected;
  }

  /// Where a tensor or a rank's part of one ends, what follows in the block may lie anywhere in the
  /// checkpoint. Such a block is read beside; its parts are hashed when it is their turn.
  void fill(const Layout& layout, const Block& block) {
    const auto header = static_cast<std::int64_t>(layout.header.size());
    std::int64_t at = block.begin;
    if (at < header) {
      const std::int64_t end = std::min(header, block.end);
      std::memcpy(block_.data(), layout.header.data() + at, static_cast<std::size_t>(end - at));
      at = end;
    }
    CheckpointReader& reader = block.in_order ? hashed_ : beside_;
    for (std::size_t t = block.tensor; at < block.end; ++t) {
      const ExportedTensor& tensor = layout.tensors[t];
      const std::int64_t begin = tensor.stored.offset, end = std::min(tensor.end(), block.end);
      tensor.make_bytes(reader, at - begin, end - begin, block_.data() + (at - block.begin));
      at = end;
    }
  }

  CheckpointReader hashed_, beside_;
  std::vector<Layout> layouts_;
  std::vector<char> block_;
};

}  // namespace

std::int64_t ExportedFile::bytes() const {
  std::int64_t sum = 0;
  for (const StoredTensor& t : tensors) sum += t.bytes();
  return sum;
}

void export_weights(const Checkpoint& checkpoint, const std::string& folder,
                    const std::vector<ExportedFile>& files, HostGroup& group) {
  group.all_or_error("export: files", [&] {
    if (group.rank() != 0) return;
    for (const ExportedFile& file : files) File::create(fmt::format("{}/{}", folder, file.name)).close();
  });
  group.all_or_error("export: weights", [&] {
    WeightsExport(checkpoint, files).run(folder, files, files_to_hash(checkpoint.manifest, group));
  });
}

}  // namespace lapidary
