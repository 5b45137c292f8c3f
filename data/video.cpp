#include "data/video.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/imgutils.h>
#include <libavutil/log.h>
#include <libswscale/swscale.h>
}

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <utility>

#include "data/image_codecs.h"
#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

/// Frees what FFmpeg allocated through one of its functions that take the address of a pointer.
template <auto Free>
struct Release {
  template <class T>
  void operator()(T* object) const {
    Free(&object);
  }
};
using Packet = std::unique_ptr<AVPacket, Release<av_packet_free>>;
using Frame = std::unique_ptr<AVFrame, Release<av_frame_free>>;
using Codec = std::unique_ptr<AVCodecContext, Release<avcodec_free_context>>;
using Format = std::unique_ptr<AVFormatContext, Release<avformat_close_input>>;

struct FreeScaler {
  void operator()(SwsContext* scaler) const { sws_freeContext(scaler); }
};
struct FreeReader {
  void operator()(AVIOContext* reader) const {
    av_freep(&reader->buffer);  // FFmpeg may have replaced the one it was given
    avio_context_free(&reader);
  }
};

template <class T>
T* made(T* object) {
  if (!object) throw std::bad_alloc();
  return object;
}

std::string error_text(int code) {
  std::array<char, AV_ERROR_MAX_STRING_SIZE> text{};
  av_strerror(code, text.data(), text.size());
  return text.data();
}

/// Where the bytes of a clip come from.
struct Source {
  std::string name;  ///< for messages
  std::int64_t size = 0;
  std::function<void(void* to, std::size_t bytes, std::int64_t offset)> read;
};

/// A Source behind FFmpeg's callbacks: no protocol of FFmpeg is ever asked, so a clip cannot name other files
/// or addresses.
class Reader {
 public:
  explicit Reader(const Source& source) : source_(source) {
    constexpr int kBuffer = 256 << 10;
    auto* buffer = made(static_cast<unsigned char*>(av_malloc(kBuffer)));
    context_.reset(made(avio_alloc_context(buffer, kBuffer, 0, this, &read, nullptr, &seek)));
  }
  AVIOContext* context() { return context_.get(); }
  /// An I/O failure must not look like damage.
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  static int read(void* user, std::uint8_t* to, int count) {
    auto& self = *static_cast<Reader*>(user);
    const std::int64_t bytes = std::min<std::int64_t>(count, self.source_.size - self.at_);
    if (bytes <= 0) return AVERROR_EOF;
    try {
      self.source_.read(to, static_cast<std::size_t>(bytes), self.at_);
    } catch (...) {
      self.failure_ = std::current_exception();
      return AVERROR(EIO);
    }
    self.at_ += bytes;
    return static_cast<int>(bytes);
  }
  static std::int64_t seek(void* user, std::int64_t offset, int whence) {
    auto& self = *static_cast<Reader*>(user);
    if (whence & AVSEEK_SIZE) return self.source_.size;
    whence &= ~AVSEEK_FORCE;
    const std::int64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? self.at_ : self.source_.size;
    if (offset < -base || offset > self.source_.size - base) return AVERROR(EINVAL);
    return self.at_ = base + offset;
  }

  const Source& source_;
  std::int64_t at_ = 0;
  std::exception_ptr failure_;
  std::unique_ptr<AVIOContext, FreeReader> context_;
};

/// The clip's matrix says how a player turns its frames: EXIF's orientation for the same quarter turns.
int orientation_of(const AVStream& stream) {
  const std::uint8_t* matrix = nullptr;
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 31, 100)
  const AVPacketSideData* data = av_packet_side_data_get(
      stream.codecpar->coded_side_data, stream.codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
  if (data && data->size >= 9 * sizeof(std::int32_t)) matrix = data->data;
#else
  std::size_t size = 0;
  matrix = av_stream_get_side_data(&stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
  if (size < 9 * sizeof(std::int32_t)) matrix = nullptr;
#endif
  if (!matrix) return 1;
  std::array<std::int32_t, 9> values{};
  std::memcpy(values.data(), matrix, sizeof values);
  const double degrees = av_display_rotation_get(values.data());  // against the clock
  if (!std::isfinite(degrees)) return 1;
  constexpr std::array<int, 4> kByQuarterTurns = {1, 8, 3, 6};
  return kByQuarterTurns[static_cast<std::size_t>(std::lround(degrees / 90) & 3)];
}

/// A clip that is open at its beginning. It can be gone through once: what needs two passes opens it twice.
class Clip {
 public:
  Clip(const Source& source, const VideoOptions& options) : name_(source.name), reader_(source) {
    av_log_set_level(AV_LOG_QUIET);  // what FFmpeg prints about damage names no file
    open_format();
    const AVCodec* decoder = nullptr;
    const int best = av_find_best_stream(format_.get(), AVMEDIA_TYPE_VIDEO, -1, -1, &decoder, 0);
    require(best != AVERROR_DECODER_NOT_FOUND, "{}: the FFmpeg at hand has no decoder for its video", name_);
    require(best >= 0, "{}: has no video", name_);
    stream_ = format_->streams[best];
    require(!(stream_->disposition & AV_DISPOSITION_ATTACHED_PIC), "{}: has no video, only a cover picture",
            name_);
    for (unsigned s = 0; s < format_->nb_streams; ++s)
      if (format_->streams[s] != stream_) format_->streams[s]->discard = AVDISCARD_ALL;
    codec_.reset(made(avcodec_alloc_context3(decoder)));
    check(avcodec_parameters_to_context(codec_.get(), stream_->codecpar));
    codec_->max_pixels = options.max_pixels;
    codec_->thread_count = 1;  // clips are decoded side by side
    check(avcodec_open2(codec_.get(), decoder, nullptr));
  }

  double frames_per_second() const { return av_q2d(stream_->avg_frame_rate); }
  int orientation() const { return orientation_of(*stream_); }

  /// Frames that the container holds: one to a packet in nearly all codecs.
  std::int64_t count_packets() {
    std::int64_t count = 0;
    const Packet packet(made(av_packet_alloc()));
    while (next_packet(*packet)) {
      count += !(packet->flags & AV_PKT_FLAG_DISCARD);
      av_packet_unref(packet.get());
    }
    return count;
  }

  /// Calls take(number, frame) for every frame in the order in which they are shown; returns their number.
  template <class Take>
  std::int64_t decode(Take take) {
    std::int64_t count = 0;
    const Packet packet(made(av_packet_alloc()));
    const Frame frame(made(av_frame_alloc()));
    for (bool more = true; more;) {
      more = next_packet(*packet);
      check(avcodec_send_packet(codec_.get(), more ? packet.get() : nullptr));
      av_packet_unref(packet.get());
      for (;;) {
        const int status = avcodec_receive_frame(codec_.get(), frame.get());
        if (status == AVERROR(EAGAIN) || status == AVERROR_EOF) break;
        check(status);
        require(!(frame->flags & AV_FRAME_FLAG_CORRUPT) && frame->decode_error_flags == 0,
                "{}: frame {} is damaged", name_, count);
        take(count++, *frame);
        av_frame_unref(frame.get());
      }
    }
    return count;
  }

 private:
  void open_format() {
    AVFormatContext* format = made(avformat_alloc_context());
    format->pb = reader_.context();
    AVDictionary* options = nullptr;
    // Playlists and the like, which only name other files, are left out; so are formats of single pictures.
    av_dict_set(&options, "format_whitelist", "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,asf", 0);
    av_dict_set(&options, "protocol_whitelist", "none", 0);
    const int status = avformat_open_input(&format, "", nullptr, &options);  // frees it where it fails
    av_dict_free(&options);
    reader_.rethrow();
    require(status >= 0, "{}: is not a video that can be read: {}", name_, error_text(status));
    format_.reset(format);
    check(avformat_find_stream_info(format_.get(), nullptr));
  }

  void check(int status) {
    reader_.rethrow();
    if (status == AVERROR(ENOMEM)) throw std::bad_alloc();
    require(status >= 0, "{}: the video is damaged or cannot be read: {}", name_, error_text(status));
  }

  /// False at the end.
  bool next_packet(AVPacket& packet) {
    for (;;) {
      const int status = av_read_frame(format_.get(), &packet);
      if (status == AVERROR_EOF && !reader_failed()) return false;
      check(status);
      require(!(packet.flags & AV_PKT_FLAG_CORRUPT), "{}: the video is damaged or truncated", name_);
      if (packet.stream_index == stream_->index) return true;
      av_packet_unref(&packet);
    }
  }
  bool reader_failed() {
    reader_.rethrow();
    return false;
  }

  const std::string& name_;
  Reader reader_;  // outlives the format, which reads through it
  Format format_;
  Codec codec_;
  AVStream* stream_ = nullptr;
};

/// Brings frames to RGB by swscale's bilinear rule, which the usual readers in Python also take.
class RgbConverter {
 public:
  RgbImage convert(const AVFrame& frame) {
    const auto format = static_cast<AVPixelFormat>(frame.format);
    scaler_.reset(sws_getCachedContext(scaler_.release(), frame.width, frame.height, format, frame.width,
                                       frame.height, AV_PIX_FMT_RGB24, SWS_BILINEAR, nullptr, nullptr,
                                       nullptr));
    if (!scaler_) fail("no conversion from its pixel format to RGB");
    const int* colours =
        sws_getCoefficients(frame.colorspace == AVCOL_SPC_UNSPECIFIED ? SWS_CS_DEFAULT : frame.colorspace);
    constexpr int kOne = 1 << 16;
    // Formats that are RGB already have no such settings: the result says so and does not matter.
    sws_setColorspaceDetails(scaler_.get(), colours, frame.color_range == AVCOL_RANGE_JPEG,
                             sws_getCoefficients(SWS_CS_DEFAULT), 1, 0, kOne, kOne);
    // swscale writes whole vectors: rows need room behind them.
    const Frame padded(made(av_frame_alloc()));
    padded->format = AV_PIX_FMT_RGB24;
    padded->width = frame.width;
    padded->height = frame.height;
    if (av_frame_get_buffer(padded.get(), 0) < 0) throw std::bad_alloc();
    sws_scale(scaler_.get(), frame.data, frame.linesize, 0, frame.height, padded->data, padded->linesize);
    RgbImage image{frame.width, frame.height, {}};
    const std::size_t row = std::size_t{3} * static_cast<std::size_t>(frame.width);
    image.pixels.resize(row * static_cast<std::size_t>(frame.height));
    for (int y = 0; y < frame.height; ++y)
      std::memcpy(&image.pixels[static_cast<std::size_t>(y) * row],
                  padded->data[0] + static_cast<std::ptrdiff_t>(y) * padded->linesize[0], row);
    return image;
  }

 private:
  std::unique_ptr<SwsContext, FreeScaler> scaler_;
};

/// One pass over a clip that is taken to have `total` frames; `found` becomes how many it has.
SampledVideo take_frames(const Source& source, const VideoOptions& options, std::int64_t total,
                         std::int64_t& found) {
  const std::vector<std::int64_t> wanted = sampled_frames(total, options, source.name);
  Clip clip(source, options);
  const int orientation = clip.orientation();
  SampledVideo video;
  RgbConverter converter;
  std::pair<int, int> size;
  found = clip.decode([&](std::int64_t number, const AVFrame& frame) {
    if (video.frames.size() == wanted.size() || wanted[video.frames.size()] != number) return;
    if (video.frames.empty()) size = {frame.width, frame.height};
    require(size == std::pair(frame.width, frame.height), "{}: frame {} has {} x {} pixels, frame 0 {} x {}",
            source.name, number, frame.width, frame.height, size.first, size.second);
    check_pixels(frame.width, frame.height, options.max_pixels, source.name);
    try {
      const RgbImage image = apply_orientation(converter.convert(frame), orientation);
      video.frames.push_back(patch_image(image, options.image));
    } catch (const Error& e) {
      throw Error(fmt::format("{}: frame {}: {}", source.name, number, e.what()), e.code());
    }
    video.seconds.push_back(second_of_frame(number, clip.frames_per_second()));
  });
  return video;
}

SampledVideo sample(const Source& source, const VideoOptions& options) {
  std::int64_t total = Clip(source, options).count_packets(), found = 0;
  if (total < options.frames) total = Clip(source, options).decode([](std::int64_t, const AVFrame&) {});
  SampledVideo video = take_frames(source, options, total, found);
  if (found == total) return video;
  // Fields in packets of their own, frames that are not shown: the places follow from the frames that came.
  total = found;
  video = take_frames(source, options, total, found);
  require(found == total, "{}: the video decodes to {} frames, then to {}", source.name, total, found);
  return video;
}

}  // namespace

SampledVideo decode_video(std::string_view bytes, const std::string& name, const VideoOptions& options) {
  return sample({name, static_cast<std::int64_t>(bytes.size()),
                 [bytes](void* to, std::size_t count, std::int64_t offset) {
                   std::memcpy(to, bytes.data() + offset, count);
                 }},
                options);
}

SampledVideo read_video(const std::string& path, const VideoOptions& options) {
  const File file = File::open_to_read(path);
  return sample(
      {path, file.size(),
       [&file](void* to, std::size_t count, std::int64_t offset) { file.read_at(to, count, offset); }},
      options);
}

std::string video_libraries() {
  const unsigned version = avcodec_version();
  return fmt::format("FFmpeg's libavcodec {}.{}.{}", version >> 16, version >> 8 & 255, version & 255);
}

}  // namespace lapidary
