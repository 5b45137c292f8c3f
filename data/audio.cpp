#include "data/audio.h"

#include <sndfile.h>
#include <soxr.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

constexpr sf_count_t kBlock =
    16384;  // frames decoded at a time: bounds what a header's channel count can cost
constexpr int kMaxChannels = 64;

/// A file in memory behind libsndfile's callbacks.
struct MemoryFile {
  std::string_view bytes;
  sf_count_t at = 0;

  static MemoryFile& of(void* user) { return *static_cast<MemoryFile*>(user); }
  static sf_count_t length(void* user) { return static_cast<sf_count_t>(of(user).bytes.size()); }
  static sf_count_t tell(void* user) { return of(user).at; }
  static sf_count_t seek(sf_count_t offset, int whence, void* user) {
    const sf_count_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? of(user).at : length(user);
    if (offset < -base || offset > length(user) - base) return -1;
    return of(user).at = base + offset;
  }
  static sf_count_t read(void* to, sf_count_t count, void* user) {
    MemoryFile& file = of(user);
    count = std::clamp<sf_count_t>(count, 0, length(user) - file.at);
    std::memcpy(to, file.bytes.data() + file.at, static_cast<std::size_t>(count));
    file.at += count;
    return count;
  }
};

struct CloseSound {
  void operator()(SNDFILE* file) const { sf_close(file); }
};

/// An opened and checked sound.
class SoundFile {
 public:
  SoundFile(std::string_view bytes, const std::string& name, const AudioOptions& options)
      : name_(name), memory_{bytes} {
    SF_VIRTUAL_IO io = {MemoryFile::length, MemoryFile::seek, MemoryFile::read, nullptr, MemoryFile::tell};
    {
      // Why a file could not be opened is kept in one global of libsndfile.
      static std::mutex mutex;
      const std::lock_guard lock(mutex);
      file_.reset(sf_open_virtual(&io, SFM_READ, &info_, &memory_));
      require(file_ != nullptr, "{}: is not a sound that can be read: {}", name, error_text(nullptr));
    }
    const int type = info_.format & SF_FORMAT_TYPEMASK;
    const int known[] = {SF_FORMAT_WAV, SF_FORMAT_WAVEX, SF_FORMAT_RF64, SF_FORMAT_W64, SF_FORMAT_AIFF,
                         SF_FORMAT_AU,  SF_FORMAT_FLAC,  SF_FORMAT_OGG,  SF_FORMAT_MPEG};
    require(std::find(std::begin(known), std::end(known), type) != std::end(known),
            "{}: is not WAV, AIFF, AU, FLAC, Ogg or MP3", name);
    require(info_.channels >= 1 && info_.channels <= kMaxChannels, "{}: has {} channels, expected 1 to {}",
            name, info_.channels, kMaxChannels);
    require(info_.samplerate >= 1000 && info_.samplerate <= 768000,
            "{}: has {} samples per second, expected 1000 to 768000", name, info_.samplerate);
    most_ = static_cast<sf_count_t>(options.max_seconds * info_.samplerate);
    if (has_length()) check_length(info_.frames, options.max_seconds);
  }

  int rate() const { return info_.samplerate; }
  bool is_16_bit_mono() const {
    return info_.channels == 1 && (info_.format & SF_FORMAT_SUBMASK) == SF_FORMAT_PCM_16;
  }

  /// The samples as they are stored.
  std::vector<std::int16_t> pcm(double max_seconds) {
    return blocks<std::int16_t>(max_seconds, sf_readf_short,
                                [](const std::int16_t* block, sf_count_t frames, auto& to) {
                                  to.insert(to.end(), block, block + frames);
                                });
  }

  /// The mean of the channels, full scale being 1.
  std::vector<float> mono(double max_seconds) {
    const int channels = info_.channels;
    return blocks<float>(max_seconds, sf_readf_float,
                         [channels](const float* block, sf_count_t frames, auto& to) {
                           for (sf_count_t i = 0; i < frames; ++i) {
                             float sum = 0;
                             for (int c = 0; c < channels; ++c) sum += block[i * channels + c];
                             to.push_back(sum / static_cast<float>(channels));
                           }
                         });
  }

 private:
  /// libsndfile ends its texts with a full stop, sometimes a line end, which messages here do not have.
  static std::string error_text(SNDFILE* file) {
    std::string text = sf_strerror(file);
    while (!text.empty() && (text.back() == '.' || text.back() == '\n')) text.pop_back();
    return text;
  }

  /// Streams that were never finished declare no samples, or the largest number.
  bool has_length() const { return info_.frames > 0 && info_.frames < SF_COUNT_MAX; }

  void check_length(sf_count_t frames, double max_seconds) const {
    require(frames <= most_, "{}: lasts more than {} seconds: shorten it, or raise the limit", name_,
            max_seconds);
  }

  /// Reads to the end, whatever length the header declares, but not beyond the limit.
  template <class T, class Read, class Take>
  std::vector<T> blocks(double max_seconds, Read read, Take take) {
    std::vector<T> block(static_cast<std::size_t>(kBlock * info_.channels));
    std::vector<T> samples;
    sf_count_t total = 0;
    for (sf_count_t got; (got = read(file_.get(), block.data(), kBlock)) > 0; total += got) {
      check_length(total + got, max_seconds);
      take(block.data(), got, samples);
    }
    require(sf_error(file_.get()) == SF_ERR_NO_ERROR, "{}: {}", name_, error_text(file_.get()));
    // FLAC's header is exact. Ogg's and MP3's are estimates, and a WAV that ends early is simply shorter.
    const bool exact = (info_.format & SF_FORMAT_TYPEMASK) == SF_FORMAT_FLAC && has_length();
    require(!exact || total == info_.frames, "{}: declares {} samples, but ends after {}", name_,
            info_.frames, total);
    require(total > 0, "{}: has no samples", name_);
    return samples;
  }

  const std::string& name_;
  MemoryFile memory_;
  SF_INFO info_ = {};
  std::unique_ptr<SNDFILE, CloseSound> file_;
  sf_count_t most_ = 0;
};

std::vector<float> resample(const std::vector<float>& samples, int rate, const std::string& name) {
  const auto wanted =
      static_cast<std::size_t>((static_cast<std::int64_t>(samples.size()) * kSampleRate + rate - 1) / rate);
  std::vector<float> result(wanted, 0.0f);
  // Without roll-off: soxr's default is down by 0.006 dB at 7 kHz, an error of -63 dB, for a filter that is a
  // bit shorter.
  const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, SOXR_ROLLOFF_NONE);
  std::size_t used = 0, made = 0;
  const soxr_error_t error = soxr_oneshot(rate, kSampleRate, 1, samples.data(), samples.size(), &used,
                                          result.data(), wanted, &made, nullptr, &quality, nullptr);
  require(error == nullptr, "{}: resampling from {} Hz failed: {}", name, rate, soxr_strerror(error));
  return result;
}

std::int16_t to_pcm(float sample) {
  if (!(sample == sample)) return 0;  // files of floating-point samples may hold NaN
  return static_cast<std::int16_t>(std::lrint(std::clamp(sample * 32768.0f, -32768.0f, 32767.0f)));
}

}  // namespace

FramedSound decode_sound(std::string_view bytes, const std::string& name, const AudioOptions& options) {
  require(options.max_seconds > 0 && options.max_seconds <= 3600,
          "max_seconds is {}, expected more than 0, at most 3600", options.max_seconds);
  SoundFile file(bytes, name, options);
  FramedSound sound;
  if (file.is_16_bit_mono() && file.rate() == kSampleRate) {
    sound.samples = file.pcm(options.max_seconds);
  } else {
    std::vector<float> mono = file.mono(options.max_seconds);
    if (file.rate() != kSampleRate) mono = resample(mono, file.rate(), name);
    sound.samples.resize(mono.size());
    std::transform(mono.begin(), mono.end(), sound.samples.begin(), to_pcm);
  }
  constexpr std::size_t kFrame = kSamplesPerFrame;
  sound.frames = static_cast<std::int32_t>((sound.samples.size() + kFrame - 1) / kFrame);
  sound.samples.resize(static_cast<std::size_t>(sound.frames) * kFrame, 0);
  return sound;
}

FramedSound read_sound(const std::string& path, const AudioOptions& options) {
  return decode_sound(read_text_file(path, options.max_bytes), path, options);
}

}  // namespace lapidary
