// The plan of rows: every document once an epoch, nothing with media cut, rows never over-full, the same plan
// from any starting point, and an efficiency worth having.
#include "data/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "kernels/error.h"
#include "tests/data/sample_documents.h"

namespace lapidary {
namespace {

struct Lengths {
  std::vector<std::int32_t> tokens, kib;
  SourceLengths source(double weight = 1, const std::string& name = "data") const {
    return {name, weight, tokens, kib};
  }
};

/// Lengths as conversations have them: log-normal, median 400; every `media`-th has images.
Lengths random_lengths(std::int64_t count, unsigned seed, std::int32_t longest, int media = 3) {
  std::mt19937 random(seed);
  std::lognormal_distribution<double> length(6, 1);
  Lengths lengths;
  for (std::int64_t d = 0; d < count; ++d) {
    const bool has_media = media > 0 && random() % media == 0;
    const double limit = has_media ? longest : 20.0 * longest;
    lengths.tokens.push_back(static_cast<std::int32_t>(std::clamp(length(random), 1.0, limit)));
    lengths.kib.push_back(has_media ? 100 : 0);
  }
  return lengths;
}

std::vector<Row> rows_of_one_pass(const std::vector<SourceLengths>& sources, PackingOptions options) {
  options.one_pass = true;
  RowPlan plan(sources, options);
  std::vector<Row> rows;
  for (Row row; plan.next(row);) rows.push_back(row);
  return rows;
}

bool equal(const std::vector<Row>& a, const std::vector<Row>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Row& x, const Row& y) { return x.pieces == y.pieces && x.tokens == y.tokens; });
}

TEST(RowPlan, covers_every_token_exactly_once_and_cuts_only_long_text) {
  for (unsigned seed = 0; seed < 30; ++seed) {
    const PackingOptions options{.sequence_length = 512 + 100 * static_cast<int>(seed % 5),
                                 .seed = seed,
                                 .shuffle = seed % 4 != 0,
                                 .look_ahead = 1 + static_cast<int>(seed * seed)};
    const Lengths lengths = random_lengths(1000, seed, static_cast<std::int32_t>(options.sequence_length));
    std::map<std::int64_t, std::set<std::pair<std::int32_t, std::int32_t>>> pieces;
    for (const Row& row : rows_of_one_pass({lengths.source()}, options)) {
      std::int64_t tokens = 0;
      for (const Piece& piece : row.pieces) {
        tokens += piece.tokens();
        EXPECT_TRUE(pieces[piece.document].emplace(piece.begin, piece.end).second);
      }
      EXPECT_EQ(tokens, row.tokens);
      EXPECT_GE(tokens, 1);
      EXPECT_LE(tokens, options.sequence_length);
    }
    ASSERT_EQ(pieces.size(), 1000u);
    for (const auto& [document, parts] : pieces) {
      std::int32_t at = 0;
      for (const auto& [begin, end] : parts) {
        EXPECT_EQ(begin, at);
        at = end;
      }
      EXPECT_EQ(at, lengths.tokens[document]);
      const bool whole = lengths.tokens[document] <= options.sequence_length || lengths.kib[document] > 0;
      EXPECT_EQ(parts.size() == 1, whole);
    }
  }
}

TEST(RowPlan, depends_on_seed_and_epoch_and_on_nothing_else) {
  const Lengths lengths = random_lengths(500, 1, 1024);
  const PackingOptions options{.sequence_length = 1024, .seed = 5};
  const auto rows = [&](std::uint64_t seed, int count) {
    PackingOptions with_seed = options;
    with_seed.seed = seed;
    RowPlan plan({lengths.source()}, with_seed);
    std::vector<Row> planned(static_cast<std::size_t>(count));
    for (Row& row : planned) EXPECT_TRUE(plan.next(row));
    return planned;
  };
  EXPECT_TRUE(equal(rows(5, 1500), rows(5, 1500)));
  EXPECT_FALSE(equal(rows(5, 20), rows(6, 20)));
  const std::vector<Row> pass = rows_of_one_pass({lengths.source()}, options);
  const std::vector<Row> two = rows(5, static_cast<int>(2 * pass.size()));
  EXPECT_TRUE(equal(pass, {two.begin(), two.begin() + static_cast<std::ptrdiff_t>(pass.size())}));
  EXPECT_FALSE(equal(pass, {two.begin() + static_cast<std::ptrdiff_t>(pass.size()), two.end()}));
}

TEST(RowPlan, the_order_is_pinned) {
  // A change of these numbers changes the order of every running training: it needs a new format of Position.
  OrderRandom random(1, 2, 3, 4);
  const std::vector<std::uint64_t> drawn = {random.next(), random.next(), random.below(1000),
                                            random.below(1000)};
  EXPECT_EQ(drawn, (std::vector<std::uint64_t>{62400851800082039u, 6287687025694899446u, 502u, 572u}));
  Lengths lengths;
  for (int d = 0; d < 20; ++d) {
    lengths.tokens.push_back(10 + 7 * d % 50);
    lengths.kib.push_back(0);
  }
  std::vector<std::int64_t> documents;
  for (const Row& row :
       rows_of_one_pass({lengths.source()}, {.sequence_length = 64, .seed = 9, .look_ahead = 4})) {
    for (const Piece& piece : row.pieces) documents.push_back(piece.document);
  }
  EXPECT_EQ(documents, (std::vector<std::int64_t>{5,  8,  6,  7, 17, 3,  10, 0, 19, 13,
                                                  11, 16, 18, 9, 12, 15, 14, 2, 4,  1}));
}

TEST(RowPlan, continues_from_any_row) {
  const Lengths first = random_lengths(300, 2, 700), second = random_lengths(100, 3, 700);
  const std::vector<SourceLengths> sources = {first.source(1), second.source(2.5)};
  const PackingOptions options{.sequence_length = 700, .seed = 8, .look_ahead = 64};
  RowPlan plan(sources, options);
  struct Mark {
    std::int64_t row, epoch, epoch_first_row;
  };
  std::vector<Row> rows(2000);
  std::vector<Mark> marks;
  for (Row& row : rows) {
    marks.push_back({plan.row(), plan.epoch(), plan.epoch_first_row()});
    ASSERT_TRUE(plan.next(row));
  }
  EXPECT_GT(plan.epoch(), 2);
  for (std::size_t at = 0; at < marks.size(); at += 37) {
    RowPlan other(sources, options);
    other.seek(marks[at].row, marks[at].epoch, marks[at].epoch_first_row);
    std::vector<Row> rest(std::min<std::size_t>(200, rows.size() - at));
    for (Row& row : rest) ASSERT_TRUE(other.next(row));
    EXPECT_TRUE(equal(rest, {rows.begin() + static_cast<std::ptrdiff_t>(at),
                             rows.begin() + static_cast<std::ptrdiff_t>(at + rest.size())}));
    if (at % 5 == 0) {
      other.seek(marks[at].row, 0, 0);  // the row's number alone is enough, if slower
      Row row;
      ASSERT_TRUE(other.next(row));
      EXPECT_EQ(row.pieces, rows[at].pieces);
    }
  }
}

TEST(RowPlan, weights_say_how_often_a_source_comes_in_an_epoch) {
  Lengths one = random_lengths(1000, 4, 512, 0), two = random_lengths(300, 5, 512, 0);
  for (Lengths* lengths : {&one, &two}) {
    for (std::int32_t& tokens : lengths->tokens) tokens = std::min(tokens, 512);
  }
  RowPlan plan({one.source(0.25), two.source(1.5)}, {.sequence_length = 512, .seed = 3});
  std::map<std::int64_t, std::map<std::int64_t, int>> times;  // by epoch and document
  for (Row row; plan.next(row) && plan.epoch() < 4;) {
    for (const Piece& piece : row.pieces) ++times[plan.epoch()][piece.document];
  }
  std::map<std::int64_t, int> all;
  for (std::int64_t epoch = 0; epoch < 4; ++epoch) {
    std::int64_t from_one = 0, from_two = 0;
    for (const auto& [document, count] : times[epoch]) {
      (document < 1000 ? from_one : from_two) += count;
      all[document] += count;
    }
    EXPECT_EQ(from_one, 250);
    EXPECT_EQ(from_two, 450);
  }
  ASSERT_EQ(all.size(), 1300u);  // four quarters are the whole
  for (const auto& [document, count] : all) EXPECT_EQ(count, document < 1000 ? 1 : 6);
}

TEST(RowPlan, sources_are_mixed_through_the_epoch) {
  Lengths lengths;
  lengths.tokens.assign(4000, 100);
  lengths.kib.assign(4000, 0);
  const std::vector<Row> rows =
      rows_of_one_pass({lengths.source(), lengths.source()}, {.sequence_length = 1000});
  for (std::size_t begin = 0; begin + 100 <= rows.size(); begin += 100) {
    int from_first = 0;
    for (std::size_t r = begin; r < begin + 100; ++r) {
      for (const Piece& piece : rows[r].pieces) from_first += piece.document < 4000;
    }
    EXPECT_NEAR(from_first, 500, 5 * std::sqrt(250.0));  // five standard deviations
  }
}

TEST(RowPlan, shuffling_is_thorough_and_local) {
  // 40 M tokens: three groups of blocks. Neighbours are torn apart, yet a group draws on few places.
  Lengths lengths;
  lengths.tokens.assign(40'000, 1000);
  lengths.kib.assign(40'000, 0);
  SourceOrder order(lengths.source(), 1, 0, true);
  std::vector<std::int64_t> documents;
  for (int d = 0; d < 40'000; ++d) documents.push_back(order.next());
  const double mean = std::accumulate(documents.begin(), documents.begin() + 1000, 0.0) / 1000;
  EXPECT_NEAR(mean, 20'000, 5 * 40'000 / std::sqrt(12.0 * 64));  // 64 blocks from everywhere
  int neighbours = 0;
  for (std::size_t i = 1; i < documents.size(); ++i) neighbours += documents[i] == documents[i - 1] + 1;
  EXPECT_LT(neighbours, 50);
  std::set<std::int64_t> blocks;
  for (int d = 0; d < 10'000; ++d) blocks.insert(documents[d] / 263);  // documents of 1,000 tokens in a block
  EXPECT_LE(blocks.size(), 2 * SourceOrder::kMixedBlocks);
  std::sort(documents.begin(), documents.end());
  EXPECT_EQ(std::unique(documents.begin(), documents.end()), documents.end());
}

TEST(RowPlan, images_come_from_few_places_at_a_time) {
  Lengths lengths;
  lengths.tokens.assign(20'000, 400);  // fewer tokens than one group holds, but 35 GB of images
  lengths.kib.assign(20'000, 1782);
  SourceOrder order(lengths.source(), 1, 0, true);
  std::set<std::int64_t> places;
  for (int d = 0; d < 1000; ++d) places.insert(order.next() / 19);  // a block is 19 documents
  EXPECT_LE(places.size(), SourceOrder::kMixedBlocks);
  EXPECT_GE(places.size(), SourceOrder::kMixedBlocks / 2);
}

TEST(RowPlan, rows_are_nearly_full) {
  const Lengths lengths = random_lengths(100'000, 6, 4096);
  std::int64_t tokens = 0, rows = 0;
  for (const Row& row : rows_of_one_pass({lengths.source()}, {.sequence_length = 4096, .seed = 1})) {
    tokens += row.tokens;
    ++rows;
  }
  EXPECT_GT(static_cast<double>(tokens) / static_cast<double>(rows * 4096), 0.995);
}

TEST(RowPlan, documents_that_fit_no_row_are_counted_or_skipped) {
  Lengths lengths = random_lengths(100, 7, 500);
  lengths.tokens[17] = 600;
  lengths.kib[17] = 1;
  lengths.tokens[40] = 900;
  lengths.kib[40] = 1;
  const std::string message = error_of([&] { RowPlan({lengths.source()}, {.sequence_length = 512}); });
  EXPECT_NE(message.find("2 of 100 documents"), std::string::npos) << message;
  EXPECT_NE(message.find("document 40, has 900"), std::string::npos) << message;
  RowPlan plan({lengths.source()}, {.sequence_length = 512, .one_pass = true, .skip_too_long = true});
  EXPECT_EQ(plan.skipped_documents(), 2);
  std::set<std::int64_t> documents;
  for (Row row; plan.next(row);) {
    for (const Piece& piece : row.pieces) documents.insert(piece.document);
  }
  EXPECT_EQ(documents.size(), 98u);
  EXPECT_FALSE(documents.contains(17) || documents.contains(40));
}

TEST(RowPlan, what_cannot_be_planned_is_refused) {
  Lengths lengths = random_lengths(10, 8, 500);
  const auto refused = [&](const std::vector<SourceLengths>& sources, const PackingOptions& options) {
    return error_of([&] { RowPlan(sources, options); });
  };
  EXPECT_NE(refused({}, {.sequence_length = 512}).find("no data set"), std::string::npos);
  EXPECT_NE(
      refused({SourceLengths{.name = "none"}}, {.sequence_length = 512}).find("none: the data set holds no"),
      std::string::npos);
  EXPECT_NE(refused({lengths.source()}, {.sequence_length = 1}).find("sequence_length is 1"),
            std::string::npos);
  EXPECT_NE(refused({lengths.source()}, {.sequence_length = 512, .look_ahead = 0}).find("look_ahead is 0"),
            std::string::npos);
  for (const double weight : {0.0, -1.0, 0.05, 1e7, std::nan(""), HUGE_VAL}) {
    EXPECT_NE(refused({lengths.source(weight)}, {.sequence_length = 512}).find("weight"), std::string::npos);
  }
  Lengths all_long;
  all_long.tokens.assign(3, 600);
  all_long.kib.assign(3, 1);
  EXPECT_NE(
      refused({all_long.source()}, {.sequence_length = 512, .skip_too_long = true}).find("all 3 documents"),
      std::string::npos);
}

}  // namespace
}  // namespace lapidary
