#include "data/shard_writer.h"

#include <algorithm>
#include <utility>

#include "data/check_document.h"
#include "data/checked_file.h"
#include "data/shard_format.h"
#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/hdf5_file.h"
#include "kernels/json.h"

namespace lapidary {

namespace {

// A record holds one number per segment and whatever ingestion wants to remember.
constexpr std::int64_t kLargestRecord = std::int64_t{64} << 20;

std::filesystem::path temporary(std::filesystem::path path) {
  return path += ".tmp";
}

/// The arrays of the shard that is being collected (docs/data-format.md).
struct Collected {
  DataCounts counts;
  std::vector<std::int64_t> document_offsets{0}, source_offsets{0}, images, sounds;
  std::vector<std::int32_t> document_counts, tokens;
  std::vector<std::uint8_t> sources, trained, patches;
  std::vector<std::int16_t> frames;

  std::int64_t bytes() const {
    return static_cast<std::int64_t>(
        8 * (document_offsets.size() + source_offsets.size() + images.size() + sounds.size()) +
        4 * (document_counts.size() + tokens.size()) + sources.size() + trained.size() + patches.size() +
        2 * frames.size());
  }
  void add(const Document& document);
  const void* values(const std::string& name) const;
};

template <class T>
void append(std::vector<T>& to, const auto& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void Collected::add(const Document& document) {
  DataCounts one{.documents = 1,
                 .tokens = static_cast<std::int64_t>(document.tokens.size()),
                 .targets = std::count(document.trained.begin(), document.trained.end(), 1),
                 .images = static_cast<std::int64_t>(document.images.size()),
                 .sounds = static_cast<std::int64_t>(document.sounds.size()),
                 .source_bytes = static_cast<std::int64_t>(document.source.size())};
  for (const DocumentImage& image : document.images) {
    for (const std::int64_t value :
         {counts.documents, std::int64_t{image.first_token}, std::int64_t{image.columns},
          std::int64_t{image.rows}, counts.patches + one.patches}) {
      images.push_back(value);
    }
    one.patches += std::int64_t{image.columns} * image.rows;
    append(patches, image.patches);
  }
  for (const DocumentSound& sound : document.sounds) {
    for (const std::int64_t value : {counts.documents, std::int64_t{sound.first_token},
                                     std::int64_t{sound.frames}, counts.frames + one.frames}) {
      sounds.push_back(value);
    }
    one.frames += sound.frames;
    append(frames, sound.samples);
  }
  for (const std::int64_t value : {one.tokens, one.targets, one.patches, one.frames}) {
    document_counts.push_back(static_cast<std::int32_t>(value));
  }
  append(tokens, document.tokens);
  append(trained, document.trained);
  append(sources, document.source);
  counts += one;
  document_offsets.push_back(counts.tokens);
  source_offsets.push_back(counts.source_bytes);
}

const void* Collected::values(const std::string& name) const {
  const std::pair<const char*, const void*> all[] = {{"document_offsets", document_offsets.data()},
                                                     {"document_counts", document_counts.data()},
                                                     {"source_offsets", source_offsets.data()},
                                                     {"sources", sources.data()},
                                                     {"images", images.data()},
                                                     {"sounds", sounds.data()},
                                                     {"tokens", tokens.data()},
                                                     {"trained", trained.data()},
                                                     {"patches", patches.data()},
                                                     {"frames", frames.data()}};
  return std::find_if(std::begin(all), std::end(all), [&](const auto& entry) { return name == entry.first; })
      ->second;
}

}  // namespace

struct ShardWriter::Impl {
  std::filesystem::path directory;
  Manifest manifest;  // layout, counts and shards so far
  std::int64_t shard_bytes = 0;
  nlohmann::json progress;
  Collected collected;
  // The index: of all documents and all segments so far.
  std::vector<std::int32_t> document_tokens, document_feature_kib;
  std::vector<std::int64_t> segment_hashes;
  bool finished = false;

  std::filesystem::path record_path(std::int64_t shard) const {
    return (directory / shard_name(shard)).replace_extension(".json");
  }
  std::int64_t next_shard() const { return static_cast<std::int64_t>(manifest.shards.size()); }
  void resume();
  void remove_leftovers() const;
  bool adopt(const std::filesystem::path& record_file);
  void enter(const ShardRecord& record, const std::vector<std::int32_t>& counts,
             const std::vector<std::int64_t>& segments);
  ShardRecord write_shard(FileHashes& hashes) const;
  void commit(const nlohmann::json& reached);
  void write_index();
};

/// Takes over the shards that an earlier writer committed. The one that finish() wrote has no progress to go
/// on from: it is built again.
void ShardWriter::Impl::resume() {
  while (std::filesystem::exists(record_path(next_shard()))) {
    if (!adopt(record_path(next_shard()))) break;
  }
  remove_leftovers();
}

void ShardWriter::Impl::remove_leftovers() const {
  const auto is_ours = [](const std::string& name) {
    return name.starts_with("shard-") || name.starts_with(kIndexName) || name.starts_with(kManifestName);
  };
  std::vector<std::filesystem::path> leftovers;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    const std::string stem = entry.path().stem().string() + ".h5";
    const bool committed = std::any_of(manifest.shards.begin(), manifest.shards.end(),
                                       [&](const ShardRecord& shard) { return shard.file == stem; });
    if (is_ours(name) && (!committed || name.ends_with(".tmp"))) leftovers.push_back(entry.path());
  }
  for (const std::filesystem::path& path : leftovers) std::filesystem::remove(path);
}

bool ShardWriter::Impl::adopt(const std::filesystem::path& record_file) {
  using Json = nlohmann::json;
  const std::string where = record_file.string();
  const Json json = read_json_file(where, kLargestRecord);
  require_same_layout(token_layout(json_member(json, "layout", Json::value_t::object, where), where),
                      "the interrupted build in " + directory.string(), manifest.layout, "this build");
  const auto reached = json.find("progress");
  if (reached == json.end() || reached->is_null()) return false;
  const ShardRecord record =
      shard_record(json_member(json, "shard", Json::value_t::object, where), manifest.layout, where);
  const std::string path = (directory / record.file).string();
  require(record.file == shard_name(next_shard()), "{}: describes \"{}\"", where, record.file);
  const FileHashes hashes = hash_with_segments(path);
  require(hashes.bytes == record.bytes && hashes.checksum == record.checksum,
          "{}: {} bytes with checksum {}, expected {} and {}: remove the directory and build again", path,
          hashes.bytes, hashes.checksum, record.bytes, record.checksum);
  enter(record, Hdf5File::open(path).read<std::int32_t>("document_counts"), hashes.segments);
  progress = *reached;
  return true;
}

/// Adds a committed shard to manifest and index.
void ShardWriter::Impl::enter(const ShardRecord& record, const std::vector<std::int32_t>& counts,
                              const std::vector<std::int64_t>& segments) {
  manifest.shards.push_back(record);
  manifest.counts += record.counts;
  append(segment_hashes, segments);
  for (std::size_t d = 0; d < counts.size(); d += kCountColumns) {
    document_tokens.push_back(counts[d + count_tokens]);
    document_feature_kib.push_back(
        feature_kib(counts[d + count_patches], counts[d + count_frames], manifest.layout));
  }
}

ShardRecord ShardWriter::Impl::write_shard(FileHashes& hashes) const {
  const std::filesystem::path path = directory / shard_name(next_shard());
  ShardRecord record{.file = path.filename().string(), .counts = collected.counts};
  Hdf5File file = Hdf5File::create(temporary(path));
  file.write_attribute("format", std::string(kShardFormatName));
  file.write_attribute("version", kDataFormatVersion);
  for (const auto& field : kLayoutFields) {
    file.write_attribute(field.name, std::int64_t{manifest.layout.*field.member});
  }
  for (const ShardArray& array : shard_arrays(collected.counts, manifest.layout)) {
    file.write(array.name, array.dtype, array.dims, collected.values(array.name));
    if (array.bytes() > 0) record.places[array.name] = file.shape(array.name).offset;
  }
  file.close();
  hashes = hash_with_segments(temporary(path));
  record.bytes = hashes.bytes;
  record.checksum = hashes.checksum;
  File::open_to_write(temporary(path)).sync();
  publish(temporary(path), path);
  return record;
}

void ShardWriter::Impl::commit(const nlohmann::json& reached) {
  if (collected.counts.documents == 0) return;
  FileHashes hashes;
  const ShardRecord record = write_shard(hashes);
  const std::filesystem::path path = record_path(next_shard());
  const nlohmann::json json = {
      {"shard", to_json(record)}, {"layout", to_json(manifest.layout)}, {"progress", reached}};
  write_new_text_file(temporary(path), json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace));
  publish(temporary(path), path);
  enter(record, collected.document_counts, hashes.segments);
  collected = Collected{};
  progress = reached;
}

void ShardWriter::Impl::write_index() {
  const std::filesystem::path path = directory / kIndexName;
  Hdf5File file = Hdf5File::create(temporary(path));
  file.write_attribute("format", std::string("lapidary-index"));
  file.write_attribute("version", kDataFormatVersion);
  file.write("document_tokens", document_tokens);
  file.write("document_feature_kib", document_feature_kib);
  file.write("segment_hashes", segment_hashes);
  file.close();
  const FileHashes hashes = hash_with_segments(temporary(path));
  manifest.index_bytes = hashes.bytes;
  manifest.index_checksum = hashes.checksum;
  File::open_to_write(temporary(path)).sync();
  publish(temporary(path), path);
}

ShardWriter::ShardWriter(std::filesystem::path directory, const TokenLayout& layout, std::int64_t shard_bytes)
    : impl_(std::make_unique<Impl>()) {
  require(shard_bytes >= 1, "shard_bytes is {}, expected at least 1", shard_bytes);
  impl_->directory = std::move(directory);
  impl_->shard_bytes = shard_bytes;
  impl_->manifest.layout = token_layout(to_json(layout), "token layout");
  std::error_code error;
  std::filesystem::create_directories(impl_->directory, error);
  if (error) fail_with_errno("cannot create directory", impl_->directory.string(), error.value());
  require(!std::filesystem::exists(impl_->directory / kManifestName),
          "{}: already holds a finished data set; remove it or choose another directory",
          impl_->directory.string());
  impl_->resume();
}

ShardWriter::~ShardWriter() = default;

const nlohmann::json& ShardWriter::progress() const {
  return impl_->progress;
}

void ShardWriter::add(const Document& document) {
  require(!impl_->finished, "{}: a document was added after finish()", impl_->directory.string());
  check_document(document, impl_->manifest.layout, document.source);
  impl_->collected.add(document);
}

bool ShardWriter::full() const {
  return impl_->collected.bytes() >= impl_->shard_bytes;
}

void ShardWriter::commit(const nlohmann::json& progress) {
  require(!progress.is_null(), "{}: commit() needs the progress to continue from", impl_->directory.string());
  impl_->commit(progress);
}

void ShardWriter::finish(const nlohmann::json& notes) {
  require(!impl_->finished, "{}: finish() was called twice", impl_->directory.string());
  require(notes.is_object(), "{}: notes must be a JSON object", impl_->directory.string());
  impl_->commit(nullptr);
  impl_->write_index();
  impl_->manifest.notes = notes;
  write_manifest(impl_->directory, impl_->manifest);
  impl_->finished = true;
  for (std::int64_t shard = 0; shard < impl_->next_shard(); ++shard) {
    std::filesystem::remove(impl_->record_path(shard));
  }
}

std::int64_t ShardWriter::documents() const {
  return impl_->manifest.counts.documents + impl_->collected.counts.documents;
}

std::int64_t ShardWriter::tokens() const {
  return impl_->manifest.counts.tokens + impl_->collected.counts.tokens;
}

}  // namespace lapidary
