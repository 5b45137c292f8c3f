// The data sets of a run taken together: one plan of rows over all of them, and their documents by id. The
// loader reads through it in the background, `data show` in the foreground.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/packing.h"
#include "data/shard_reader.h"

namespace lapidary {

class RowSource {
 public:
  /// Error where a data set is damaged or the token layouts differ.
  RowSource(const std::vector<std::string>& paths, const std::vector<double>& weights,
            const PackingOptions& options);

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
