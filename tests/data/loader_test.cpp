// The loader against the plan and the documents themselves: the same rows on any number of ranks, batches
// that hold exactly their documents, exact continuation, bounded reading, and errors that arrive where they
// can be seen.
#include "data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <numeric>
#include <thread>

#include "data/shard_format.h"
#include "data/shard_reader.h"
#include "tests/data/sample_documents.h"

namespace lapidary {
namespace {

constexpr std::int64_t kLength = 160;

const std::vector<std::int32_t> kSoftIds = {1001, 1004, 1006};

/// A data set of text, long text, images and sounds that all tests here read.
class LoaderTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new TemporaryDirectory;
    documents_ = new std::vector<Document>;
    SampleMaker maker(1);
    for (int d = 0; d < 200; ++d) documents_->push_back(maker.mixed(15));
    for (int d = 0; d < 5; ++d) documents_->push_back(maker.text(maker.number(200, 900)));
    std::erase_if(*documents_, [](const Document& document) {
      return (!document.images.empty() || !document.sounds.empty()) && document.tokens.size() > kLength;
    });
    write_data_set(*directory_ / "data", *documents_, 10'000);
  }
  static void TearDownTestSuite() {
    delete documents_;
    delete directory_;
  }

  static LoaderOptions options() {
    LoaderOptions options;
    options.sources = {{(*directory_ / "data").string()}};
    options.sequence_length = kLength;
    options.rows_per_step = 6;
    options.seed = 3;
    options.window = 16;
    return options;
  }

  static TemporaryDirectory* directory_;
  static std::vector<Document>* documents_;
};
TemporaryDirectory* LoaderTest::directory_ = nullptr;
std::vector<Document>* LoaderTest::documents_ = nullptr;

/// The batch's rows apart: what one row holds, whatever batch it came in.
struct FlatRow {
  std::vector<std::int32_t> ids, targets, positions, full, sliding, patch_xy;
  std::vector<std::byte> patches, frames;

  bool operator==(const FlatRow&) const = default;
  bool operator<(const FlatRow& other) const { return ids < other.ids; }
};

std::vector<FlatRow> rows_of(const Batch& batch) {
  std::vector<FlatRow> rows(static_cast<std::size_t>(batch.rows));
  for (std::int64_t t = 0; t < batch.tokens(); ++t) {
    const auto start = static_cast<std::int32_t>(t / kLength * kLength);
    FlatRow& row = rows[static_cast<std::size_t>(t / kLength)];
    row.ids.push_back(batch.ids[t]);
    row.targets.push_back(batch.targets[t]);
    row.positions.push_back(batch.positions[t]);
    for (const std::int32_t end : {batch.full.lo[t], batch.full.hi[t]}) row.full.push_back(end - start);
    for (const std::int32_t end : {batch.sliding.lo[t], batch.sliding.hi[t]})
      row.sliding.push_back(end - start);
  }
  const auto deal = [&](const Features& features, std::vector<std::byte> FlatRow::*to) {
    const auto bytes =
        static_cast<std::ptrdiff_t>(features.width) * static_cast<std::ptrdiff_t>(size_of(features.dtype));
    for (std::int64_t i = 0; i < features.count; ++i) {
      std::vector<std::byte>& values = rows[static_cast<std::size_t>(features.token[i] / kLength)].*to;
      values.insert(values.end(), features.values.begin() + i * bytes,
                    features.values.begin() + (i + 1) * bytes);
    }
  };
  deal(batch.patches, &FlatRow::patches);
  deal(batch.frames, &FlatRow::frames);
  for (std::int64_t i = 0; i < batch.patches.count; ++i) {
    std::vector<std::int32_t>& xy = rows[static_cast<std::size_t>(batch.patches.token[i] / kLength)].patch_xy;
    xy.insert(xy.end(), {batch.patch_xy[2 * i], batch.patch_xy[2 * i + 1]});
  }
  return rows;
}

struct Seen {
  std::vector<std::vector<std::int64_t>> samples;  // by step
  std::vector<std::vector<FlatRow>> rows;          // by step, in the step's order
};

/// Runs `ranks` loaders side by side and puts the steps' rows together again.
Seen run(LoaderOptions options, int ranks, int steps) {
  options.ranks = ranks;
  std::vector<std::unique_ptr<Loader>> loaders;
  for (options.rank = 0; options.rank < ranks; ++options.rank)
    loaders.push_back(std::make_unique<Loader>(options));
  Seen seen;
  for (int s = 0; s < steps; ++s) {
    std::vector<FlatRow> rows(static_cast<std::size_t>(options.rows_per_step));
    for (int rank = 0; rank < ranks; ++rank) {
      const StepBatches step = loaders[rank]->next();
      EXPECT_EQ(step.first_row, s * options.rows_per_step);
      EXPECT_EQ(step.rows, options.rows_per_step);
      const std::int64_t share = ranks * options.rows_per_micro;
      EXPECT_EQ(static_cast<std::int64_t>(step.micro.size()), (options.rows_per_step + share - 1) / share);
      if (rank == 0) {
        seen.samples.push_back(step.samples);
      } else {
        EXPECT_EQ(step.samples, seen.samples.back());
      }
      std::int64_t local = 0;
      for (const Batch& batch : step.micro) {
        check_batch(batch, 1010, kSoftIds, "test");
        EXPECT_EQ(batch.tokens(), batch.rows * kLength);
        EXPECT_LE(batch.rows, options.rows_per_micro);
        for (FlatRow& row : rows_of(batch)) {
          const std::int64_t index = local++ * ranks + rank;
          EXPECT_LT(index, options.rows_per_step);
          rows[static_cast<std::size_t>(index)] = std::move(row);
        }
      }
    }
    seen.rows.push_back(std::move(rows));
  }
  return seen;
}

TEST_F(LoaderTest, every_number_of_ranks_and_micro_batch_sees_the_same_steps) {
  const Seen one = run(options(), 1, 40);
  for (const int ranks : {1, 2, 3, 4, 7}) {
    for (const int per_micro : {1, 2, 5}) {
      LoaderOptions other = options();
      other.rows_per_micro = per_micro;
      other.read_ahead_bytes = ranks * per_micro * 1000;
      const Seen seen = run(other, ranks, 40);
      EXPECT_EQ(seen.samples, one.samples) << ranks << " ranks";
      EXPECT_EQ(seen.rows, one.rows) << ranks << " ranks";
    }
  }
}

TEST_F(LoaderTest, an_epoch_holds_every_document_as_it_was_written) {
  LoaderOptions once = options();
  once.one_pass = true;
  once.rows_per_step = 1;
  Loader loader(once);
  std::vector<std::vector<std::int32_t>> tokens(documents_->size()), targets(documents_->size());
  std::int64_t patches = 0, padding = 0;
  while (!loader.done()) {
    const StepBatches step = loader.next();
    padding += step.padding;
    const Batch& batch = step.micro.at(0);
    EXPECT_EQ(batch.samples, step.samples);
    patches += batch.patches.count;
    std::size_t at = 0;
    for (const std::int64_t sample : batch.samples) {
      // The document's tokens (or a piece of them) stand here, each predicting the next where that is
      // trained.
      const Document& document = documents_->at(static_cast<std::size_t>(sample));
      std::vector<std::int32_t>& seen = tokens[static_cast<std::size_t>(sample)];
      const std::size_t begin = at;
      do {
        EXPECT_EQ(batch.positions[at], static_cast<std::int32_t>(at - begin));
        EXPECT_EQ(batch.full.lo[at], static_cast<std::int32_t>(begin));
        const std::size_t in_document = document.tokens.size() > kLength ? SIZE_MAX : at - begin;
        if (in_document != SIZE_MAX) {
          const bool trained = in_document + 1 < document.tokens.size() && document.trained[in_document + 1];
          EXPECT_EQ(batch.targets[at], trained ? document.tokens[in_document + 1] : -1);
        }
        seen.push_back(batch.ids[at++]);
      } while (at < batch.ids.size() && batch.positions[at] > 0);
    }
    for (; at < batch.ids.size(); ++at) {
      EXPECT_EQ(batch.ids[at], 0);
      EXPECT_EQ(batch.targets[at], -1);
    }
  }
  std::int64_t total = 0;
  for (std::size_t d = 0; d < documents_->size(); ++d) {
    std::vector<std::int32_t> expected = documents_->at(d).tokens;
    if (expected.size() > kLength) {  // pieces come in any order
      std::sort(expected.begin(), expected.end());
      std::sort(tokens[d].begin(), tokens[d].end());
    }
    EXPECT_EQ(tokens[d], expected) << "document " << d;
    total += static_cast<std::int64_t>(expected.size());
  }
  EXPECT_EQ(patches, read_manifest(*directory_ / "data").counts.patches);
  const LoaderStats stats = loader.stats();
  EXPECT_EQ(stats.tokens, total);
  EXPECT_EQ(stats.padding, padding);
  EXPECT_EQ(stats.tokens + stats.padding, stats.rows * kLength);
  EXPECT_THROW(loader.next(), Error);
}

TEST_F(LoaderTest, features_stand_at_their_placeholders) {
  TemporaryDirectory temporary;
  SampleMaker maker(2);
  Document document = maker.text(10);
  maker.add_image(document, 3, 2);
  maker.add_text(document, 4);
  maker.add_sound(document, 3);
  maker.add_image(document, 1, 2, true);
  write_data_set(temporary / "data", {document});
  LoaderOptions one = options();
  one.sources = {{(temporary / "data").string()}};
  one.rows_per_step = 1;
  const Batch batch = Loader(one).next().micro.at(0);
  EXPECT_EQ(batch.patches.token, (std::vector<std::int32_t>{11, 12, 13, 14, 15, 16, 28, 29}));
  EXPECT_EQ(batch.patch_xy, (std::vector<std::int32_t>{0, 0, 1, 0, 2, 0, 0, 1, 1, 1, 2, 1, 0, 0, 0, 1}));
  EXPECT_EQ(batch.frames.token, (std::vector<std::int32_t>{23, 24, 25}));
  EXPECT_EQ(batch.patches.dtype, DType::u8);
  EXPECT_EQ(batch.frames.dtype, DType::i16);
  EXPECT_EQ(0, std::memcmp(batch.patches.values.data(), document.images[0].patches.data(), 6 * 12));
  EXPECT_EQ(0, std::memcmp(batch.patches.values.data() + 6 * 12, document.images[1].patches.data(), 2 * 12));
  EXPECT_EQ(0, std::memcmp(batch.frames.values.data(), document.sounds[0].samples.data(), 3 * 5 * 2));
  // An image is seen whole from its first patch in sliding layers; a sound stays causal.
  EXPECT_EQ(batch.sliding.hi[11], 17);
  EXPECT_EQ(batch.full.hi[11], 12);
  EXPECT_EQ(batch.sliding.hi[23], 24);
}

TEST_F(LoaderTest, continues_exactly_on_other_ranks_and_batch_sizes) {
  const Seen whole = run(options(), 1, 60);
  std::vector<FlatRow> rows;
  for (const auto& step : whole.rows) rows.insert(rows.end(), step.begin(), step.end());

  Loader first(options());
  for (int s = 0; s < 23; ++s) first.next();
  const Position position = first.position();
  EXPECT_EQ(position.row, 23 * 6);
  EXPECT_GT(position.epoch, 0);
  LoaderOptions other = options();
  other.rows_per_step = 4;
  other.ranks = 2;
  std::vector<std::vector<FlatRow>> of_rank(2);
  for (other.rank = 0; other.rank < 2; ++other.rank) {
    Loader loader(other);
    if (other.rank == 1) loader.next();  // a seek away from somewhere else is no different
    loader.seek(position);
    EXPECT_EQ(loader.position(), position);
    for (int s = 0; s < 20; ++s) {
      for (const Batch& batch : loader.next().micro) {
        for (FlatRow& row : rows_of(batch)) of_rank[other.rank].push_back(std::move(row));
      }
    }
    EXPECT_EQ(loader.position().row, 23 * 6 + 80);
  }
  for (std::size_t r = 0; r < 80; ++r) EXPECT_EQ(of_rank[r % 2][r / 2], rows[23 * 6 + r]) << "row " << r;
}

TEST_F(LoaderTest, one_pass_ends_with_a_short_step_and_can_be_repeated) {
  LoaderOptions once = options();
  once.one_pass = true;
  once.shuffle = false;
  once.ranks = 4;
  once.rank = 3;
  Loader loader(once);
  const Position start = loader.position();
  std::vector<std::vector<std::int64_t>> passes[2];
  for (auto& samples : passes) {
    std::int64_t rows = 0;
    while (!loader.done()) {
      const StepBatches step = loader.next();
      samples.push_back(step.samples);
      rows += step.rows;
      ASSERT_EQ(step.micro.size(), 2u);
      EXPECT_EQ(step.micro[0].rows, step.rows > 3 ? 1 : 0);
      EXPECT_EQ(step.micro[1].rows, 0);
    }
    EXPECT_NE(rows % 6, 0) << "the test wants a last step that is not full";
    EXPECT_TRUE(loader.done());
    EXPECT_EQ(loader.position().row, rows);
    const Position end = loader.position();
    loader.seek(end);
    EXPECT_TRUE(loader.done());
    loader.seek(start);
  }
  EXPECT_EQ(passes[0], passes[1]);
}

TEST_F(LoaderTest, a_position_of_other_data_or_another_order_is_refused) {
  Loader loader(options());
  loader.next();
  const Position position = loader.position();

  LoaderOptions longer = options();
  longer.sequence_length = 200;
  const std::string order = error_of([&] { Loader(longer).seek(position); });
  EXPECT_NE(order.find("rows of 160 tokens"), std::string::npos) << order;
  EXPECT_NE(order.find("rows of 200 tokens"), std::string::npos) << order;
  LoaderOptions seeded = options();
  seeded.seed = 4;
  EXPECT_NE(error_of([&] { Loader(seeded).seek(position); }).find("seed 4"), std::string::npos);

  TemporaryDirectory temporary;
  std::vector<Document> changed = *documents_;
  changed[10].tokens[0] ^= 1;
  write_data_set(temporary / "data", changed, 10'000);
  LoaderOptions elsewhere = options();
  elsewhere.sources = {{(temporary / "data").string()}};
  EXPECT_NE(error_of([&] { Loader(elsewhere).seek(position); }).find("the data sets have changed"),
            std::string::npos);
  std::filesystem::copy(*directory_ / "data", temporary / "moved");
  elsewhere.sources = {{(temporary / "moved").string()}};
  Loader(elsewhere).seek(position);  // the place may change, the contents may not
}

TEST_F(LoaderTest, another_token_layout_is_refused_with_both_values) {
  LoaderOptions wrong = options();
  wrong.layout = sample_layout();
  Loader fits(wrong);
  wrong.layout->vocabulary = 262144;
  const std::string message = error_of([&] { Loader loader(wrong); });
  EXPECT_NE(message.find("vocabulary 1010"), std::string::npos) << message;
  EXPECT_NE(message.find("vocabulary 262144"), std::string::npos) << message;

  TemporaryDirectory temporary;
  TokenLayout other = sample_layout();
  other.audio = 1007;
  write_data_set(temporary / "other", {SampleMaker(1).text(5)}, 1000, other);
  LoaderOptions two = options();
  two.sources.push_back({(temporary / "other").string()});
  EXPECT_NE(error_of([&] { Loader loader(two); }).find("audio 1007"), std::string::npos);
}

TEST_F(LoaderTest, bad_options_and_empty_data_are_refused) {
  TemporaryDirectory temporary;
  write_data_set(temporary / "empty", {});
  LoaderOptions empty = options();
  empty.sources = {{(temporary / "empty").string()}};
  EXPECT_NE(error_of([&] { Loader loader(empty); }).find("holds no documents"), std::string::npos);
  const auto refused = [](const std::function<void(LoaderOptions&)>& change) {
    LoaderOptions changed = options();
    change(changed);
    return !error_of([&] { Loader loader(changed); }).empty();
  };
  EXPECT_FALSE(refused([](LoaderOptions&) {}));
  EXPECT_TRUE(refused([](LoaderOptions& o) { o.sources.clear(); }));
  EXPECT_TRUE(refused([](LoaderOptions& o) { o.rank = 1; }));
  EXPECT_TRUE(refused([](LoaderOptions& o) { o.rows_per_step = 0; }));
  EXPECT_TRUE(refused([](LoaderOptions& o) { o.rows_per_micro = 0; }));
  EXPECT_TRUE(refused([](LoaderOptions& o) { o.window = 0; }));
  EXPECT_TRUE(refused([](LoaderOptions& o) { o.sequence_length = 20; }));  // documents with images are longer
}

TEST_F(LoaderTest, damage_found_while_reading_surfaces_in_next) {
  TemporaryDirectory temporary;
  std::filesystem::copy(*directory_ / "data", temporary / "data");
  const ShardRecord shard = read_manifest(temporary / "data").shards.at(2);
  std::fstream file(temporary / "data" / shard.file, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(shard.places.at("tokens"));
  file.put('\x7f').flush();
  LoaderOptions damaged = options();
  damaged.sources = {{(temporary / "data").string()}};
  Loader loader(damaged);  // sizes are right
  std::string message;
  for (int s = 0; s < 100 && message.empty(); ++s) message = error_of([&] { loader.next(); });
  EXPECT_NE(message.find(shard.file), std::string::npos) << message;
  EXPECT_NE(message.find("damaged"), std::string::npos) << message;
  EXPECT_EQ(error_of([&] { loader.next(); }), message);

  std::filesystem::resize_file(temporary / "data" / shard.file, 100);
  EXPECT_NE(error_of([&] { Loader truncated(damaged); }).find("100 bytes, expected"), std::string::npos);
}

TEST_F(LoaderTest, reading_ahead_stops_at_its_bound) {
  TemporaryDirectory temporary;
  TokenLayout layout = sample_layout();
  layout.patch_width = 6912;
  SampleMaker maker(3, layout);
  {
    ShardWriter writer(temporary / "data", layout);
    Document document = maker.text(10);
    maker.add_image(document, 10, 10);  // 691,200 bytes
    for (int d = 0; d < 100; ++d) writer.add(document);
    writer.finish(nlohmann::json::object());
  }
  LoaderOptions bounded = options();
  bounded.sources = {{(temporary / "data").string()}};
  bounded.rows_per_step = 1;
  bounded.read_ahead_bytes = 8 << 20;
  Loader loader(bounded);
  loader.next();
  std::this_thread::sleep_for(
      std::chrono::milliseconds(300));  // long enough to read everything if it were allowed
  loader.next();
  const std::int64_t before = loader.stats().bytes_read;
  EXPECT_LE(before, 16 << 20);  // of 69 MB
  EXPECT_GE(before, 2 * 691'200);
}

TEST_F(LoaderTest, documents_longer_than_a_row_can_be_left_out) {
  LoaderOptions shorter = options();
  shorter.sequence_length = 40;
  shorter.one_pass = true;
  shorter.skip_too_long = true;
  Loader loader(shorter);
  EXPECT_GT(loader.skipped_documents(), 0);
  std::vector<std::int64_t> samples;
  while (!loader.done()) {
    const StepBatches step = loader.next();
    samples.insert(samples.end(), step.samples.begin(), step.samples.end());
  }
  std::sort(samples.begin(), samples.end());
  samples.erase(std::unique(samples.begin(), samples.end()), samples.end());
  EXPECT_EQ(static_cast<std::int64_t>(samples.size()), loader.documents() - loader.skipped_documents());
}

TEST_F(LoaderTest, several_sources_have_ids_one_after_the_other) {
  TemporaryDirectory temporary;
  SampleMaker maker(5);
  write_data_set(temporary / "other", {maker.text(20), maker.text(30)});
  LoaderOptions both = options();
  both.sources = {{(temporary / "other").string(), 2}, {(*directory_ / "data").string(), 0.5}};
  both.one_pass = true;
  Loader loader(both);
  std::vector<int> seen(documents_->size() + 2, 0);
  while (!loader.done()) {
    for (const std::int64_t sample : loader.next().samples) ++seen[static_cast<std::size_t>(sample)];
  }
  EXPECT_EQ(seen[0], 2);
  EXPECT_EQ(seen[1], 2);
  EXPECT_EQ(std::count_if(seen.begin() + 2, seen.end(), [](int count) { return count > 0; }),
            static_cast<std::ptrdiff_t>(documents_->size() / 2));
}

TEST_F(LoaderTest, stopping_early_is_quick_and_clean) {
  for (int trial = 0; trial < 50; ++trial) {
    LoaderOptions small = options();
    small.read_ahead_bytes = trial * 10'000;
    Loader loader(small);
    for (int s = 0; s < trial % 4; ++s) loader.next();
  }
}

}  // namespace
}  // namespace lapidary
