#include "data/build_split.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "data/shard_format.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

constexpr std::size_t kExamples = 20;  // messages kept of dropped samples
constexpr std::int64_t kManifestLimit = std::int64_t{1} << 30;

const std::pair<const char*, std::int64_t BuildCounts::*> kCounters[] = {
    {"samples", &BuildCounts::samples},
    {"documents", &BuildCounts::documents},
    {"tokens", &BuildCounts::tokens},
    {"trained_tokens", &BuildCounts::trained_tokens},
    {"images", &BuildCounts::images},
    {"image_tokens", &BuildCounts::image_tokens},
    {"sounds", &BuildCounts::sounds},
    {"sound_tokens", &BuildCounts::sound_tokens},
    {"utf8_repairs", &BuildCounts::utf8_repairs},
    {"bad_lines", &BuildCounts::bad_lines},
    {"bad_samples", &BuildCounts::bad_samples},
    {"over_long", &BuildCounts::over_long},
    {"split", &BuildCounts::split},
};

void count_document(const Document& document, BuildCounts& counts) {
  ++counts.documents;
  counts.tokens += static_cast<std::int64_t>(document.tokens.size());
  counts.trained_tokens += std::count(document.trained.begin(), document.trained.end(), 1);
  counts.images += static_cast<std::int64_t>(document.images.size());
  for (const DocumentImage& image : document.images)
    counts.image_tokens += std::int64_t{image.columns} * image.rows;
  counts.sounds += static_cast<std::int64_t>(document.sounds.size());
  for (const DocumentSound& sound : document.sounds) counts.sound_tokens += sound.frames;
}

}  // namespace

BuildSplit::BuildSplit(const std::filesystem::path& directory, const TokenLayout& layout,
                       std::int64_t shard_bytes) {
  const std::filesystem::path manifest = directory / kManifestName;
  if (std::filesystem::exists(manifest)) {
    // A kill after this data set was completed; the writer's records may be left over.
    restore(json_member(read_json_file(manifest.string(), kManifestLimit), "notes",
                        nlohmann::json::value_t::object, manifest.string()));
    first_sample_ = std::numeric_limits<std::int64_t>::max();
    std::vector<std::filesystem::path> records;
    for (const auto& entry : std::filesystem::directory_iterator(directory))
      if (entry.path().extension() == ".json" && entry.path() != manifest) records.push_back(entry.path());
    for (const std::filesystem::path& record : records) std::filesystem::remove(record);
    return;
  }
  writer_.emplace(directory, layout, shard_bytes);
  if (!writer_->progress().is_null()) restore(writer_->progress());
}

void BuildSplit::add(std::int64_t number, const SampleOutcome& outcome) {
  ++counts_.samples;
  counts_.utf8_repairs += outcome.utf8_repairs;
  counts_.bad_lines += outcome.kind == SampleOutcome::Kind::bad_line;
  counts_.bad_samples += outcome.kind == SampleOutcome::Kind::bad_sample;
  counts_.over_long += outcome.kind == SampleOutcome::Kind::over_long;
  counts_.split += outcome.documents.size() > 1;
  if (outcome.kind != SampleOutcome::Kind::documents && examples_.size() < kExamples)
    examples_.push_back(outcome.message);
  for (const Document& document : outcome.documents) {
    writer_->add(document);
    count_document(document, counts_);
  }
  first_sample_ = number + 1;
  if (writer_->full()) writer_->commit(state());
}

void BuildSplit::finish(nlohmann::json notes) {
  if (!writer_) return;
  notes.update(state());
  writer_->finish(notes);
}

nlohmann::json BuildSplit::state() const {
  nlohmann::json counters;
  for (const auto& [name, member] : kCounters) counters[name] = counts_.*member;
  return {{"next_sample", first_sample_}, {"counts", counters}, {"dropped_examples", examples_}};
}

void BuildSplit::restore(const nlohmann::json& state) {
  const std::string where = "progress of an interrupted build";
  first_sample_ = json_count(state, "next_sample", where);
  const nlohmann::json& counters = json_member(state, "counts", nlohmann::json::value_t::object, where);
  for (const auto& [name, member] : kCounters) counts_.*member = json_count(counters, name, where);
  for (const auto& example : json_member(state, "dropped_examples", nlohmann::json::value_t::array, where))
    examples_.push_back(example.get<std::string>());
}

}  // namespace lapidary
