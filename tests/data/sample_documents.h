// Random documents of every kind for the tests of shards and loader, and a directory that disappears
// afterwards.
#pragma once
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "data/document.h"
#include "data/shard_writer.h"
#include "kernels/error.h"

namespace lapidary {

/// A small layout: placeholders 1000 to 1006, patches of 12 bytes, frames of 5 samples.
inline TokenLayout sample_layout() {
  TokenLayout layout;
  layout.vocabulary = 1010;
  layout.begin_image = 1000;
  layout.image = 1001;
  layout.end_image = 1002;
  layout.begin_audio = 1003;
  layout.audio = 1004;
  layout.end_audio = 1005;
  layout.video = 1006;
  layout.patch_width = 12;
  layout.frame_width = 5;
  return layout;
}

class SampleMaker {
 public:
  explicit SampleMaker(unsigned seed, TokenLayout layout = sample_layout())
      : random_(seed), layout_(layout) {}

  int number(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  /// `tokens` ordinary tokens, about half of them trained.
  Document text(int tokens) {
    Document document;
    add_text(document, tokens);
    document.trained[0] = 0;
    document.source = "sample.jsonl:" + std::to_string(++line_);
    return document;
  }

  /// Text of up to `most` tokens with up to three images or videos and two sounds in between.
  Document mixed(int most) {
    Document document = text(number(1, most));
    for (int items = number(0, 5); items > 0; --items) {
      if (number(0, 1) == 0) {
        add_image(document, number(1, 4), number(1, 4), number(0, 3) == 0);
      } else {
        add_sound(document, number(1, 9));
      }
      add_text(document, number(1, most));
    }
    return document;
  }

  void add_text(Document& document, int tokens) {
    for (int t = 0; t < tokens; ++t) {
      document.tokens.push_back(number(3, 999));
      document.trained.push_back(static_cast<std::uint8_t>(number(0, 1)));
    }
  }
  void add_image(Document& document, int columns, int rows, bool video = false) {
    add_marker(document, layout_.begin_image);
    DocumentImage image{static_cast<std::int32_t>(document.tokens.size()), columns, rows, {}};
    for (int p = 0; p < columns * rows; ++p) add_marker(document, video ? layout_.video : layout_.image);
    image.patches.resize(static_cast<std::size_t>(columns) *
                         static_cast<std::size_t>(rows * layout_.patch_width));
    for (std::uint8_t& value : image.patches) value = static_cast<std::uint8_t>(random_());
    document.images.push_back(image);
    add_marker(document, layout_.end_image);
  }
  void add_sound(Document& document, int frames) {
    add_marker(document, layout_.begin_audio);
    DocumentSound sound{static_cast<std::int32_t>(document.tokens.size()), frames, {}};
    for (int f = 0; f < frames; ++f) add_marker(document, layout_.audio);
    sound.samples.resize(static_cast<std::size_t>(frames) * static_cast<std::size_t>(layout_.frame_width));
    for (std::int16_t& value : sound.samples) value = static_cast<std::int16_t>(random_());
    document.sounds.push_back(sound);
    add_marker(document, layout_.end_audio);
  }

 private:
  void add_marker(Document& document, std::int32_t id) {
    document.tokens.push_back(id);
    document.trained.push_back(0);
  }

  std::mt19937 random_;
  TokenLayout layout_;
  int line_ = 0;
};

/// A directory of the test's own, removed with everything in it.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::filesystem::path& below = std::filesystem::temp_directory_path()) {
    std::string name = (below / "lapidary-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Writes a whole data set.
inline void write_data_set(const std::filesystem::path& directory, const std::vector<Document>& documents,
                           std::int64_t shard_bytes = ShardWriter::kShardBytes,
                           const TokenLayout& layout = sample_layout()) {
  ShardWriter writer(directory, layout, shard_bytes);
  for (std::size_t d = 0; d < documents.size(); ++d) {
    writer.add(documents[d]);
    if (writer.full()) writer.commit({{"documents", d + 1}});
  }
  writer.finish(nlohmann::json::object());
}

/// The message of the Error that `action` throws, or "" where it throws none.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace lapidary
