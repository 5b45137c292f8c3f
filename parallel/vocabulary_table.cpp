#include "parallel/vocabulary_table.h"

#include <algorithm>
#include <array>

#include "kernels/check.h"
#include "kernels/ops.h"

namespace lapidary {

namespace {

// All of an exchange's buffers together. Two pieces are under way at a time: one travels while the other is
// computed.
constexpr std::int64_t kScratchBytes = std::int64_t{32} << 20;

// One buffer of an exchange: a piece of every rank's tokens, and of this rank's.
struct Piece {
  Tensor all;              // T [G * P, D], ranks in order
  Tensor mine;             // T [P, D]
  std::int64_t begin = 0;  // first token
  Ticket ticket;
};

// The tokens of one exchange in pieces of P tokens a rank; `all` and `mine` of every piece in flight fit the
// scratch.
class Exchange {
 public:
  Exchange(Stream& stream, const VocabularyTable& table, const Tensor& ids, const Tensor& rows)
      : stream_(&stream), group_(&table.group()), tokens_(ids.numel()), capacity_(table.capacity()) {
    const std::int64_t row = rows.cols() * static_cast<std::int64_t>(size_of(rows.dtype()));
    const std::int64_t fit = kScratchBytes / 2 / (row * (group_->size() + 1));
    length_ = std::clamp<std::int64_t>(fit, 1, capacity_);
    // An even cut: the last piece is not a small rest.
    const std::int64_t pieces = (capacity_ + length_ - 1) / length_;
    length_ = (capacity_ + pieces - 1) / pieces;
    gather_ids(ids);
    for (std::size_t i = 0; i < std::min<std::size_t>(static_cast<std::size_t>(pieces), 2); ++i) {
      buffers_[i].all = arena().allocate(rows.dtype(), {group_->size() * length_, rows.cols()});
      buffers_[i].mine = arena().allocate(rows.dtype(), {length_, rows.cols()});
    }
  }

  /// start(piece) begins the communication of a piece, finish(piece) uses it: start runs one piece ahead.
  template <class Start, class Finish>
  void run_pieces(const Start& start, const Finish& finish) {
    Piece* under_way = nullptr;
    for (std::int64_t begin = 0; begin < capacity_; begin += length_) {
      Piece& piece = buffers_[static_cast<std::size_t>(begin / length_ % 2)];
      piece.begin = begin;
      start(piece);
      if (under_way != nullptr) finish(*under_way);
      under_way = &piece;
    }
    if (under_way != nullptr) finish(*under_way);
  }

  /// This piece's ids of every rank, i32 [G * P]; a copy in the ranks' order.
  Tensor ids(const Piece& piece) const {
    return ids_.flat_range(piece.begin * group_->size(), group_->size() * length_);
  }
  /// How many of this rank's own tokens lie in the piece.
  std::int64_t own(const Piece& piece) const {
    return std::clamp<std::int64_t>(tokens_ - piece.begin, 0, length_);
  }
  std::int64_t length() const { return length_; }

 private:
  Arena& arena() const { return stream_->workspace(); }

  // ids_ [pieces, G, P]: one all-gather of the whole lists, then the pieces are put together.
  void gather_ids(const Tensor& ids) {
    const std::int64_t padded = (capacity_ + length_ - 1) / length_ * length_;
    const Tensor lists = arena().allocate(DType::i32, {group_->size(), padded});
    ids_ = arena().allocate(DType::i32, {group_->size() * padded});
    const Tensor mine = lists.row_range(group_->rank(), group_->rank() + 1).reshape({padded});
    run(*stream_, Copy{.in = ids.flat_range(0, tokens_), .out = mine.flat_range(0, tokens_)});
    run(*stream_, Fill{.x = mine.flat_range(tokens_, padded - tokens_), .value = -1});
    Ticket ticket = group_->all_gather(*stream_, mine, lists);
    group_->wait(*stream_, ticket);
    for (std::int64_t begin = 0; begin < padded; begin += length_) {
      run(*stream_, Copy{.in = lists.col_range(begin, begin + length_),
                         .out = ids_.flat_range(begin * group_->size(), length_ * group_->size())
                                    .reshape({group_->size(), length_})});
    }
  }

  Stream* stream_;
  Communicator* group_;
  std::int64_t tokens_, capacity_, length_ = 1;
  Tensor ids_;
  std::array<Piece, 2> buffers_;
};

}  // namespace

RowRange table_rows(std::int64_t rows, int rank, int ranks) {
  require(rows >= 0 && ranks >= 1 && rank >= 0 && rank < ranks, "{} rows, rank {} of {}", rows, rank, ranks);
  const std::int64_t each = rows / ranks, more = rows % ranks;
  const std::int64_t begin = rank * each + std::min<std::int64_t>(rank, more);
  return {begin, begin + each + (rank < more ? 1 : 0)};
}

VocabularyTable::VocabularyTable(const ParameterSpec& spec, int parameter, std::int64_t first_index,
                                 std::int64_t capacity, Mesh& mesh, DType weights, DType gradients,
                                 Stream& compute, Arena& state)
    : mesh_(&mesh), compute_(&compute), capacity_(capacity) {
  require(spec.shape.size() == 2, "{} has {} dimensions, expected 2 [vocabulary, width]", spec.name,
          spec.shape.size());
  require(capacity >= 1, "{}: a capacity of {} tokens, expected at least 1", spec.name, capacity);
  width_ = spec.shape[1];
  range_ = table_rows(spec.shape[0], group().rank(), group().size());
  const std::int64_t count = range_.size() * width_;
  shard_.weight = state.allocate(weights, {count});
  shard_.gradient = state.allocate(gradients, {count});
  if (count > 0) shard_.slices.push_back({parameter, range_.begin * width_, count, 0});
  shard_.first_index = first_index + range_.begin * width_;
  shard_.replicas = mesh.table_replicas->size();
  run(compute, Fill{.x = shard_.weight});
  zero_gradients();
}

Tensor VocabularyTable::weight() const {
  return shard_.weight.reshape({range_.size(), width_});
}

Tensor VocabularyTable::gradient() const {
  return shard_.gradient.reshape({range_.size(), width_});
}

void VocabularyTable::check_tokens(const Tensor& ids, const Tensor& rows) const {
  if (ids.numel() != rows.rows() || rows.cols() != width_ || !rows.contiguous())
    fail("vocabulary table of width {}: {} for {}", width_, rows.describe(), ids.describe());
  require(group().size() == 1 || ids.numel() <= capacity_,
          "vocabulary table: {} tokens, more than the {} that were planned", ids.numel(), capacity_);
}

void VocabularyTable::look_up(Stream& stream, const Tensor& ids, double scale, const Tensor& out) {
  check_tokens(ids, out);
  const auto look_up_here = [&](const Tensor& some_ids, const Tensor& rows) {
    run(stream,
        EmbeddingLookup{
            .ids = some_ids, .table = weight(), .first_row = range_.begin, .scale = scale, .out = rows});
  };
  if (group().size() == 1) return look_up_here(ids, out);

  // Every rank looks up every rank's tokens; where the row is another's the result is 0, so the sum is exact.
  ArenaScope scope(stream.workspace());
  Exchange exchange(stream, *this, ids, out);
  exchange.run_pieces(
      [&](Piece& piece) {
        look_up_here(exchange.ids(piece), piece.all);
        const std::int64_t own = exchange.own(piece);
        const bool whole = own == exchange.length();
        const Tensor to = whole ? out.row_range(piece.begin, piece.begin + own) : piece.mine;
        piece.ticket = group().reduce_scatter(stream, piece.all, to);
      },
      [&](Piece& piece) {
        group().wait(stream, piece.ticket);
        const std::int64_t own = exchange.own(piece);
        if (own == 0 || own == exchange.length()) return;
        run(stream,
            Copy{.in = piece.mine.row_range(0, own), .out = out.row_range(piece.begin, piece.begin + own)});
      });
}

void VocabularyTable::look_up_backward(Stream& stream, const Tensor& ids, const Tensor& d_out, double scale,
                                       std::int32_t padding_id) {
  check_tokens(ids, d_out);
  const auto add_here = [&](const Tensor& some_ids, const Tensor& rows) {
    run(stream, EmbeddingBackward{.ids = some_ids,
                                  .d_out = rows,
                                  .first_row = range_.begin,
                                  .padding_id = padding_id,
                                  .scale = scale,
                                  .d_table = gradient()});
  };
  if (group().size() == 1) return add_here(ids, d_out);

  ArenaScope scope(stream.workspace());
  Exchange exchange(stream, *this, ids, d_out);
  exchange.run_pieces(
      [&](Piece& piece) {
        const std::int64_t own = exchange.own(piece);
        Tensor from = piece.mine;  // rows behind the own ones have id -1: what they hold does not matter
        if (own == exchange.length()) {
          from = d_out.row_range(piece.begin, piece.begin + own);
        } else if (own > 0) {
          run(stream,
              Copy{.in = d_out.row_range(piece.begin, piece.begin + own), .out = from.row_range(0, own)});
        }
        piece.ticket = group().all_gather(stream, from, piece.all);
      },
      [&](Piece& piece) {
        group().wait(stream, piece.ticket);
        add_here(exchange.ids(piece), piece.all);
      });
}

void VocabularyTable::zero_gradients() {
  run(*compute_, Fill{.x = shard_.gradient});
}

void VocabularyTable::finish_gradients() {
  Ticket ticket = mesh_->table_replicas->all_reduce(*compute_, shard_.gradient, Reduction::sum);
  mesh_->table_replicas->wait(*compute_, ticket);
}

}  // namespace lapidary
