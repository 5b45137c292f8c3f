// Any bytes written over the arrays of a shard, with hashes that agree: documents that keep the rules, or an
// Error. The first two bytes say where. Any bytes as a manifest: refused.
#include <cstdlib>

#include "data/check_document.h"
#include "data/shard_reader.h"
#include "tests/data/forged_shards.h"
#include "tests/data/sample_documents.h"

namespace {

using namespace lapidary;

/// A data set that each input changes, and how its shard was before.
struct Target {
  Target() {
    SampleMaker maker(1);
    std::vector<Document> documents;
    documents.reserve(8);
    for (int d = 0; d < 8; ++d) documents.push_back(maker.mixed(20));
    write_data_set(folder / "data", documents);
    const ShardRecord record = read_manifest(folder / "data").shards.at(0);
    good = read_text_file((folder / "data" / record.file).string(), 1 << 24);
  }
  TemporaryDirectory folder;
  std::string good;
};

void read_all(const std::filesystem::path& directory) {
  DataSet set(directory);
  std::vector<Piece> pieces;
  for (std::int64_t d = 0; d < set.documents(); ++d) pieces.push_back({d, 0, set.document_tokens()[d]});
  for (const Document& document : set.read(pieces, true))
    check_document(document, set.manifest().layout, "document");
}

void read_as_manifest(const std::filesystem::path& folder, std::string_view text) {
  std::filesystem::create_directories(folder);
  std::filesystem::remove(folder / kManifestName);
  write_new_text_file((folder / kManifestName).string(), text);
  try {
    read_manifest(folder);
    std::abort();  // it carries a hash of itself
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  static const Target target;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (size < 2) return 0;
  read_as_manifest(target.folder / "manifest", input);
  std::string bad = target.good;
  const std::size_t at = (std::size_t{data[0]} << 8 | data[1]) % bad.size();
  const std::string_view change = input.substr(2, bad.size() - at);
  bad.replace(at, change.size(), change);
  forge_shard(target.folder / "data",
              [&](File& shard, const ShardRecord&) { shard.write_at(bad.data(), bad.size(), 0); });
  try {
    read_all(target.folder / "data");
  } catch (const Error&) {
  }
  return 0;
}
