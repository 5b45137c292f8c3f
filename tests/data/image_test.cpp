// Pictures against what Pillow decodes and what the processor of transformers makes of them; the expected
// values are in tests/data/assets, written by tools/make_image_goldens.py.
#include "data/image.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "kernels/checksum.h"
#include "kernels/error.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

const std::string kAssets = LAPIDARY_SOURCE_DIR "/tests/data/assets/";

std::string checksum(const std::vector<std::uint8_t>& bytes) {
  return checksum_of({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

/// Byte i is a hash of i, as in make_image_goldens.py.
RgbImage noise(std::int32_t width, std::int32_t height) {
  RgbImage image{width, height, {}};
  image.pixels.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
  for (std::size_t i = 0; i < image.pixels.size(); ++i) {
    std::uint32_t v = static_cast<std::uint32_t>(i) * 2654435761u;
    v = (v ^ (v >> 15)) * 2246822519u;
    v = (v ^ (v >> 13)) * 3266489917u;
    image.pixels[i] = static_cast<std::uint8_t>(v >> 24);
  }
  return image;
}

TEST(ImageSize, IsTheProcessorsInTheWorkedExamples) {
  const struct {
    ImageSize image;
    std::int32_t budget;
    ImageSize expected;
  } cases[] = {
      {{1920, 1080}, 280, {1056, 576}},   {{640, 480}, 280, {912, 672}},
      {{5000, 50}, 70, {3360, 48}},       {{960, 672}, 280, {960, 672}},
      {{3000, 4000}, 1120, {1344, 1824}}, {{1920, 1080}, 1120, {2112, 1200}},
      {{1920, 1080}, 70, {528, 288}},     {{1, 1}, 280, {768, 768}},
      {{144, 96}, 70, {480, 288}},
  };
  for (const auto& c : cases) {
    ImageOptions options;
    options.max_soft_tokens = c.budget;
    const ImageSize size = target_size(c.image, options);
    EXPECT_EQ(size.width, c.expected.width) << c.image.width << 'x' << c.image.height;
    EXPECT_EQ(size.height, c.expected.height) << c.image.width << 'x' << c.image.height;
  }
}

TEST(ImageSize, NeverExceedsTheBudgetWhateverTheProportions) {
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    const auto side = [&] { return 1 + static_cast<std::int32_t>(random() % (1u << (1 + random() % 14))); };
    const ImageSize image{side(), side()};
    ImageOptions options;
    options.any_budget = true;
    options.max_soft_tokens = 1 + static_cast<std::int32_t>(random() % 300);
    options.patch = 4 << (random() % 4);
    const ImageSize size = target_size(image, options);
    ASSERT_GE(size.width, options.patch);
    ASSERT_GE(size.height, options.patch);
    ASSERT_EQ(size.width % options.patch, 0);
    ASSERT_EQ(size.height % options.patch, 0);
    ASSERT_LE(size.width / options.patch * (size.height / options.patch), options.max_soft_tokens);
  }
}

TEST(ImageSize, RefusesBudgetsThatTheProcessorRefuses) {
  ImageOptions options;
  options.max_soft_tokens = 64;
  EXPECT_THROW(target_size({10, 10}, options), Error);
  options.any_budget = true;
  EXPECT_NO_THROW(target_size({10, 10}, options));
  options.max_soft_tokens = 0;
  EXPECT_THROW(target_size({10, 10}, options), Error);
  EXPECT_THROW(target_size({0, 10}, ImageOptions{}), Error);
}

TEST(ImageResize, MatchesTheProcessorFromOnePixelTo6000By40) {
  const nlohmann::json cases = read_json_file(kAssets + "resize.json", 1 << 20);
  ASSERT_GT(cases.size(), 60u);
  RgbImage image;
  for (const auto& c : cases) {
    if (image.width != c["width"] || image.height != c["height"]) image = noise(c["width"], c["height"]);
    ImageOptions options;
    options.max_soft_tokens = c["budget"];
    const PatchedImage patched = patch_image(image, options);
    EXPECT_EQ(patched.columns, c["columns"]) << c;
    EXPECT_EQ(patched.rows, c["rows"]) << c;
    EXPECT_EQ(checksum(patched.patches), c["xxh3"]) << c;
  }
}

TEST(ImageResize, MatchesTheProcessorsPatchesAndPositions) {
  const std::string file = read_text_file(kAssets + "preprocessing.safetensors", 1 << 20);
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  const nlohmann::json header = parse_json(std::string_view(file).substr(8, header_bytes), "preprocessing");
  const auto data = [&](const char* name) {
    return file.data() + 8 + header_bytes + header[name]["data_offsets"][0].get<std::size_t>();
  };
  RgbImage image{90, 200, std::vector<std::uint8_t>(std::size_t{90} * 200 * 3)};
  ASSERT_EQ(header["image.2"]["shape"], nlohmann::json({3, 200, 90}));
  for (std::size_t i = 0; i < image.pixels.size(); ++i)  // from planes to interleaved
    image.pixels[i] = static_cast<std::uint8_t>(data("image.2")[i % 3 * 90 * 200 + i / 3]);
  ImageOptions options;
  options.max_soft_tokens = 70;
  const PatchedImage patched = patch_image(image, options);

  ASSERT_EQ(header["patches.2.70"]["shape"], nlohmann::json({60, 6912}));
  ASSERT_EQ(patched.columns * patched.rows, 60);
  int largest = 0, different = 0;
  for (std::size_t i = 0; i < patched.patches.size(); ++i) {
    const int difference = std::abs(patched.patches[i] - static_cast<std::uint8_t>(data("patches.2.70")[i]));
    largest = std::max(largest, difference);
    different += difference != 0;
  }
  EXPECT_EQ(largest, 0);
  EXPECT_EQ(different, 0);
  for (std::int64_t t = 0; t < 60; ++t) {
    std::int64_t position[2];
    std::memcpy(position, data("positions.2.70") + t * 16, sizeof position);
    EXPECT_EQ(position[0], t % patched.columns);
    EXPECT_EQ(position[1], t / patched.columns);
  }
}

TEST(ImageResize, KeepsAnImageThatFitsAndAFlatColour) {
  ImageOptions options;
  options.any_budget = true;
  options.max_soft_tokens = 6;
  options.patch = 4;
  const RgbImage image = noise(12, 8);
  const PatchedImage patched = patch_image(image, options);
  ASSERT_EQ(patched.columns, 3);
  ASSERT_EQ(patched.rows, 2);
  for (int y = 0; y < 8; ++y)
    for (int x = 0; x < 12; ++x)
      for (int c = 0; c < 3; ++c)  // token (x / 4, y / 4), then the place inside of it
        ASSERT_EQ(
            patched.patches[static_cast<std::size_t>(((y / 4 * 3 + x / 4) * 16 + y % 4 * 4 + x % 4) * 3 + c)],
            image.pixels[static_cast<std::size_t>((y * 12 + x) * 3 + c)]);

  RgbImage flat{31, 17, std::vector<std::uint8_t>(31 * 17 * 3, 201)};
  for (const std::uint8_t value : resize_bicubic(flat, {77, 5}).pixels) ASSERT_EQ(value, 201);
}

TEST(ImageDecode, EqualsPillowForEveryFormatModeAndOrientation) {
  const nlohmann::json cases = read_json_file(kAssets + "images.json", 1 << 20);
  ASSERT_GT(cases.size(), 25u);
  for (const auto& c : cases) {
    const RgbImage image = read_image(kAssets + c["name"].get<std::string>());
    EXPECT_EQ(image.width, c["width"]) << c;
    EXPECT_EQ(image.height, c["height"]) << c;
    EXPECT_EQ(checksum(image.pixels), c["xxh3"]) << c;
  }
}

std::string error_of(std::string_view bytes, const ImageLimits& limits = {}) {
  try {
    decode_image(bytes, "x", limits);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(ImageDecode, NamesWhatIsWrong) {
  EXPECT_EQ(error_of("GIF89a"), "x: is not a JPEG, PNG or WebP picture");
  EXPECT_EQ(error_of(""), "x: is not a JPEG, PNG or WebP picture");
  const std::string jpeg = read_text_file(kAssets + "baseline.jpg", 1 << 20);
  const std::string png = read_text_file(kAssets + "rgb.png", 1 << 20);
  const std::string webp = read_text_file(kAssets + "lossy.webp", 1 << 20);
  EXPECT_EQ(error_of(jpeg.substr(0, jpeg.size() / 2)), "x: JPEG: Premature end of JPEG file");
  EXPECT_EQ(error_of(png.substr(0, png.size() / 2)), "x: PNG: the file ends early");
  EXPECT_EQ(error_of(webp.substr(0, webp.size() / 2)), "x: WebP: the file ends early");
  ImageLimits limits;
  limits.max_pixels = 37 * 29 - 1;
  for (const std::string& bytes : {jpeg, png, webp})
    EXPECT_EQ(error_of(bytes, limits), "x: declares 37 x 29 pixels, more than the 1072 allowed");
  try {
    read_image("/nonexistent.png");
    FAIL() << "a missing file was read";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("/nonexistent.png"), std::string::npos);
  }
}

TEST(ImageDecode, RefusesAHeaderThatDeclaresTooMuchBeforeAllocating) {
  std::string png = read_text_file(kAssets + "rgb.png", 1 << 20);
  // 2^31 - 1 by 2^31 - 1 pixels in the header; its checksum is then wrong too, so either message will do.
  for (const std::size_t at : {std::size_t{16}, std::size_t{20}}) png.replace(at, 4, "\x7F\xFF\xFF\xFF");
  EXPECT_NE(error_of(png), "no error");
  std::string jpeg = read_text_file(kAssets + "baseline.jpg", 1 << 20);
  const std::size_t frame = jpeg.find("\xFF\xC0");
  ASSERT_NE(frame, std::string::npos);
  jpeg.replace(frame + 5, 4, "\xFF\xDC\xFF\xDC");  // height and width 65500, the largest that libjpeg takes
  EXPECT_EQ(error_of(jpeg), "x: declares 65500 x 65500 pixels, more than the 100000000 allowed");
}

TEST(ImageDecode, SurvivesMutatedFiles) {
  const nlohmann::json cases = read_json_file(kAssets + "images.json", 1 << 20);
  const auto format = [](const nlohmann::json& c) {
    const auto name = c["name"].get<std::string>();
    return name.substr(name.rfind('.'));
  };
  std::map<std::string, int> files;
  for (const auto& c : cases) ++files[format(c)];
  ASSERT_EQ(files.size(), 3u);
  std::mt19937 random(11);
  int refused = 0, decoded = 0;
  for (const auto& c : cases) {
    const std::string original = read_text_file(kAssets + c["name"].get<std::string>(), 1 << 20);
    for (int i = 0; i < 1 + 1000 / files[format(c)]; ++i) {  // 1,000 of every format
      std::string bytes = original;
      const int changes = 1 + static_cast<int>(random() % 6);
      for (int k = 0; k < changes; ++k) {
        // Headers stand in front, and decide most.
        const std::size_t at =
            random() % (random() % 2 == 0 ? std::min<std::size_t>(bytes.size(), 64) : bytes.size());
        bytes[at] = static_cast<char>(random());
      }
      if (random() % 8 == 0) bytes.resize(1 + random() % bytes.size());
      ImageLimits limits;
      limits.max_pixels = 1 << 20;
      try {
        const RgbImage image = decode_image(bytes, "x", limits);
        ASSERT_EQ(image.pixels.size(),
                  static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height) * 3);
        ++decoded;
      } catch (const Error& e) {
        ASSERT_EQ(std::string(e.what()).rfind("x: ", 0), 0u) << e.what();
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 300);
  EXPECT_GT(decoded, 100);
}

}  // namespace
}  // namespace lapidary
