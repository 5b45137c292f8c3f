#include "data/check_document.h"

#include <string_view>
#include <vector>

#include "kernels/check.h"

namespace lapidary {

namespace {

/// One image or sound as a run of placeholders [begin, end).
struct Item {
  std::string_view kind;
  std::size_t number;  // among its kind
  std::int64_t begin, end;
  std::int32_t placeholder, alternative;  // ids that may stand there
};

void check_tokens(const Document& document, const TokenLayout& layout, const std::string& where) {
  require(!document.tokens.empty(), "{}: the document has no tokens", where);
  require(document.trained.size() == document.tokens.size(), "{}: {} tokens but {} marks of what is trained",
          where, document.tokens.size(), document.trained.size());
  for (std::size_t t = 0; t < document.tokens.size(); ++t) {
    const std::int32_t id = document.tokens[t];
    require(id >= 0 && id < layout.vocabulary, "{}: token {} has id {}, expected 0 to {} (vocabulary {})",
            where, t, id, layout.vocabulary - 1, layout.vocabulary);
    require(document.trained[t] <= 1, "{}: token {} is marked {}, expected 0 or 1", where, t,
            document.trained[t]);
  }
  require(document.trained[0] == 0,
          "{}: token 0 is marked as trained, but nothing stands before it to predict it from", where);
}

void check_image_values(const Document& document, const TokenLayout& layout, const std::string& where) {
  for (std::size_t i = 0; i < document.images.size(); ++i) {
    const DocumentImage& image = document.images[i];
    require(image.columns >= 1 && image.rows >= 1,
            "{}: image {} has a grid of {} x {}, expected at least 1 x 1", where, i, image.columns,
            image.rows);
    const std::int64_t expected = std::int64_t{image.columns} * image.rows * layout.patch_width;
    require(static_cast<std::int64_t>(image.patches.size()) == expected,
            "{}: image {} has {} bytes of patches, expected {} ({} x {} patches of {})", where, i,
            image.patches.size(), expected, image.columns, image.rows, layout.patch_width);
  }
}

void check_sound_values(const Document& document, const TokenLayout& layout, const std::string& where) {
  for (std::size_t i = 0; i < document.sounds.size(); ++i) {
    const DocumentSound& sound = document.sounds[i];
    require(sound.frames >= 1, "{}: sound {} has {} frames, expected at least 1", where, i, sound.frames);
    const std::int64_t expected = std::int64_t{sound.frames} * layout.frame_width;
    require(static_cast<std::int64_t>(sound.samples.size()) == expected,
            "{}: sound {} has {} samples, expected {} ({} frames of {})", where, i, sound.samples.size(),
            expected, sound.frames, layout.frame_width);
  }
}

std::vector<Item> items_of(const Document& document, const TokenLayout& layout) {
  std::vector<Item> items;
  for (std::size_t i = 0; i < document.images.size(); ++i) {
    const DocumentImage& image = document.images[i];
    items.push_back({"image", i, image.first_token,
                     image.first_token + std::int64_t{image.columns} * image.rows, layout.image,
                     layout.video});
  }
  for (std::size_t i = 0; i < document.sounds.size(); ++i) {
    const DocumentSound& sound = document.sounds[i];
    items.push_back({"sound", i, sound.first_token, std::int64_t{sound.first_token} + sound.frames,
                     layout.audio, layout.audio});
  }
  return items;
}

void check_item(const Item& item, const Document& document, const std::string& where) {
  require(item.begin >= 0 && item.end <= static_cast<std::int64_t>(document.tokens.size()),
          "{}: {} {} takes tokens {} to {}, but the document has {}", where, item.kind, item.number,
          item.begin, item.end - 1, document.tokens.size());
  const std::int32_t first = document.tokens[item.begin];
  require(first >= 0 && (first == item.placeholder || first == item.alternative),
          "{}: {} {} begins at token {}, whose id is {}, expected the placeholder {}", where, item.kind,
          item.number, item.begin, first, item.placeholder);
  for (std::int64_t t = item.begin; t < item.end; ++t) {
    require(document.tokens[t] == first,
            "{}: {} {} takes tokens {} to {}, but token {} has id {}, expected {}", where, item.kind,
            item.number, item.begin, item.end - 1, t, document.tokens[t], first);
    require(document.trained[t] == 0, "{}: token {} is a placeholder of {} {} and marked as trained", where,
            t, item.kind, item.number);
  }
}

/// Items lie in order and apart, and every placeholder belongs to one.
void check_cover(const std::vector<Item>& items, const Document& document, const TokenLayout& layout,
                 const std::string& where) {
  std::vector<std::uint8_t> covered(document.tokens.size(), 0);
  const Item* before = nullptr;
  for (const Item& item : items) {
    require(!before || before->kind != item.kind || before->end <= item.begin,
            "{}: {} {} begins at token {}, expected it behind {} {} which ends at {}", where, item.kind,
            item.number, item.begin, before ? before->kind : "", before ? before->number : 0,
            before ? before->end : 0);
    for (std::int64_t t = item.begin; t < item.end; ++t) covered[t] = 1;
    before = &item;
  }
  for (std::size_t t = 0; t < document.tokens.size(); ++t) {
    const std::int32_t id = document.tokens[t];
    const bool soft = id == layout.image || id == layout.audio || id == layout.video;
    require(!soft || covered[t], "{}: token {} is a placeholder (id {}) without an image or sound", where, t,
            id);
  }
}

}  // namespace

void check_document(const Document& document, const TokenLayout& layout, const std::string& where) {
  check_tokens(document, layout, where);
  check_image_values(document, layout, where);
  check_sound_values(document, layout, where);
  const std::vector<Item> items = items_of(document, layout);
  for (const Item& item : items) check_item(item, document, where);
  check_cover(items, document, layout, where);
}

}  // namespace lapidary
