// The tied embedding and output table, split by rows over the vocabulary group and never gathered: ranks
// exchange hidden states instead (architecture, decision 6).
#pragma once
#include <memory>

#include "kernels/arena.h"
#include "kernels/device.h"
#include "parallel/mesh.h"
#include "parallel/parameters.h"
#include "parallel/sharded_units.h"

namespace lapidary {

/// Rows [begin, end) of `rows` that rank `rank` of `ranks` holds: as even as can be, earlier ranks one more.
/// Any number of ranks, also more ranks than rows.
struct RowRange {
  std::int64_t begin = 0, end = 0;
  std::int64_t size() const { return end - begin; }
};
RowRange table_rows(std::int64_t rows, int rank, int ranks);

class VocabularyTable {
 public:
  /// parameter: index of the table in the parameter table; spec.shape is [V, D]. first_index: see
  /// ParameterShard. capacity: the most tokens that any rank brings to one exchange, equal on all ranks.
  VocabularyTable(const ParameterSpec& spec, int parameter, std::int64_t first_index, std::int64_t capacity,
                  Mesh& mesh, DType weights, DType gradients, Stream& compute, Arena& state);

  const RowRange& range() const { return range_; }
  Tensor weight() const;    ///< weight type [R, D]
  Tensor gradient() const;  ///< gradient type [R, D]
  Communicator& group() const { return *mesh_->vocabulary; }
  std::int64_t capacity() const { return capacity_; }

  /// out[t] = scale * table[ids[t]] for this rank's N <= capacity tokens (0 for id -1). Collective over the
  /// group; ranks may bring different N, also 0. Exchanges in pieces of bounded size, scratch from the
  /// stream's workspace.
  void look_up(Stream& stream, const Tensor& ids, double scale, const Tensor& out);
  /// Adds every group rank's scale * d_out to this rank's rows; padding_id gets nothing. Collective over the
  /// group.
  void look_up_backward(Stream& stream, const Tensor& ids, const Tensor& d_out, double scale,
                        std::int32_t padding_id);

  void zero_gradients();
  /// After the last micro-batch of a step: the gradient summed over the ranks that hold the same rows.
  void finish_gradients();
  ParameterShard& shard() { return shard_; }

 private:
  void check_tokens(const Tensor& ids, const Tensor& rows) const;

  Mesh* mesh_;
  Stream* compute_;
  RowRange range_;
  std::int64_t capacity_, width_;
  ParameterShard shard_;
};

}  // namespace lapidary
