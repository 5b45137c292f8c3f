// One training example, tokenized and with its images and sounds attached: what ingestion produces, shards
// store and the loader packs into rows.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lapidary {

/// An image as the processor lays it out (specification 4.2, 4.3): soft tokens row-major over the grid.
struct DocumentImage {
  std::int32_t first_token = 0;        ///< index in Document::tokens of its first placeholder
  std::int32_t columns = 0, rows = 0;  ///< grid of soft tokens; columns * rows placeholders follow each other
  std::vector<std::uint8_t> patches;  ///< [columns * rows, patch_width], patch_width = 3 * model_patch_size^2
};

/// A sound: mono PCM at 16 kHz, cut into frames, the last one padded with zeros (specification 5.1).
struct DocumentSound {
  std::int32_t first_token = 0;       ///< index in Document::tokens of its first placeholder
  std::int32_t frames = 0;            ///< placeholders that follow each other
  std::vector<std::int16_t> samples;  ///< [frames, frame_width], frame_width = 640
};

struct Document {
  std::vector<std::int32_t> tokens;   ///< begin- and end-of-item markers and placeholders included
  std::vector<std::uint8_t> trained;  ///< [tokens] 1: this token is to be predicted (from the one before it);
                                      ///< never at token 0 nor at a placeholder
  std::vector<DocumentImage> images;  ///< in order of first_token
  std::vector<DocumentSound> sounds;  ///< in order of first_token
  std::string source;                 ///< for messages: file and line it came from
  std::vector<std::int32_t> cuts;     ///< tokens before which a long document is best cut: where turns begin
                                      ///< that are not the model's. For ingestion, not stored in shards.
};

/// What a shard's token ids mean; stored in every shard and compared with the model's configuration before
/// training.
struct TokenLayout {
  std::int32_t vocabulary = 0;
  std::int32_t pad = 0, eos = 1, bos = 2;
  std::int32_t begin_image = -1, image = -1, end_image = -1;  ///< -1: the tokenizer has no such token
  std::int32_t begin_audio = -1, audio = -1, end_audio = -1;
  std::int32_t video = -1;
  std::int32_t patch_width = 6912;  ///< bytes of one image soft token
  std::int32_t frame_width = 640;   ///< samples of one audio soft token
};

}  // namespace lapidary
