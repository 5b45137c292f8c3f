// Sounds as the model takes them: 16 kHz mono PCM in frames of 640 samples, without any other processing
// (specification 5.1). Reads WAV (also RF64 and W64), AIFF, AU, FLAC, Ogg (Vorbis, Opus) and MP3.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "data/media.h"

namespace lapidary {

constexpr std::int32_t kSampleRate = 16000;
constexpr std::int32_t kSamplesPerFrame = 640;

struct AudioOptions {
  double max_seconds = 30;  ///< longer sounds are refused: the model was made for 750 frames
  std::int64_t max_bytes = std::int64_t{256} << 20;  ///< of the file
};

/// Decodes a sound that is in memory; `name` opens the messages. 16-bit mono files at 16 kHz keep their
/// samples bit for bit; channels are averaged, other rates resampled (soxr, high quality), other sample
/// formats rounded to 16 bits and clipped. Error for other formats, damage, a sound without samples or longer
/// than allowed.
FramedSound decode_sound(std::string_view bytes, const std::string& name, const AudioOptions& options = {});

/// The same for a file.
FramedSound read_sound(const std::string& path, const AudioOptions& options = {});

}  // namespace lapidary
