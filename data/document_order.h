// In which order the documents of an epoch come: a permutation of every source drawn from a seed, and the
// sources mixed by weight. It depends on the documents' lengths and the seed alone, never on ranks.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lapidary {

/// What planning needs to know of a source: see DataSet.
struct SourceLengths {
  std::string name;                      ///< for messages
  double weight = 1;                     ///< times the source's documents come in an epoch; 0.5: half of them
  std::span<const std::int32_t> tokens;  ///< [documents]
  std::span<const std::int32_t> feature_kib;  ///< [documents], 0: text only
};

/// Random numbers that are the same on every machine and library (splitmix64).
class OrderRandom {
 public:
  /// A stream of its own for every combination.
  OrderRandom(std::uint64_t seed, std::uint64_t a, std::uint64_t b, std::uint64_t c);
  std::uint64_t next();
  std::uint64_t below(std::uint64_t limit);  ///< uniform in [0, limit), limit >= 1
  template <class T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

 private:
  std::uint64_t state_;
};

/// One source's documents, pass after pass without end. Shuffled in two stages, so that what is needed at a
/// time comes from few places of the files: blocks of neighbouring documents are permuted, then kMixedBlocks
/// of them at a time are joined and their documents permuted. A source smaller than that (16 Mi tokens, 2 GiB
/// of images and sounds) is permuted as a whole.
class SourceOrder {
 public:
  // A block ends with the document that reaches one of these.
  static constexpr std::int64_t kBlockTokens = 256 << 10, kBlockFeatureKib = 32 << 10, kBlockDocuments = 4096;
  static constexpr std::size_t kMixedBlocks = 64;

  SourceOrder(const SourceLengths& lengths, std::uint64_t seed, std::uint64_t source, bool shuffle);
  std::int64_t documents() const { return documents_; }
  void seek(std::int64_t number);  ///< next() will give the number-th document since the first pass began
  std::int64_t next();             ///< index of a document of the source

 private:
  void start_pass(std::int64_t pass);
  void mix_blocks();
  std::int64_t block_documents(std::size_t at) const;

  std::uint64_t seed_, source_;
  bool shuffle_;
  std::int64_t documents_ = 0;
  std::vector<std::int64_t> block_first_;  // first document of every block, and the end
  std::vector<std::int64_t> blocks_;       // this pass's permutation
  std::vector<std::int64_t> mixed_;        // the documents that are handed out now
  std::int64_t pass_ = 0;
  std::size_t next_block_ = 0, next_mixed_ = 0;
};

/// The documents of one epoch, all sources mixed: each next document comes from a source with a probability
/// proportional to what it still has to give. Without shuffling the sources follow each other.
class EpochOrder {
 public:
  /// Error where a source has no documents or its weight asks for less than one document an epoch.
  EpochOrder(const std::vector<SourceLengths>& sources, std::uint64_t seed, bool shuffle);
  void start(std::int64_t epoch);
  /// The next document as an id over all sources (those of the first source, then the second's, ...), or -1
  /// at the end of the epoch.
  std::int64_t next();

 private:
  std::uint64_t seed_;
  bool shuffle_;
  std::vector<double> weights_;
  std::vector<SourceOrder> orders_;
  std::vector<std::int64_t> first_id_, left_;
  std::int64_t total_left_ = 0;
  OrderRandom random_;
};

}  // namespace lapidary
