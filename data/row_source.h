// The data sets of a run taken together: one plan of rows over all of them, and their documents by id. The
// loader reads through it in the background, `data show` in the foreground.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "data/loader_options.h"
#include "data/packing.h"
#include "data/shard_reader.h"

namespace lapidary {

class RowSource {
 public:
  /// Opens options.sources. Error where a data set is damaged, the token layouts differ from each other or
  /// from options.layout, or the documents cannot be planned.
  explicit RowSource(const LoaderOptions& options);

  RowPlan& plan() { return plan_; }
  const RowPlan& plan() const { return plan_; }
  const TokenLayout& layout() const { return sets_.front()->manifest().layout; }
  std::vector<std::unique_ptr<DataSet>>& sets() { return sets_; }
  const std::vector<std::unique_ptr<DataSet>>& sets() const { return sets_; }

  /// The rows' pieces as documents, row after row.
  std::vector<std::vector<Document>> read(std::span<const Row> rows, bool with_sources = false);

 private:
  std::vector<std::unique_ptr<DataSet>> sets_;
  RowPlan plan_;
};

}  // namespace lapidary
