// The format of a data set on disk (docs/data-format.md): names, array shapes, manifest. Writer, reader and
// `verify` take them from here.
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/document.h"
#include "kernels/dtype.h"

namespace lapidary {

inline constexpr std::int64_t kDataFormatVersion = 1;
inline constexpr const char* kShardFormatName = "lapidary-shard";
inline constexpr const char* kDataSetFormatName = "lapidary-data";
inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kIndexName = "index.h5";

/// What a shard or a data set holds.
struct DataCounts {
  std::int64_t documents = 0, tokens = 0, targets = 0;  ///< targets: tokens marked as trained
  std::int64_t images = 0, patches = 0, sounds = 0, frames = 0;
  std::int64_t source_bytes = 0;  ///< length of all Document::source together

  DataCounts& operator+=(const DataCounts& other);
  bool operator==(const DataCounts&) const = default;
};

/// Every field by its name in files and messages.
template <class Struct, class Value>
struct NamedField {
  const char* name;
  Value Struct::*member;
};
inline constexpr std::array<NamedField<DataCounts, std::int64_t>, 8> kCountFields{{
    {"documents", &DataCounts::documents},
    {"tokens", &DataCounts::tokens},
    {"targets", &DataCounts::targets},
    {"images", &DataCounts::images},
    {"patches", &DataCounts::patches},
    {"sounds", &DataCounts::sounds},
    {"frames", &DataCounts::frames},
    {"source_bytes", &DataCounts::source_bytes},
}};
inline constexpr std::array<NamedField<TokenLayout, std::int32_t>, 13> kLayoutFields{{
    {"vocabulary", &TokenLayout::vocabulary},
    {"pad", &TokenLayout::pad},
    {"eos", &TokenLayout::eos},
    {"bos", &TokenLayout::bos},
    {"begin_image", &TokenLayout::begin_image},
    {"image", &TokenLayout::image},
    {"end_image", &TokenLayout::end_image},
    {"begin_audio", &TokenLayout::begin_audio},
    {"audio", &TokenLayout::audio},
    {"end_audio", &TokenLayout::end_audio},
    {"video", &TokenLayout::video},
    {"patch_width", &TokenLayout::patch_width},
    {"frame_width", &TokenLayout::frame_width},
}};

/// Throws Error naming both values of the first field in which the layouts differ: "FOUND_NAME has vocabulary
/// 260, EXPECTED_NAME has vocabulary 262144".
void require_same_layout(const TokenLayout& found, const std::string& found_name, const TokenLayout& expected,
                         const std::string& expected_name);

/// One array of a shard.
struct ShardArray {
  std::string name;
  DType dtype;
  std::vector<std::int64_t> dims;

  std::int64_t bytes() const;
};
/// Columns of the tables.
enum ImageColumn : std::uint8_t {
  image_document,
  image_first_token,
  image_columns,
  image_rows,
  image_first_patch,
  kImageColumns
};
enum SoundColumn : std::uint8_t {
  sound_document,
  sound_first_token,
  sound_frames,
  sound_first_frame,
  kSoundColumns
};
enum CountColumn : std::uint8_t { count_tokens, count_targets, count_patches, count_frames, kCountColumns };

/// All arrays of a shard with these counts, in the order in which they are written.
std::vector<ShardArray> shard_arrays(const DataCounts& counts, const TokenLayout& layout);

/// Memory that a document's patches and frames take, in KiB, rounded up: 0 exactly where it has none. The
/// index keeps this for every document, so that reading ahead can be bounded without opening a shard.
std::int32_t feature_kib(std::int64_t patches, std::int64_t frames, const TokenLayout& layout);

/// What the manifest says about one shard.
struct ShardRecord {
  std::string file;  ///< name inside the directory
  std::int64_t bytes = 0;
  std::string checksum;  ///< XXH3-128 of the file
  DataCounts counts;
  std::map<std::string, std::int64_t> places;  ///< first byte of every array that is not empty
};
std::string shard_name(std::int64_t number);  ///< shard-00012.h5
nlohmann::json to_json(const ShardRecord& record);
/// Checks that every array lies inside the file. `where` starts messages.
ShardRecord shard_record(const nlohmann::json& json, const TokenLayout& layout, const std::string& where);

nlohmann::json to_json(const TokenLayout& layout);
TokenLayout token_layout(const nlohmann::json& json, const std::string& where);

struct Manifest {
  TokenLayout layout;
  DataCounts counts;  ///< sums over the shards
  std::vector<ShardRecord> shards;
  std::int64_t index_bytes = 0;
  std::string index_checksum;
  nlohmann::json notes;  ///< from ingestion: what was dropped and why, sources, settings
  std::string checksum;  ///< of all of the above: identifies the data
};

/// Reads and checks a manifest; Error where it is missing, damaged (it carries its own checksum), of another
/// version or contradicts itself.
Manifest read_manifest(const std::filesystem::path& directory);
/// Publishes the manifest: this is what makes the directory a data set. `manifest.checksum` is computed here.
void write_manifest(const std::filesystem::path& directory, const Manifest& manifest);

}  // namespace lapidary
