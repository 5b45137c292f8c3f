#include "data/row_source.h"

#include <utility>

#include "kernels/check.h"

namespace lapidary {

namespace {

std::vector<std::unique_ptr<DataSet>> open_sets(const LoaderOptions& options) {
  require(!options.sources.empty(), "no data set is given");
  std::vector<std::unique_ptr<DataSet>> sets;
  for (const DataSource& source : options.sources) {
    sets.push_back(std::make_unique<DataSet>(source.path));
    const TokenLayout& found = sets.back()->manifest().layout;
    if (options.layout) require_same_layout(found, source.path, *options.layout, "the model's configuration");
    require_same_layout(found, source.path, sets.front()->manifest().layout, options.sources.front().path);
  }
  return sets;
}

std::vector<SourceLengths> lengths_of(const std::vector<std::unique_ptr<DataSet>>& sets,
                                      const LoaderOptions& options) {
  std::vector<SourceLengths> lengths;
  for (std::size_t s = 0; s < sets.size(); ++s) {
    lengths.push_back({options.sources[s].path, options.sources[s].weight, sets[s]->document_tokens(),
                       sets[s]->document_feature_kib()});
  }
  return lengths;
}

}  // namespace

RowSource::RowSource(const LoaderOptions& options)
    : sets_(open_sets(options)),
      plan_(lengths_of(sets_, options), {.sequence_length = options.sequence_length,
                                         .seed = options.seed,
                                         .shuffle = options.shuffle,
                                         .one_pass = options.one_pass,
                                         .look_ahead = options.look_ahead,
                                         .skip_too_long = options.skip_too_long}) {}

std::vector<std::vector<Document>> RowSource::read(std::span<const Row> rows, bool with_sources) {
  // Grouped by data set, read together, and dealt out again.
  std::vector<std::vector<Piece>> pieces(sets_.size());
  std::vector<std::vector<std::pair<std::size_t, std::size_t>>> places(sets_.size());  // row, piece in it
  std::vector<std::vector<Document>> documents(rows.size());
  for (std::size_t r = 0; r < rows.size(); ++r) {
    documents[r].resize(rows[r].pieces.size());
    for (std::size_t p = 0; p < rows[r].pieces.size(); ++p) {
      Piece piece = rows[r].pieces[p];
      const auto [set, document] = plan_.locate(piece.document);
      piece.document = document;
      pieces[set].push_back(piece);
      places[set].emplace_back(r, p);
    }
  }
  for (std::size_t s = 0; s < sets_.size(); ++s) {
    std::vector<Document> read = sets_[s]->read(pieces[s], with_sources);
    for (std::size_t i = 0; i < read.size(); ++i) {
      documents[places[s][i].first][places[s][i].second] = std::move(read[i]);
    }
  }
  return documents;
}

}  // namespace lapidary
