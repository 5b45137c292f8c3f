#include "data/document_order.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/check.h"

namespace lapidary {

namespace {

std::uint64_t scramble(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;

// What a stream of random numbers is for; blocks of pass p use (source, p, kPermuteBlocks) and so on.
enum Purpose : std::uint64_t { kPermuteBlocks = 0, kMixSources = 1, kPermuteDocuments = 2 };

}  // namespace

OrderRandom::OrderRandom(std::uint64_t seed, std::uint64_t a, std::uint64_t b, std::uint64_t c)
    : state_(seed) {
  for (const std::uint64_t part : {a, b, c})
    state_ = scramble(state_ + kGolden) ^ scramble(part * kGolden + 1);
}

std::uint64_t OrderRandom::next() {
  return scramble(state_ += kGolden);
}

std::uint64_t OrderRandom::below(std::uint64_t limit) {
  // Values under `uneven` would make the small remainders more likely than the others.
  const std::uint64_t uneven = -limit % limit;
  std::uint64_t value = next();
  while (value < uneven) value = next();
  return value % limit;
}

SourceOrder::SourceOrder(const SourceLengths& lengths, std::uint64_t seed, std::uint64_t source, bool shuffle)
    : seed_(seed),
      source_(source),
      shuffle_(shuffle),
      documents_(static_cast<std::int64_t>(lengths.tokens.size())) {
  std::int64_t tokens = 0, kib = 0;  // of the last block
  for (std::int64_t d = 0; d < documents_; ++d) {
    if (d == 0 || tokens >= kBlockTokens || kib >= kBlockFeatureKib ||
        d - block_first_.back() >= kBlockDocuments) {
      block_first_.push_back(d);
      tokens = kib = 0;
    }
    tokens += lengths.tokens[d];
    kib += lengths.feature_kib[d];
  }
  block_first_.push_back(documents_);
  blocks_.resize(block_first_.size() - 1);
  seek(0);
}

void SourceOrder::start_pass(std::int64_t pass) {
  pass_ = pass;
  next_block_ = next_mixed_ = 0;
  mixed_.clear();
  std::iota(blocks_.begin(), blocks_.end(), std::int64_t{0});
  if (shuffle_)
    OrderRandom(seed_, source_, static_cast<std::uint64_t>(pass), kPermuteBlocks).shuffle(blocks_);
}

std::int64_t SourceOrder::block_documents(std::size_t at) const {
  return block_first_[blocks_[at] + 1] - block_first_[blocks_[at]];
}

void SourceOrder::mix_blocks() {
  const std::size_t first = next_block_;
  mixed_.clear();
  next_mixed_ = 0;
  for (; next_block_ < std::min(first + kMixedBlocks, blocks_.size()); ++next_block_) {
    for (std::int64_t i = 0; i < block_documents(next_block_); ++i) {
      mixed_.push_back(block_first_[blocks_[next_block_]] + i);
    }
  }
  if (shuffle_)
    OrderRandom(seed_, source_, static_cast<std::uint64_t>(pass_), kPermuteDocuments + first).shuffle(mixed_);
}

void SourceOrder::seek(std::int64_t number) {
  start_pass(number / documents_);
  std::int64_t skip = number % documents_;
  const auto documents_ahead = [&] {
    std::int64_t sum = 0;
    for (std::size_t b = next_block_; b < std::min(next_block_ + kMixedBlocks, blocks_.size()); ++b) {
      sum += block_documents(b);
    }
    return sum;
  };
  for (std::int64_t ahead = documents_ahead(); ahead <= skip; ahead = documents_ahead()) {
    skip -= ahead;
    next_block_ += kMixedBlocks;
  }
  mix_blocks();
  next_mixed_ = static_cast<std::size_t>(skip);
}

std::int64_t SourceOrder::next() {
  if (next_mixed_ == mixed_.size()) {
    if (next_block_ == blocks_.size()) start_pass(pass_ + 1);
    mix_blocks();
  }
  return mixed_[next_mixed_++];
}

EpochOrder::EpochOrder(const std::vector<SourceLengths>& sources, std::uint64_t seed, bool shuffle)
    : seed_(seed), shuffle_(shuffle), random_(seed, 0, 0, 0) {
  std::int64_t first = 0;
  require(!sources.empty(), "no data set is given");
  for (const SourceLengths& source : sources) {
    const auto documents = static_cast<std::int64_t>(source.tokens.size());
    require(documents >= 1, "{}: the data set holds no documents", source.name);
    require(std::isfinite(source.weight) && source.weight * static_cast<double>(documents) >= 1 &&
                source.weight <= 1e6,
            "{}: weight {} of {} documents, expected at least one document an epoch and at most 1e6",
            source.name, source.weight, documents);
    weights_.push_back(source.weight);
    orders_.emplace_back(source, seed, orders_.size(), shuffle);
    first_id_.push_back(first);
    first += documents;
  }
  left_.resize(sources.size());
  start(0);
}

void EpochOrder::start(std::int64_t epoch) {
  total_left_ = 0;
  for (std::size_t s = 0; s < orders_.size(); ++s) {
    const double each = weights_[s] * static_cast<double>(orders_[s].documents());
    const auto begin = static_cast<std::int64_t>(each * static_cast<double>(epoch));
    left_[s] = static_cast<std::int64_t>(each * static_cast<double>(epoch + 1)) - begin;
    total_left_ += left_[s];
    orders_[s].seek(begin);
  }
  random_ = OrderRandom(seed_, orders_.size(), static_cast<std::uint64_t>(epoch), kMixSources);
}

std::int64_t EpochOrder::next() {
  if (total_left_ == 0) return -1;
  std::size_t source = 0;
  if (shuffle_ && orders_.size() > 1) {
    auto draw = static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(total_left_)));
    while (draw >= left_[source]) draw -= left_[source++];
  } else {
    while (left_[source] == 0) ++source;
  }
  --left_[source];
  --total_left_;
  return first_id_[source] + orders_[source].next();
}

}  // namespace lapidary
