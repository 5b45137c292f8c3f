#include "data/build_split.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "data/shard_format.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

constexpr const char* kWhere = "progress of an interrupted build";
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
    {"video_frames", &BuildCounts::video_frames},
    {"video_tokens", &BuildCounts::video_tokens},
    {"utf8_repairs", &BuildCounts::utf8_repairs},
    {"bad_lines", &BuildCounts::bad_lines},
    {"bad_samples", &BuildCounts::bad_samples},
    {"over_long", &BuildCounts::over_long},
    {"split", &BuildCounts::split},
};

void count_document(const Document& document, const TokenLayout& layout, BuildCounts& counts) {
  ++counts.documents;
  counts.tokens += static_cast<std::int64_t>(document.tokens.size());
  counts.trained_tokens += std::count(document.trained.begin(), document.trained.end(), 1);
  for (const DocumentImage& image : document.images) {
    const bool video = document.tokens[static_cast<std::size_t>(image.first_token)] == layout.video;
    ++(video ? counts.video_frames : counts.images);
    (video ? counts.video_tokens : counts.image_tokens) += std::int64_t{image.columns} * image.rows;
  }
  counts.sounds += static_cast<std::int64_t>(document.sounds.size());
  for (const DocumentSound& sound : document.sounds) counts.sound_tokens += sound.frames;
}

}  // namespace

BuildSplit::BuildSplit(const std::filesystem::path& directory, const TokenLayout& layout,
                       std::int64_t shard_bytes)
    : layout_(layout) {
  const std::filesystem::path manifest = directory / kManifestName;
  if (std::filesystem::exists(manifest)) {
    // A kill after this data set was completed; the writer's records may be left over.
    restore(json_member(read_json_file(manifest.string(), kManifestLimit), "notes",
                        nlohmann::json::value_t::object, manifest.string()));
    first_sample_ = std::numeric_limits<std::int64_t>::max();  // nothing more is added
    std::vector<std::filesystem::path> records;
    for (const auto& entry : std::filesystem::directory_iterator(directory))
      if (entry.path().extension() == ".json" && entry.path() != manifest) records.push_back(entry.path());
    for (const std::filesystem::path& record : records) std::filesystem::remove(record);
    return;
  }
  writer_.emplace(directory, layout, shard_bytes);
  std::int64_t dropped_bytes = 0;
  if (const nlohmann::json& progress = writer_->progress(); !progress.is_null()) {
    restore(progress);
    dropped_bytes = json_count(progress, "dropped_bytes", kWhere);
  }
  drop_log_.emplace(directory, dropped_bytes);
}

void BuildSplit::add(std::int64_t number, const SampleOutcome& outcome) {
  ++counts_.samples;
  counts_.utf8_repairs += outcome.utf8_repairs;
  counts_.split += outcome.documents.size() > 1;
  if (outcome.kind != SampleOutcome::Kind::documents) drop(outcome);
  for (const Document& document : outcome.documents) {
    writer_->add(document);
    count_document(document, layout_, counts_);
  }
  first_sample_ = number + 1;
  if (!writer_->full()) return;
  drop_log_->sync();
  writer_->commit(state());
}

void BuildSplit::drop(const SampleOutcome& outcome) {
  using Kind = SampleOutcome::Kind;
  const bool bad_line = outcome.kind == Kind::bad_line, bad_sample = outcome.kind == Kind::bad_sample;
  const auto counter = bad_line     ? &BuildCounts::bad_lines
                       : bad_sample ? &BuildCounts::bad_samples
                                    : &BuildCounts::over_long;
  ++(counts_.*counter);
  const auto* name = std::find_if(std::begin(kCounters), std::end(kCounters),
                                  [&](const auto& entry) { return entry.second == counter; });
  drop_log_->add(name->first, outcome.message);
  if (examples_.size() < kExamples) examples_.push_back(outcome.message);
}

void BuildSplit::finish(nlohmann::json notes) {
  if (!writer_) return;
  drop_log_->sync();
  notes.update(state());
  writer_->finish(notes);
}

nlohmann::json BuildSplit::state() const {
  nlohmann::json counters;
  for (const auto& [name, member] : kCounters) counters[name] = counts_.*member;
  return {{"next_sample", first_sample_},
          {"counts", counters},
          {"dropped_examples", examples_},
          {"dropped_bytes", drop_log_->bytes()}};
}

void BuildSplit::restore(const nlohmann::json& state) {
  first_sample_ = json_count(state, "next_sample", kWhere);
  const nlohmann::json& counters = json_member(state, "counts", nlohmann::json::value_t::object, kWhere);
  for (const auto& [name, member] : kCounters) counts_.*member = json_count(counters, name, kWhere);
  for (const auto& example : json_member(state, "dropped_examples", nlohmann::json::value_t::array, kWhere))
    examples_.push_back(example.get<std::string>());
}

}  // namespace lapidary
