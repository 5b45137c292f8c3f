#include "model/weights.h"

#include <algorithm>
#include <map>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "model/safetensors.h"

namespace lapidary {

void initialize_weights(Stream& stream, const ModelConfig& config, const ParameterTable& table,
                        const std::vector<ParameterShard*>& shards, std::uint64_t seed) {
  for (const ParameterShard* shard : shards) {
    for (const ShardSlice& slice : shard->slices) {
      const ParameterSpec& spec = table.specs[static_cast<std::size_t>(slice.parameter)];
      const Tensor out = shard->weight.reshape({shard->weight.numel()}).flat_range(slice.offset, slice.count);
      if (spec.init != Init::normal) {
        run(stream, Fill{.x = out, .value = spec.init == Init::ones ? 1.0 : 0.0});
        continue;
      }
      run(stream, FillNormal{.out = out,
                             .std = spec.std,
                             .seed = seed,
                             .stream = static_cast<std::uint64_t>(slice.parameter),
                             .first_index = slice.parameter_begin});
      if (slice.parameter != table.table) continue;
      const std::int64_t pad_begin = config.pad_id * config.width - slice.parameter_begin;
      const std::int64_t begin = std::max<std::int64_t>(pad_begin, 0);
      const std::int64_t end = std::min(pad_begin + config.width, slice.count);
      if (begin < end) run(stream, Fill{.x = out.flat_range(begin, end - begin)});
    }
  }
}

std::vector<const StoredTensor*> match_tensors(const ParameterTable& table, const Safetensors& files) {
  std::vector<const StoredTensor*> out;
  std::vector<std::string> problems;
  const auto shape_text = [](const std::vector<std::int64_t>& shape) {
    return fmt::format("[{}]", fmt::join(shape, ", "));
  };
  std::map<std::string, bool> expected;
  for (const ParameterSpec& spec : table.specs) {
    const StoredTensor* found = files.find(spec.name);
    if (!found) found = files.find(in_memory_name(spec.name));
    out.push_back(found);
    if (!found) {
      problems.push_back(spec.name + ": missing");
      continue;
    }
    expected[found->name] = true;
    if (found->shape != spec.shape) {
      problems.push_back(fmt::format("{}: shape {}, expected {}", found->name, shape_text(found->shape),
                                     shape_text(spec.shape)));
    }
    if (!is_float(found->type)) {
      problems.push_back(
          fmt::format("{}: type {}, expected BF16, F16, F32 or F64", found->name, name_of(found->type)));
    }
  }
  for (const StoredTensor& tensor : files.tensors()) {
    // Transformers' in-memory state lists the tied head a second time; its values are the table's.
    if (!expected.contains(tensor.name) && tensor.name != "lm_head.weight") {
      problems.push_back(tensor.name + ": unknown, the model has no such tensor");
    }
  }
  require_none(std::move(problems), files.path() + ": the tensors do not fit the model");
  return out;
}

namespace {

constexpr std::int64_t kPiece = std::int64_t{4} << 20;  // elements read at a time

template <class T>
void load_slice(Stream& stream, const Safetensors& files, const StoredTensor& stored, const ShardSlice& slice,
                const Tensor& out) {
  std::vector<T> piece(static_cast<std::size_t>(std::min(kPiece, slice.count)));
  for (std::int64_t done = 0; done < slice.count; done += kPiece) {
    const std::int64_t count = std::min(kPiece, slice.count - done);
    files.read(stored, slice.parameter_begin + done, count, piece.data());
    const Tensor to = out.flat_range(slice.offset + done, count);
    stream.backend().copy_to_device(stream, to.data(), piece.data(), to.bytes());
    stream.backend().synchronize(stream);
  }
}

}  // namespace

void load_weights(Stream& stream, const ParameterTable& table, const std::vector<ParameterShard*>& shards,
                  const std::string& path) {
  const Safetensors files(path);
  const std::vector<const StoredTensor*> stored = match_tensors(table, files);
  for (const ParameterShard* shard : shards) {
    const Tensor flat = shard->weight.reshape({shard->weight.numel()});
    for (const ShardSlice& slice : shard->slices) {
      const StoredTensor& from = *stored[static_cast<std::size_t>(slice.parameter)];
      switch (flat.dtype()) {
        case DType::f32:
          load_slice<float>(stream, files, from, slice, flat);
          break;
        case DType::bf16:
          load_slice<bf16>(stream, files, from, slice, flat);
          break;
        default:
          load_slice<double>(stream, files, from, slice, flat);
          break;
      }
    }
  }
}

}  // namespace lapidary
