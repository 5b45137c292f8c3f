#include "data/random_data.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "data/shard_writer.h"

namespace lapidary {
namespace {

constexpr std::int32_t kWords = 250'000;  // ids below the special ones
constexpr std::int32_t kTextAround = 60;  // tokens before and behind a medium
constexpr std::int32_t kFramesIn30s = 750;

class Maker {
 public:
  Maker(const TokenLayout& layout, RandomKind kind) : layout_(layout), kind_(kind) {}

  Document document() {
    Document document;
    if (kind_ == RandomKind::text) {
      add_text(document, random_length(random_));
      return document;
    }
    add_text(document, kTextAround);
    if (kind_ == RandomKind::images)
      add_image(document);
    else
      add_sound(document);
    add_text(document, kTextAround);
    return document;
  }

 private:
  void add_text(Document& document, std::int32_t tokens) {
    for (std::int32_t t = 0; t < tokens; ++t) {
      document.tokens.push_back(3 + static_cast<std::int32_t>(random_() % kWords));
      document.trained.push_back(document.tokens.size() > 1 ? 1 : 0);
    }
  }
  /// Returns where the first stands.
  static std::int32_t add(Document& document, std::int32_t id, std::int32_t count) {
    const std::size_t first = document.tokens.size();
    document.tokens.resize(first + static_cast<std::size_t>(count), id);
    document.trained.resize(document.tokens.size(), 0);
    return static_cast<std::int32_t>(first);
  }
  void add_image(Document& document) {
    DocumentImage image{0, 22, 12, {}};
    add(document, layout_.begin_image, 1);
    image.first_token = add(document, layout_.image, image.columns * image.rows);
    add(document, layout_.end_image, 1);
    image.patches.resize(
        static_cast<std::size_t>(std::int64_t{image.columns} * image.rows * layout_.patch_width),
        static_cast<std::uint8_t>(random_()));
    document.images.push_back(std::move(image));
  }
  void add_sound(Document& document) {
    DocumentSound sound{0, kFramesIn30s, {}};
    add(document, layout_.begin_audio, 1);
    sound.first_token = add(document, layout_.audio, sound.frames);
    add(document, layout_.end_audio, 1);
    sound.samples.resize(static_cast<std::size_t>(std::int64_t{sound.frames} * layout_.frame_width),
                         static_cast<std::int16_t>(random_()));
    document.sounds.push_back(std::move(sound));
  }

  TokenLayout layout_;
  RandomKind kind_;
  std::mt19937 random_{1};
};

/// Roughly, in a shard.
std::int64_t bytes_of(const Document& document) {
  auto bytes = static_cast<std::int64_t>(5 * document.tokens.size());
  for (const DocumentImage& image : document.images) bytes += static_cast<std::int64_t>(image.patches.size());
  for (const DocumentSound& sound : document.sounds)
    bytes += static_cast<std::int64_t>(2 * sound.samples.size());
  return bytes;
}

}  // namespace

TokenLayout released_layout() {
  TokenLayout layout;
  layout.vocabulary = 262'144;
  layout.begin_image = 255'999;
  layout.image = 258'880;
  layout.end_image = 258'882;
  layout.begin_audio = 256'000;
  layout.audio = 258'881;
  layout.end_audio = 258'883;
  layout.video = 258'884;
  return layout;
}

std::int32_t random_length(std::mt19937& random) {
  constexpr double kShortest = 2, kLongest = 8000;
  return static_cast<std::int32_t>(
      std::clamp(std::lognormal_distribution<double>(6.2, 0.8)(random), kShortest, kLongest));
}

void write_random_data(const std::filesystem::path& directory, RandomKind kind, std::int64_t bytes) {
  const TokenLayout layout = released_layout();
  ShardWriter writer(directory, layout);
  Maker maker(layout, kind);
  for (std::int64_t written = 0; written < bytes;) {
    const Document document = maker.document();
    written += bytes_of(document);
    writer.add(document);
    if (writer.full()) writer.commit(nlohmann::json::object());
  }
  writer.finish(nlohmann::json::object());
}

}  // namespace lapidary
