#include "data/shard_format.h"

#include <limits>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {

namespace {

// A record takes some 700 bytes; this allows for 300,000 shards.
constexpr std::int64_t kLargestManifest = std::int64_t{256} << 20;

using Json = nlohmann::json;

DataCounts data_counts(const Json& json, const std::string& where) {
  DataCounts counts;
  for (const auto& field : kCountFields) counts.*field.member = json_count(json, field.name, where);
  return counts;
}

Json to_json(const DataCounts& counts) {
  Json json = Json::object();
  for (const auto& field : kCountFields) json[field.name] = counts.*field.member;
  return json;
}

std::string checksum_string(const Json& json, const std::string& where) {
  std::string text = json_string(json, "xxh3_128", where);
  require(text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string::npos,
          "{}: xxh3_128 is \"{}\", expected 32 hexadecimal digits", where, text);
  return text;
}

/// Text that comes from files of users may hold invalid UTF-8.
std::string dump(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

Json to_json(const Manifest& manifest) {
  Json json = {
      {"format", kDataSetFormatName},
      {"version", kDataFormatVersion},
      {"layout", lapidary::to_json(manifest.layout)},
      {"counts", to_json(manifest.counts)},
      {"index",
       {{"file", kIndexName}, {"bytes", manifest.index_bytes}, {"xxh3_128", manifest.index_checksum}}},
      {"notes", manifest.notes},
      {"shards", Json::array()}};
  for (const ShardRecord& shard : manifest.shards) json["shards"].push_back(lapidary::to_json(shard));
  return json;
}

}  // namespace

DataCounts& DataCounts::operator+=(const DataCounts& other) {
  for (const auto& field : kCountFields) this->*field.member += other.*field.member;
  return *this;
}

void require_same_layout(const TokenLayout& found, const std::string& found_name, const TokenLayout& expected,
                         const std::string& expected_name) {
  for (const auto& field : kLayoutFields) {
    require(found.*field.member == expected.*field.member, "{} has {} {}, {} has {} {}", found_name,
            field.name, found.*field.member, expected_name, field.name, expected.*field.member);
  }
}

std::int64_t ShardArray::bytes() const {
  auto total = static_cast<std::int64_t>(size_of(dtype));
  for (const std::int64_t d : dims) total *= d;
  return total;
}

std::vector<ShardArray> shard_arrays(const DataCounts& counts, const TokenLayout& layout) {
  return {{"document_offsets", DType::i64, {counts.documents + 1}},
          {"document_counts", DType::i32, {counts.documents, kCountColumns}},
          {"source_offsets", DType::i64, {counts.documents + 1}},
          {"sources", DType::u8, {counts.source_bytes}},
          {"images", DType::i64, {counts.images, kImageColumns}},
          {"sounds", DType::i64, {counts.sounds, kSoundColumns}},
          {"tokens", DType::i32, {counts.tokens}},
          {"trained", DType::u8, {counts.tokens}},
          {"patches", DType::u8, {counts.patches, layout.patch_width}},
          {"frames", DType::i16, {counts.frames, layout.frame_width}}};
}

std::int32_t feature_kib(std::int64_t patches, std::int64_t frames, const TokenLayout& layout) {
  const std::int64_t bytes = patches * layout.patch_width + 2 * frames * layout.frame_width;
  return static_cast<std::int32_t>((bytes + 1023) / 1024);
}

std::string shard_name(std::int64_t number) {
  return fmt::format("shard-{:05d}.h5", number);
}

Json to_json(const ShardRecord& record) {
  return {{"file", record.file},
          {"bytes", record.bytes},
          {"xxh3_128", record.checksum},
          {"counts", to_json(record.counts)},
          {"places", record.places}};
}

ShardRecord shard_record(const Json& json, const TokenLayout& layout, const std::string& where) {
  ShardRecord record;
  record.file = json_string(json, "file", where);
  record.bytes = json_count(json, "bytes", where);
  record.checksum = checksum_string(json, where);
  const std::string shard_where = where + ", " + record.file;
  record.counts = data_counts(json_member(json, "counts", Json::value_t::object, shard_where), shard_where);
  const Json& places = json_member(json, "places", Json::value_t::object, shard_where);
  // Counts beyond the file's size are refused before they are multiplied.
  for (const auto& field : kCountFields) {
    require(record.counts.*field.member <= record.bytes, "{}: {} {} in a file of {} bytes", shard_where,
            record.counts.*field.member, field.name, record.bytes);
  }
  for (const ShardArray& array : shard_arrays(record.counts, layout)) {
    if (array.bytes() == 0) continue;
    const std::int64_t place = json_count(places, array.name, shard_where);
    require(array.bytes() <= record.bytes && place <= record.bytes - array.bytes(),
            "{}: array '{}' takes {} bytes from byte {}, but the file has {}", shard_where, array.name,
            array.bytes(), place, record.bytes);
    record.places[array.name] = place;
  }
  return record;
}

Json to_json(const TokenLayout& layout) {
  Json json = Json::object();
  for (const auto& field : kLayoutFields) json[field.name] = layout.*field.member;
  return json;
}

TokenLayout token_layout(const Json& json, const std::string& where) {
  TokenLayout layout;
  for (const auto& field : kLayoutFields) {
    const auto found = json.find(field.name);
    require(found != json.end() && found->is_number_integer(), "{}: layout lacks the integer \"{}\"", where,
            field.name);
    const auto value = found->get<std::int64_t>();
    require(value >= -1 && value <= std::numeric_limits<std::int32_t>::max(), "{}: layout has {} {}", where,
            field.name, value);
    layout.*field.member = static_cast<std::int32_t>(value);
  }
  require(layout.vocabulary >= 1 && layout.patch_width >= 1 && layout.frame_width >= 1,
          "{}: vocabulary {}, patch_width {}, frame_width {}: expected at least 1 each", where,
          layout.vocabulary, layout.patch_width, layout.frame_width);
  return layout;
}

Manifest read_manifest(const std::filesystem::path& directory) {
  const std::string where = (directory / kManifestName).string();
  require(std::filesystem::is_directory(directory), "{}: no such folder, expected a data set",
          directory.string());
  const std::filesystem::path inner = directory / "train";
  require(std::filesystem::exists(where),
          "{}: holds no {}: not a data set, or one whose build did not finish{}", directory.string(),
          kManifestName,
          std::filesystem::exists(inner / kManifestName) ? "; " + inner.string() + " is one" : "");
  Json json = read_json_file(where, kLargestManifest);
  require(json.is_object(), "{}: expected an object", where);
  const std::string format = json_string(json, "format", where);
  require(format == kDataSetFormatName, "{}: format \"{}\", expected \"{}\"", where, format,
          kDataSetFormatName);
  const std::int64_t version = json_count(json, "version", where);
  require(version == kDataFormatVersion, "{}: format version {}, this program reads {}", where, version,
          kDataFormatVersion);

  Manifest manifest;
  manifest.checksum = checksum_string(json, where);
  json.erase("xxh3_128");
  const std::string actual = checksum_of(dump(json, -1));
  require(actual == manifest.checksum, "{}: its checksum is {}, expected {}: damaged or edited", where,
          actual, manifest.checksum);
  manifest.layout = token_layout(json_member(json, "layout", Json::value_t::object, where), where);
  manifest.counts = data_counts(json_member(json, "counts", Json::value_t::object, where), where);
  const Json& index = json_member(json, "index", Json::value_t::object, where);
  manifest.index_bytes = json_count(index, "bytes", where);
  manifest.index_checksum = checksum_string(index, where);
  manifest.notes = json_member(json, "notes", Json::value_t::object, where);
  DataCounts sum;
  for (const Json& shard : json_member(json, "shards", Json::value_t::array, where)) {
    manifest.shards.push_back(shard_record(shard, manifest.layout, where));
    const std::string expected = shard_name(static_cast<std::int64_t>(manifest.shards.size()) - 1);
    require(manifest.shards.back().file == expected, "{}: lists \"{}\", expected \"{}\"", where,
            manifest.shards.back().file, expected);
    sum += manifest.shards.back().counts;
  }
  require(sum == manifest.counts, "{}: the shards' counts do not add up to the data set's", where);
  return manifest;
}

void write_manifest(const std::filesystem::path& directory, const Manifest& manifest) {
  Json json = to_json(manifest);
  json["xxh3_128"] = checksum_of(dump(json, -1));
  const std::string path = (directory / kManifestName).string(), temporary = path + ".tmp";
  std::filesystem::remove(temporary);
  write_new_text_file(temporary, dump(json, 1) + "\n");
  publish(temporary, path);
}

}  // namespace lapidary
