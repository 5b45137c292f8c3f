// Finding a checkpoint that is whole, and reading any part of it on any number of ranks. HDF5 takes no part:
// the manifest says where the bytes are, and nothing is believed whose file does not match its checksum.
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_convert.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {
namespace {

using Manifest = CheckpointManifest;

/// The error of a checkpoint that is not what was written: the one before may be used instead.
class Damage : public Error {
 public:
  using Error::Error;
};

/// Runs `look`, whose errors mean damage. A device or a rank that fails says nothing about a file: to go on
/// from an older checkpoint because of that would lose work.
template <class F>
auto finding_damage(const HostGroup& group, F&& look) {
  try {
    return look();
  } catch (const Error& e) {
    if (!group.usable() || e.code() != ExitCode::bad_input) throw;
    throw Damage(e.what());
  }
}

constexpr std::int64_t kPiece = 1 << 20;  // elements made at a time

/// A tensor that was asked for, and how to make it.
struct Order {
  const CheckpointTensor* wanted = nullptr;
  TensorRecipe recipe;

  /// Where the first value that this rank needs is stored.
  CheckpointReader::Place place(const CheckpointReader& reader) const {
    return reader.place(*recipe.from, wanted->slices.empty() ? 0 : wanted->slices.front().begin);
  }
};

/// Why the checkpoint cannot fill `wanted`; empty: it can, by `recipe`.
std::string mismatch(const CheckpointReader& reader, const CheckpointTensor& wanted,
                     const std::vector<std::string>& parts, bool may_convert, TensorRecipe& recipe) {
  const Manifest::Tensor* stored = reader.find(wanted.name, wanted.part);
  if (stored == nullptr && may_convert) stored = reader.find(wanted.name, "weight");
  if (stored == nullptr) return "missing";
  if (stored->shape != wanted.shape)
    return fmt::format("shape [{}], expected [{}]", fmt::join(stored->shape, ", "),
                       fmt::join(wanted.shape, ", "));
  for (const CheckpointSlice& slice : wanted.slices)
    if (slice.begin < 0 || slice.count < 0 || slice.begin > stored->elements() - slice.count ||
        (slice.data == nullptr && slice.count > 0))
      return fmt::format("asked for elements [{}, {} + {}) of {}", slice.begin, slice.begin, slice.count,
                         stored->elements());
  const auto found = recipe_for(reader, wanted, parts);
  if (found && (may_convert || found->form == TensorRecipe::Form::stored)) {
    recipe = *found;
    return "";
  }
  if (stored->part != wanted.part) return "missing";
  return fmt::format("{}, expected {}", name_of(stored->dtype), name_of(wanted.dtype));
}

/// Makes what one tensor's slices ask for, piece by piece.
void fill(CheckpointReader& reader, const Order& order, const CheckpointReadOptions& options,
          std::vector<char>& buffer) {
  const auto size = static_cast<std::int64_t>(size_of(order.wanted->dtype));
  for (const CheckpointSlice& slice : order.wanted->slices) {
    for (std::int64_t done = 0; done < slice.count; done += kPiece) {
      const std::int64_t count = std::min(kPiece, slice.count - done);
      char* const to = static_cast<char*>(slice.data) + done * size;
      if (!options.store) {
        order.recipe.make(reader, slice.begin + done, count, to);
        continue;
      }
      buffer.resize(static_cast<std::size_t>(kPiece * size));
      order.recipe.make(reader, slice.begin + done, count, buffer.data());
      options.store(to, buffer.data(), static_cast<std::size_t>(count * size));
    }
  }
}

/// The commonest mistake gets one clear line instead of a list of hundreds.
void refuse_without_moments(const CheckpointReader& reader, const std::vector<CheckpointTensor>& tensors) {
  const auto is_moment = [](const std::string& part) { return part == "exp_avg" || part == "exp_avg_sq"; };
  const auto& stored = reader.checkpoint().manifest.tensors;
  const bool asked =
      std::any_of(tensors.begin(), tensors.end(), [&](const auto& t) { return is_moment(t.part); });
  const bool has =
      std::any_of(stored.begin(), stored.end(), [&](const auto& t) { return is_moment(t.part); });
  require(!asked || has,
          "{}: holds weights only, no optimizer state to resume from: begin a new run from it with "
          "model.weights, or resume with weights-only",
          reader.checkpoint().path);
}

/// Tensors that nobody asked for although others of their part were.
void refuse_superfluous(const Checkpoint& checkpoint, std::vector<std::int64_t> asked, HostGroup& group) {
  group.all_reduce(asked, HostGroup::Reduce::max, "checkpoint: what is asked for");
  const auto& tensors = checkpoint.manifest.tensors;
  std::map<std::string, bool> part_asked;
  for (std::size_t i = 0; i < tensors.size(); ++i) part_asked[tensors[i].part] |= asked[i] != 0;
  std::vector<std::string> problems;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (asked[i] == 0 && part_asked[tensors[i].part])
      problems.push_back(
          fmt::format("{} ({}): the run has no such tensor", tensors[i].name, tensors[i].part));
  require_none(std::move(problems), checkpoint.path + ": does not fit this run");
}

/// What each tensor is made of; Error where something does not fit. Collective.
std::vector<Order> make_orders(const CheckpointReader& reader, const std::vector<CheckpointTensor>& tensors,
                               bool may_convert, HostGroup& group) {
  const Checkpoint& checkpoint = reader.checkpoint();
  std::map<std::string, std::vector<std::string>> parts;  // asked for under each name
  for (const CheckpointTensor& wanted : tensors) parts[wanted.name].push_back(wanted.part);
  std::vector<std::int64_t> asked(checkpoint.manifest.tensors.size(), 0);
  std::vector<Order> orders;
  group.all_or_error("checkpoint: tensors", [&] {
    refuse_without_moments(reader, tensors);
    std::vector<std::string> problems;
    for (const CheckpointTensor& wanted : tensors) {
      Order order{&wanted, {}};
      const std::string problem = mismatch(reader, wanted, parts[wanted.name], may_convert, order.recipe);
      if (const std::int64_t at = reader.index_of(wanted.name, wanted.part); at >= 0)
        asked[static_cast<std::size_t>(at)] = 1;
      if (problem.empty())
        orders.push_back(order);
      else
        problems.push_back(fmt::format("{} ({}): {}", wanted.name, wanted.part, problem));
    }
    require_none(std::move(problems), checkpoint.path + ": does not fit this run");
  });
  refuse_superfluous(checkpoint, std::move(asked), group);
  // In the order of the files, so that the disk reads forward.
  std::ranges::sort(orders, {}, [&](const Order& order) { return order.place(reader); });
  return orders;
}

void fill_all(CheckpointReader& reader, const std::vector<Order>& orders, HostGroup& group,
              const CheckpointReadOptions& options) {
  group.all_or_error("checkpoint: reading", [&] {
    std::vector<char> buffer;
    for (const Order& order : orders) fill(reader, order, options, buffer);
  });
}

/// The first, from the newest on, in which `open` finds no damage.
template <class F>
std::optional<Checkpoint> newest_sound(const std::string& directory, bool fall_back, HostGroup& group,
                                       const F& open) {
  std::string listed;
  group.all_or_error("checkpoint: list", [&] {
    if (group.rank() == 0) listed = nlohmann::json(published_steps(directory)).dump();
  });
  const auto steps = nlohmann::json::parse(group.broadcast(std::move(listed), 0, "checkpoint: list"))
                         .get<std::vector<std::int64_t>>();
  std::vector<Checkpoint::Damaged> passed_over;
  for (const std::int64_t step : steps) {
    try {
      Checkpoint checkpoint = open(fmt::format("{}/{}", directory, checkpoint_name(step)));
      checkpoint.passed_over = std::move(passed_over);
      return checkpoint;
    } catch (const Damage& e) {
      if (!fall_back) throw;
      passed_over.push_back({step, e.what()});
    }
  }
  if (passed_over.empty()) return std::nullopt;
  std::string messages;
  for (const Checkpoint::Damaged& one : passed_over) messages += "\n  " + one.message;
  fail("{}: every checkpoint is damaged:{}", directory, messages);
}

}  // namespace

Checkpoint open_checkpoint(const std::string& path, HostGroup& group) {
  return finding_damage(group, [&] {
    Checkpoint checkpoint = open_manifest(path, group);
    group.all_or_error("checkpoint: checksums", [&] {
      for (const std::size_t i : files_to_hash(checkpoint.manifest, group)) {
        const Manifest::File& file = checkpoint.manifest.files[i];
        compare_checksum(checksum_of_file(fmt::format("{}/{}", path, file.name)), path, file);
      }
    });
    return checkpoint;
  });
}

std::optional<Checkpoint> find_newest_checkpoint(const std::string& directory, bool fall_back,
                                                 HostGroup& group) {
  return newest_sound(directory, fall_back, group,
                      [&](const std::string& path) { return open_checkpoint(path, group); });
}

void read_checkpoint(const Checkpoint& checkpoint, const std::vector<CheckpointTensor>& tensors,
                     HostGroup& group, const CheckpointReadOptions& options) {
  CheckpointReader reader(checkpoint);
  fill_all(reader, make_orders(reader, tensors, options.convert, group), group, options);
}

Checkpoint restore_checkpoint(const std::string& path, const std::vector<CheckpointTensor>& tensors,
                              HostGroup& group, const CheckpointReadOptions& options) {
  Checkpoint checkpoint = finding_damage(group, [&] { return open_manifest(path, group); });
  CheckpointReader reader(checkpoint);
  const std::vector<Order> orders = make_orders(reader, tensors, options.convert, group);
  group.all_or_error("checkpoint: files", [&] { reader.hash(files_to_hash(checkpoint.manifest, group)); });
  fill_all(reader, orders, group, options);
  finding_damage(group,
                 [&] { group.all_or_error("checkpoint: checksums", [&] { reader.compare_checksums(); }); });
  return checkpoint;
}

std::optional<Checkpoint> restore_newest_checkpoint(const std::string& directory, bool fall_back,
                                                    const std::vector<CheckpointTensor>& tensors,
                                                    HostGroup& group, const CheckpointReadOptions& options) {
  return newest_sound(directory, fall_back, group, [&](const std::string& path) {
    return restore_checkpoint(path, tensors, group, options);
  });
}

}  // namespace lapidary
