#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <ostream>
#include <string>

#include "data/row_source.h"
#include "data/show.h"
#include "kernels/check.h"
#include "kernels/number_text.h"

namespace lapidary {

namespace {

double percent(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? 0 : 100 * static_cast<double>(part) / static_cast<double>(whole);
}

void print_counts(const Manifest& manifest, std::ostream& out) {
  const DataCounts& counts = manifest.counts;
  std::int64_t bytes = 0;
  for (const ShardRecord& shard : manifest.shards) bytes += shard.bytes;
  // A frame of 640 samples at 16 kHz.
  const double seconds = static_cast<double>(counts.frames * manifest.layout.frame_width) / 16'000;
  out << fmt::format("shards      {} ({})\n",
                     with_thousands(static_cast<std::int64_t>(manifest.shards.size())),
                     format_bytes(static_cast<std::size_t>(bytes)));
  out << fmt::format("documents   {}\n", with_thousands(counts.documents));
  out << fmt::format("tokens      {}, trained {} ({:.1f} %)\n", with_thousands(counts.tokens),
                     with_thousands(counts.targets), percent(counts.targets, counts.tokens));
  out << fmt::format("images      {}, {} soft tokens ({:.1f} %)\n", with_thousands(counts.images),
                     with_thousands(counts.patches), percent(counts.patches, counts.tokens));
  out << fmt::format("sounds      {}, {} soft tokens ({:.1f} %), {:.1f} s\n", with_thousands(counts.sounds),
                     with_thousands(counts.frames), percent(counts.frames, counts.tokens), seconds);
  out << fmt::format("vocabulary  {}\n", with_thousands(manifest.layout.vocabulary));
}

/// Documents by length, in powers of two.
void print_lengths(const DataSet& set, std::ostream& out) {
  std::array<std::int64_t, 32> bins{};
  std::int32_t longest = 0;
  for (const std::int32_t tokens : set.document_tokens()) {
    ++bins[std::bit_width(static_cast<std::uint32_t>(tokens)) - 1];
    longest = std::max(longest, tokens);
  }
  out << fmt::format("lengths     {:.1f} tokens a document, at most {}\n",
                     static_cast<double>(set.manifest().counts.tokens) / static_cast<double>(set.documents()),
                     with_thousands(longest));
  const std::int64_t highest = *std::max_element(bins.begin(), bins.end());
  for (std::size_t b = 0; b < bins.size(); ++b) {
    if (bins[b] == 0) continue;
    const auto bar =
        static_cast<std::size_t>(std::ceil(40 * static_cast<double>(bins[b]) / static_cast<double>(highest)));
    out << fmt::format("  {:>13} .. {:<13} {:>13}  {}\n", with_thousands(std::int64_t{1} << b),
                       with_thousands((std::int64_t{2} << b) - 1), with_thousands(bins[b]),
                       std::string(bar, '#'));
  }
}

void print_packing(const DataSet& set, std::int64_t sequence_length, std::ostream& out) {
  RowPlan plan({{set.directory().string(), 1, set.document_tokens(), set.document_feature_kib()}},
               {.sequence_length = sequence_length, .one_pass = true, .skip_too_long = true});
  std::int64_t tokens = 0;
  for (Row row; plan.next(row);) tokens += row.tokens;
  out << fmt::format("packing     {} rows of {} tokens an epoch, {:.2f} % filled\n",
                     with_thousands(plan.row()), with_thousands(sequence_length),
                     percent(tokens, plan.row() * sequence_length));
  if (plan.skipped_documents() > 0) {
    out << fmt::format("            {} documents with images or sounds are longer than a row\n",
                       with_thousands(plan.skipped_documents()));
  }
}

}  // namespace

void inspect_data_set(const std::filesystem::path& directory, std::int64_t sequence_length,
                      std::ostream& out) {
  const DataSet set(directory);
  set.check_sizes();
  out << fmt::format("data set    {} ({} {})\n", directory.string(), kDataSetFormatName, kDataFormatVersion);
  print_counts(set.manifest(), out);
  if (set.documents() > 0) {
    print_lengths(set, out);
    print_packing(set, sequence_length, out);
  }
  if (!set.manifest().notes.empty()) out << "notes       " << set.manifest().notes.dump(2) << '\n';
}

}  // namespace lapidary
