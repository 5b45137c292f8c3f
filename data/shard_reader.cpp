#include "data/shard_reader.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "data/check_document.h"
#include "data/checked_file.h"
#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"
#include "kernels/hdf5_file.h"

namespace lapidary {

namespace {

// Every kGroup-th document's first token is kept; the lengths in between are added up when needed.
constexpr std::int64_t kGroup = 256;

/// The entries of `table` (rows of `columns` numbers, ordered by the document in column 0) that belong to
/// `document`.
std::span<const std::int64_t> entries_of(const std::vector<std::int64_t>& table, std::int64_t columns,
                                         std::int64_t document) {
  const auto row_of = [&](std::int64_t wanted) {
    std::int64_t low = 0, high = static_cast<std::int64_t>(table.size()) / columns;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (table[middle * columns] < wanted) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const std::int64_t first = row_of(document), last = row_of(document + 1);
  return {table.data() + first * columns, static_cast<std::size_t>((last - first) * columns)};
}

/// Images and sounds are recorded in order, and their features follow each other without a gap.
void check_table(const std::vector<std::int64_t>& table, std::int64_t columns, std::int64_t documents,
                 std::int64_t features, const char* kind, const std::string& path) {
  std::int64_t next_feature = 0, document = 0;
  for (std::size_t at = 0; at < table.size(); at += columns) {
    const std::int64_t number = static_cast<std::int64_t>(at) / columns;
    const bool in_range =
        std::all_of(table.begin() + at, table.begin() + at + columns,
                    [](std::int64_t value) { return value >= 0 && value < (std::int64_t{1} << 31); });
    require(in_range && table[at] >= document && table[at] < documents,
            "{}: {} {} is not in order or out of range", path, kind, number);
    document = table[at];
    const std::int64_t count = columns == kImageColumns ? table[at + image_columns] * table[at + image_rows]
                                                        : table[at + sound_frames];
    require(count >= 1 && table[at + columns - 1] == next_feature && count <= features - next_feature,
            "{}: {} {} has {} soft tokens from number {}, expected them from number {} of {}", path, kind,
            number, count, table[at + columns - 1], next_feature, features);
    next_feature += count;
  }
  require(next_feature == features, "{}: the {}s have {} soft tokens, expected {}", path, kind, next_feature,
          features);
}

}  // namespace

struct DataSet::OpenShard {
  std::size_t number;
  const ShardRecord& record;
  std::string path;
  CheckedFile file;
  std::vector<std::int64_t> images, sounds;  // the tables, row-major

  /// Sizes `to` and requests elements [first, first + count) of an array for it.
  template <class T>
  void fetch(const char* array, std::int64_t first, std::int64_t count, std::vector<T>& to,
             std::vector<ReadRequest>& requests) const {
    constexpr auto kEach = static_cast<std::int64_t>(sizeof(T));
    to.resize(static_cast<std::size_t>(count));
    if (count > 0) requests.push_back({record.places.at(array) + first * kEach, count * kEach, to.data()});
  }

  /// Fills in the images and sounds of a document (number within the shard) and requests their values. The
  /// tables were checked against the file's size, so they ask for no more memory than that.
  void fetch_media(std::int64_t document, const TokenLayout& layout, Document& to,
                   std::vector<ReadRequest>& requests) const {
    const auto image_rows_of = entries_of(images, kImageColumns, document);
    for (std::size_t i = 0; i < image_rows_of.size(); i += kImageColumns) {
      const std::int64_t* row = &image_rows_of[i];
      DocumentImage& image = to.images.emplace_back();
      image.first_token = static_cast<std::int32_t>(row[image_first_token]);
      image.columns = static_cast<std::int32_t>(row[image_columns]);
      image.rows = static_cast<std::int32_t>(row[image_rows]);
      fetch("patches", row[image_first_patch] * layout.patch_width,
            row[image_columns] * row[image_rows] * layout.patch_width, image.patches, requests);
    }
    const auto sound_rows_of = entries_of(sounds, kSoundColumns, document);
    for (std::size_t i = 0; i < sound_rows_of.size(); i += kSoundColumns) {
      const std::int64_t* row = &sound_rows_of[i];
      DocumentSound& sound = to.sounds.emplace_back();
      sound.first_token = static_cast<std::int32_t>(row[sound_first_token]);
      sound.frames = static_cast<std::int32_t>(row[sound_frames]);
      fetch("frames", row[sound_first_frame] * layout.frame_width, row[sound_frames] * layout.frame_width,
            sound.samples, requests);
    }
  }
};

DataSet::DataSet(std::filesystem::path directory) : directory_(std::move(directory)) {
  manifest_ = read_manifest(directory_);
  shard_document_.push_back(0);
  shard_segment_.push_back(0);
  for (const ShardRecord& shard : manifest_.shards) {
    shard_document_.push_back(shard_document_.back() + shard.counts.documents);
    shard_segment_.push_back(shard_segment_.back() + segments_in(shard.bytes));
  }
  read_index();
  check_lengths();
}

/// The index agrees with the manifest, shard by shard.
void DataSet::check_lengths() {
  const std::string path = (directory_ / kIndexName).string();
  std::int64_t tokens = 0;
  for (std::size_t shard = 0; shard < manifest_.shards.size(); ++shard) {
    const std::int64_t before = tokens;
    for (std::int64_t d = shard_document_[shard]; d < shard_document_[shard + 1]; ++d) {
      require(document_tokens_[d] >= 1 && document_feature_kib_[d] >= 0,
              "{}: document {} has {} tokens and {} KiB of features", path, d, document_tokens_[d],
              document_feature_kib_[d]);
      if (d % kGroup == 0) group_tokens_.push_back(tokens);
      tokens += document_tokens_[d];
    }
    require(tokens - before == manifest_.shards[shard].counts.tokens,
            "{}: the documents of {} have {} tokens, the manifest says {}", path,
            manifest_.shards[shard].file, tokens - before, manifest_.shards[shard].counts.tokens);
  }
}

DataSet::~DataSet() = default;

/// The index goes through HDF5, so its hash is checked first.
void DataSet::read_index() {
  const std::string path = (directory_ / kIndexName).string();
  const std::int64_t bytes = File::open_to_read(path).size();
  require(bytes == manifest_.index_bytes, "{}: {} bytes, expected {}: truncated or replaced", path, bytes,
          manifest_.index_bytes);
  const std::string checksum = checksum_of_file(path);
  require(checksum == manifest_.index_checksum, "{}: checksum {}, expected {}: the file is damaged", path,
          checksum, manifest_.index_checksum);
  const Hdf5File file = Hdf5File::open(path);
  document_tokens_ = file.read<std::int32_t>("document_tokens");
  document_feature_kib_ = file.read<std::int32_t>("document_feature_kib");
  segment_hashes_ = file.read<std::int64_t>("segment_hashes");
  const auto count = static_cast<std::size_t>(documents());
  require(document_tokens_.size() == count && document_feature_kib_.size() == count &&
              static_cast<std::int64_t>(segment_hashes_.size()) == shard_segment_.back(),
          "{}: describes {} documents and {} segments, the manifest {} and {}", path, document_tokens_.size(),
          segment_hashes_.size(), count, shard_segment_.back());
}

std::span<const std::int64_t> DataSet::segment_hashes(std::size_t shard) const {
  return std::span(segment_hashes_)
      .subspan(static_cast<std::size_t>(shard_segment_[shard]),
               static_cast<std::size_t>(shard_segment_[shard + 1] - shard_segment_[shard]));
}

void DataSet::check_sizes(int part, int parts) const {
  for (std::size_t s = static_cast<std::size_t>(part); s < manifest_.shards.size(); s += parts) {
    const std::string path = (directory_ / manifest_.shards[s].file).string();
    std::error_code error;
    const auto size = std::filesystem::file_size(path, error);
    if (error) fail_with_errno("cannot examine", path, error.value());
    require(static_cast<std::int64_t>(size) == manifest_.shards[s].bytes,
            "{}: {} bytes, expected {}: truncated or replaced", path, size, manifest_.shards[s].bytes);
  }
}

std::size_t DataSet::shard_of(std::int64_t document) const {
  return static_cast<std::size_t>(std::upper_bound(shard_document_.begin(), shard_document_.end(), document) -
                                  shard_document_.begin()) -
         1;
}

/// Tokens before `document` in the whole data set.
std::int64_t DataSet::first_token(std::int64_t document) const {
  const std::int64_t group = document / kGroup;
  return std::accumulate(document_tokens_.begin() + group * kGroup, document_tokens_.begin() + document,
                         group_tokens_[group]);
}

DataSet::OpenShard& DataSet::open(std::size_t shard) {
  const auto found =
      std::find_if(open_.begin(), open_.end(), [&](const auto& one) { return one->number == shard; });
  if (found != open_.end()) {
    std::rotate(found, found + 1, open_.end());
    return *open_.back();
  }
  if (open_.size() == kOpenShards) open_.erase(open_.begin());
  const ShardRecord& record = manifest_.shards[shard];
  const std::string path = (directory_ / record.file).string();
  auto opened = std::make_unique<OpenShard>(
      OpenShard{shard, record, path, CheckedFile(path, record.bytes, segment_hashes(shard)), {}, {}});
  std::vector<ReadRequest> requests;
  opened->fetch("images", 0, record.counts.images * kImageColumns, opened->images, requests);
  opened->fetch("sounds", 0, record.counts.sounds * kSoundColumns, opened->sounds, requests);
  bytes_read_ += opened->file.read(requests, scratch_);
  check_table(opened->images, kImageColumns, record.counts.documents, record.counts.patches, "image", path);
  check_table(opened->sounds, kSoundColumns, record.counts.documents, record.counts.frames, "sound", path);
  ++shards_opened_;
  open_.push_back(std::move(opened));
  return *open_.back();
}

std::vector<Document> DataSet::read(std::span<const Piece> pieces, bool with_sources) {
  std::vector<std::size_t> order(pieces.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (const Piece& piece : pieces) {
    require(piece.document >= 0 && piece.document < documents() && piece.begin >= 0 &&
                piece.begin < piece.end && piece.end <= document_tokens_[piece.document],
            "{}: asked for tokens [{}, {}) of document {}", directory_.string(), piece.begin, piece.end,
            piece.document);
  }
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return pieces[a].document < pieces[b].document; });
  std::vector<Document> documents(pieces.size());
  for (std::size_t at = 0; at < order.size();) {
    const std::size_t shard = shard_of(pieces[order[at]].document);
    std::size_t end = at;
    while (end < order.size() && pieces[order[end]].document < shard_document_[shard + 1]) ++end;
    read_from(shard, pieces, std::span(order).subspan(at, end - at), with_sources, documents);
    at = end;
  }
  return documents;
}

void DataSet::read_from(std::size_t shard, std::span<const Piece> pieces, std::span<const std::size_t> chosen,
                        bool with_sources, std::vector<Document>& documents) {
  OpenShard& opened = open(shard);
  const std::int64_t first_document = shard_document_[shard], shard_token = first_token(first_document);
  std::vector<ReadRequest> requests;
  for (const std::size_t p : chosen) {
    const Piece& piece = pieces[p];
    const std::int64_t at = first_token(piece.document) - shard_token + piece.begin;
    opened.fetch("tokens", at, piece.tokens(), documents[p].tokens, requests);
    opened.fetch("trained", at, piece.tokens(), documents[p].trained, requests);
    if (document_feature_kib_[piece.document] == 0) continue;
    require(piece.begin == 0 && piece.end == document_tokens_[piece.document],
            "{}: document {} has images or sounds and cannot be cut", opened.path,
            piece.document - first_document);
    opened.fetch_media(piece.document - first_document, manifest_.layout, documents[p], requests);
  }
  bytes_read_ += opened.file.read(requests, scratch_);
  if (with_sources) read_sources(opened, pieces, chosen, documents);
  for (const std::size_t p : chosen) {
    if (pieces[p].begin > 0) documents[p].trained[0] = 0;
    check_document(documents[p], manifest_.layout,
                   fmt::format("{}: document {}", opened.path, pieces[p].document - first_document));
  }
}

void DataSet::read_sources(OpenShard& shard, std::span<const Piece> pieces,
                           std::span<const std::size_t> chosen, std::vector<Document>& documents) {
  const std::int64_t first_document = shard_document_[shard.number];
  std::vector<std::vector<std::int64_t>> ends(chosen.size());
  std::vector<ReadRequest> requests;
  for (std::size_t c = 0; c < chosen.size(); ++c) {
    shard.fetch("source_offsets", pieces[chosen[c]].document - first_document, 2, ends[c], requests);
  }
  bytes_read_ += shard.file.read(requests, scratch_);
  requests.clear();
  std::vector<std::vector<char>> texts(chosen.size());
  for (std::size_t c = 0; c < chosen.size(); ++c) {
    const std::int64_t begin = ends[c][0], end = ends[c][1];
    require(begin >= 0 && begin <= end && end <= shard.record.counts.source_bytes,
            "{}: the source of document {} takes bytes [{}, {}) of {}", shard.path,
            pieces[chosen[c]].document - first_document, begin, end, shard.record.counts.source_bytes);
    shard.fetch("sources", begin, end - begin, texts[c], requests);
  }
  bytes_read_ += shard.file.read(requests, scratch_);
  for (std::size_t c = 0; c < chosen.size(); ++c)
    documents[chosen[c]].source.assign(texts[c].begin(), texts[c].end());
}

}  // namespace lapidary
