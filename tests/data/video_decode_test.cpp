// Clips that this test encodes, read back: the right frames, upright, in order, and damage refused.
#include <gtest/gtest.h>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
}

#include <cmath>
#include <fstream>
#include <memory>
#include <random>

#include "data/byte_tokenizer.h"
#include "data/conversation.h"
#include "data/media_files.h"
#include "kernels/file.h"
#include "tests/data/sample_documents.h"

namespace lapidary {
namespace {

struct ClipOptions {
  AVCodecID codec = AV_CODEC_ID_FFV1;
  const char* container = "matroska";
  AVPixelFormat format = AV_PIX_FMT_0RGB32;
  int frames_per_second = 2;
  int b_frames = 0;
};

void check(int status) {
  if (status < 0) throw std::runtime_error("FFmpeg failed to encode");
}

/// Encodes pictures of one size: 0RGB32 takes their colours, grey formats (and luma) their red.
class Encoder {
 public:
  Encoder(const ClipOptions& options, int width, int height) {
    check(avformat_alloc_output_context2(&format_, nullptr, options.container, nullptr));
    check(avio_open(&format_->pb, path_.c_str(), AVIO_FLAG_WRITE));
    const AVCodec* codec = avcodec_find_encoder(options.codec);
    if (!codec) throw std::runtime_error("no encoder");
    codec_ = avcodec_alloc_context3(codec);
    codec_->width = width;
    codec_->height = height;
    codec_->pix_fmt = options.format;
    codec_->time_base = {1, options.frames_per_second};
    codec_->framerate = {options.frames_per_second, 1};
    codec_->max_b_frames = options.b_frames;
    codec_->bit_rate = 4'000'000;
    if (format_->oformat->flags & AVFMT_GLOBALHEADER) codec_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    check(avcodec_open2(codec_, codec, nullptr));
    stream_ = avformat_new_stream(format_, nullptr);
    check(avcodec_parameters_from_context(stream_->codecpar, codec_));
    stream_->time_base = codec_->time_base;
    stream_->avg_frame_rate = codec_->framerate;
    check(avformat_write_header(format_, nullptr));
  }
  ~Encoder() {
    avcodec_free_context(&codec_);
    avformat_free_context(format_);
  }

  void add(const RgbImage& image) {
    AVFrame* frame = av_frame_alloc();
    frame->format = codec_->pix_fmt;
    frame->width = image.width;
    frame->height = image.height;
    frame->pts = frames_++;
    check(av_frame_get_buffer(frame, 0));
    for (int plane = 1; plane < 3 && frame->data[plane]; ++plane)
      std::memset(frame->data[plane], 128,
                  static_cast<std::size_t>(std::int64_t{frame->linesize[plane]} * (image.height / 2)));
    for (int y = 0; y < image.height; ++y) {
      for (int x = 0; x < image.width; ++x) {
        const std::uint8_t* pixel = &image.pixels[(std::int64_t{y} * image.width + x) * 3];
        if (codec_->pix_fmt == AV_PIX_FMT_0RGB32) {
          const std::uint32_t value = static_cast<std::uint32_t>(pixel[0] << 16 | pixel[1] << 8 | pixel[2]);
          std::memcpy(frame->data[0] + y * frame->linesize[0] + 4 * x, &value, 4);
        } else {
          frame->data[0][y * frame->linesize[0] + x] = pixel[0];
        }
      }
    }
    encode(frame);
    av_frame_free(&frame);
  }

  std::string finish() {
    encode(nullptr);
    check(av_write_trailer(format_));
    check(avio_closep(&format_->pb));
    return read_text_file(path_, 1 << 26);
  }

 private:
  void encode(const AVFrame* frame) {
    check(avcodec_send_frame(codec_, frame));
    AVPacket* packet = av_packet_alloc();
    while (avcodec_receive_packet(codec_, packet) == 0) {
      packet->duration = 1;
      av_packet_rescale_ts(packet, codec_->time_base, stream_->time_base);
      check(av_interleaved_write_frame(format_, packet));
    }
    av_packet_free(&packet);
  }

  TemporaryDirectory folder_;
  std::string path_ = (folder_ / "clip").string();
  AVFormatContext* format_ = nullptr;
  AVCodecContext* codec_ = nullptr;
  AVStream* stream_ = nullptr;
  std::int64_t frames_ = 0;
};

std::string encode(const std::vector<RgbImage>& images, const ClipOptions& options = {}) {
  Encoder encoder(options, images.at(0).width, images.at(0).height);
  for (const RgbImage& image : images) encoder.add(image);
  return encoder.finish();
}

std::vector<RgbImage> noise(int count, int width, int height) {
  std::mt19937 random(1);
  std::vector<RgbImage> images(static_cast<std::size_t>(count), {width, height, {}});
  for (RgbImage& image : images) {
    image.pixels.resize(static_cast<std::size_t>(std::int64_t{3} * width * height));
    for (std::uint8_t& value : image.pixels) value = static_cast<std::uint8_t>(random());
  }
  return images;
}

/// Picture i is grey of level first + step * i.
std::vector<RgbImage> levels(int count, int width, int height, int first, int step) {
  std::vector<RgbImage> images;
  images.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i)
    images.push_back({width, height,
                      std::vector<std::uint8_t>(static_cast<std::size_t>(std::int64_t{3} * width * height),
                                                static_cast<std::uint8_t>(first + step * i))});
  return images;
}

double mean(const PatchedImage& image) {
  double sum = 0;
  for (const std::uint8_t value : image.patches) sum += value;
  return sum / static_cast<double>(image.patches.size());
}

TEST(Video, FramesAreTheProcessorsImages) {
  const std::vector<RgbImage> images = noise(40, 96, 64);
  const SampledVideo video = decode_video(encode(images), "clip");
  ASSERT_EQ(video.frames.size(), 32u);
  ImageOptions options;
  options.max_soft_tokens = 70;
  for (std::size_t k = 0; k < 32; ++k) {
    const std::size_t frame = k * 40 / 32;
    EXPECT_EQ(video.frames[k].columns * video.frames[k].rows, 60);
    EXPECT_EQ(video.frames[k].patches, patch_image(images[frame], options).patches) << "frame " << frame;
    EXPECT_EQ(video.seconds[k], static_cast<std::int32_t>(frame / 2));
  }
}

TEST(Video, KeepsTheOrderInWhichFramesAreShown) {
  for (const char* container : {"mp4", "avi", "mpegts", "matroska"}) {
    const ClipOptions options{AV_CODEC_ID_MPEG4, container, AV_PIX_FMT_YUV420P, 25, 2};
    const SampledVideo video = decode_video(encode(levels(50, 64, 48, 20, 4), options), container);
    ASSERT_EQ(video.frames.size(), 32u) << container;
    for (std::size_t k = 0; k < 32; ++k) {
      const std::size_t frame = k * 50 / 32;
      const double luma = 20.0 + 4.0 * static_cast<double>(frame);
      EXPECT_NEAR(mean(video.frames[k]), std::max(0.0, (luma - 16) * 255 / 219), 4) << container << " " << k;
      // A transport stream does not say its rate: FFmpeg's estimate is a little off.
      const int off = std::string(container) == "mpegts" ? 1 : 0;
      EXPECT_NEAR(video.seconds[k], static_cast<int>(frame / 25), off) << container;
    }
  }
}

TEST(Video, OddSizesAndAllFramesOfShortClips) {
  VideoOptions options{.frames = 0};
  const std::vector<RgbImage> images = noise(3, 37, 29);
  const SampledVideo video = decode_video(encode(images), "odd", options);
  ASSERT_EQ(video.frames.size(), 3u);
  for (std::size_t k = 0; k < 3; ++k)
    EXPECT_EQ(video.frames[k].patches, patch_image(images[k], options.image).patches);
}

TEST(Video, TurnsFramesAsTheFileAsks) {
  const ClipOptions options{AV_CODEC_ID_MPEG4, "mp4", AV_PIX_FMT_YUV420P, 25, 0};
  std::string file = encode(levels(32, 96, 64, 100, 0), options);
  const std::size_t header = file.find("tkhd");
  ASSERT_NE(header, std::string::npos);
  const SampledVideo lying = decode_video(file, "lying");
  EXPECT_EQ(std::pair(lying.frames[0].columns, lying.frames[0].rows), std::pair(10, 6));
  // A quarter turn with the clock, in the track header's matrix: a = 0, b = 1, c = -1, d = 0.
  const std::string matrix("\0\0\0\0\0\1\0\0\0\0\0\0\xFF\xFF\0\0\0\0\0\0\0\0\0\0", 24);
  file.replace(header + 4 + 40, matrix.size(), matrix);
  const SampledVideo upright = decode_video(file, "upright");
  EXPECT_EQ(std::pair(upright.frames[0].columns, upright.frames[0].rows), std::pair(6, 10));
}

TEST(Video, StandsInAConversationWithItsTimes) {
  const TemporaryDirectory folder;
  std::ofstream(folder / "c.mkv", std::ios::binary) << encode(noise(3, 16, 16), {.frames_per_second = 1});
  MediaOptions media;
  media.video.frames = 0;
  media.image.any_budget = true;
  media.video.image.max_soft_tokens = 1;
  const ByteTokenizer tokenizer;
  const Document document =
      ConversationRenderer(tokenizer, {})
          .render(
              parse_sample(R"({"prompt": [{"type": "video", "video": "c.mkv"}], "completion": "x"})", "f:1"),
              MediaFiles(folder / "", media));
  std::string text;
  for (const std::int32_t id : document.tokens) text += tokenizer.piece(id);
  EXPECT_EQ(text,
            "<bos>00:00 <|image><|video|><image|> 00:01 <|image><|video|><image|> "
            "00:02 <|image><|video|><image|>x<eos>");
}

TEST(Video, NamesWhatIsWrong) {
  const std::string good = encode(noise(40, 32, 32));
  const auto message = [](const std::string& bytes, const VideoOptions& options = {}) {
    return error_of([&] { decode_video(bytes, "c.mkv", options); });
  };
  EXPECT_NE(message("").find("c.mkv: is not a video"), std::string::npos) << message("");
  EXPECT_NE(message("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n").find("c.mkv: is not a video"),
            std::string::npos);
  const std::string png = read_text_file(LAPIDARY_SOURCE_DIR "/tests/data/assets/rgb.png", 1 << 20);
  EXPECT_NE(message(png).find("c.mkv: is not a video"), std::string::npos) << message(png);
  EXPECT_NE(message(good, {.max_pixels = 1000}).find("c.mkv: "), std::string::npos);
  EXPECT_NE(message(good, {.frames = 41}).find("has 40 frames, fewer than the 41"), std::string::npos);
  EXPECT_NE(error_of([] { read_video("/nowhere/a.mp4"); }).find("/nowhere/a.mp4"), std::string::npos);
}

TEST(Video, SurvivesMutatedFiles) {
  std::mt19937 random(3);
  const std::vector<std::string> files = {
      encode(noise(6, 16, 16)),
      encode(levels(6, 32, 32, 40, 9), {AV_CODEC_ID_MPEG4, "mp4", AV_PIX_FMT_YUV420P, 25, 2}),
      encode(levels(6, 32, 32, 40, 9), {AV_CODEC_ID_MJPEG, "avi", AV_PIX_FMT_YUVJ420P, 25, 0})};
  VideoOptions options{.frames = 0, .max_pixels = 1 << 16, .max_frames = 64};
  options.image = {.max_soft_tokens = 4, .patch = 8, .any_budget = true};
  int refused = 0;
  for (int trial = 0; trial < 1200; ++trial) {
    std::string bytes = files[static_cast<std::size_t>(trial) % files.size()];
    if (random() % 5 == 0) bytes.resize(random() % bytes.size());
    for (unsigned changes = 1 + random() % 6; changes > 0 && !bytes.empty(); --changes)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    try {
      const SampledVideo video = decode_video(bytes, "x", options);
      EXPECT_LE(video.frames.size(), 64u);
      EXPECT_EQ(video.frames.size(), video.seconds.size());
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).rfind("x: ", 0), 0u) << e.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace lapidary
