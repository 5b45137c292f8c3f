#include "data/image_resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/check.h"

namespace lapidary {
namespace {

constexpr int kChannels = 3;

/// Keys' cubic convolution kernel with a = -0.5, in the form in which PyTorch evaluates it.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

/// Towards zero, as PyTorch's casts do it; what is added before is part of its rule, not a rounding.
std::int64_t truncated(double value) {
  return static_cast<std::int64_t>(value);
}

/// For every output position the run of inputs that it is made of, with weights w / 2^precision that sum
/// to 1.
struct Taps {
  std::int64_t most = 0;            ///< weights kept per output; a shorter run is padded with zeros
  std::vector<std::int64_t> first;  ///< [outputs]
  std::vector<std::int64_t> count;  ///< [outputs]
  std::vector<std::int16_t> weights;
  int precision = 0;
};

/// The real weights, [outputs, taps.most], and the runs that they belong to.
std::vector<double> real_weights(std::int64_t inputs, std::int64_t outputs, Taps& taps) {
  const double scale = static_cast<double>(inputs) / static_cast<double>(outputs);
  const double support = scale >= 1.0 ? 2.0 * scale : 2.0;
  const double inverse = scale >= 1.0 ? 1.0 / scale : 1.0;
  taps.most = static_cast<std::int64_t>(std::ceil(support)) * 2 + 1;
  std::vector<double> weights(static_cast<std::size_t>(outputs * taps.most), 0.0);
  for (std::int64_t i = 0; i < outputs; ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    const std::int64_t first = std::max<std::int64_t>(truncated(centre - support + 0.5), 0);
    const std::int64_t end = std::min(truncated(centre + support + 0.5), inputs);
    const std::int64_t count = std::clamp<std::int64_t>(end - first, 0, taps.most);
    double* w = weights.data() + i * taps.most;
    double sum = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      w[k] = cubic((static_cast<double>(k + first) - centre + 0.5) * inverse);
      sum += w[k];
    }
    for (std::int64_t k = 0; k < count; ++k) w[k] /= sum;
    taps.first.push_back(first);
    taps.count.push_back(count);
  }
  return weights;
}

/// As Pillow and PyTorch do: the largest precision with which the largest weight still fits 16 bits.
Taps make_taps(std::int64_t inputs, std::int64_t outputs) {
  Taps taps;
  const std::vector<double> weights = real_weights(inputs, outputs, taps);
  const double largest = *std::max_element(weights.begin(), weights.end());
  while (taps.precision < 22 && truncated(0.5 + largest * (1 << (taps.precision + 1))) < (1 << 15))
    ++taps.precision;
  taps.weights.reserve(weights.size());
  for (const double w : weights) {
    const double v = w * (1 << taps.precision);
    taps.weights.push_back(static_cast<std::int16_t>(v < 0 ? v - 0.5 : v + 0.5));
  }
  return taps;
}

std::uint8_t to_pixel(std::int32_t sum, int precision) {
  return static_cast<std::uint8_t>(std::clamp(sum >> precision, 0, 255));
}

/// [height, from.width, 3] to [height, width, 3].
RgbImage resize_rows(const RgbImage& from, std::int32_t width) {
  const Taps taps = make_taps(from.width, width);
  RgbImage to{width, from.height, {}};
  to.pixels.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(from.height) * kChannels);
  const std::int32_t half = 1 << (taps.precision - 1);
  std::uint8_t* out = to.pixels.data();
  for (std::int64_t y = 0; y < from.height; ++y) {
    const std::uint8_t* row = from.pixels.data() + y * from.width * kChannels;
    for (std::int64_t x = 0; x < width; ++x) {
      const std::int16_t* w = taps.weights.data() + x * taps.most;
      const std::uint8_t* in = row + taps.first[static_cast<std::size_t>(x)] * kChannels;
      std::int32_t r = half, g = half, b = half;
      for (std::int64_t k = 0; k < taps.count[static_cast<std::size_t>(x)]; ++k, in += kChannels) {
        r += w[k] * in[0];
        g += w[k] * in[1];
        b += w[k] * in[2];
      }
      *out++ = to_pixel(r, taps.precision);
      *out++ = to_pixel(g, taps.precision);
      *out++ = to_pixel(b, taps.precision);
    }
  }
  return to;
}

/// [from.height, width, 3] to [height, width, 3]; walks whole rows, which the compiler turns into vector
/// code.
RgbImage resize_columns(const RgbImage& from, std::int32_t height) {
  const Taps taps = make_taps(from.height, height);
  const std::size_t row = static_cast<std::size_t>(from.width) * kChannels;
  RgbImage to{from.width, height, std::vector<std::uint8_t>(row * static_cast<std::size_t>(height))};
  std::vector<std::int32_t> sums(row);
  for (std::size_t y = 0; y < static_cast<std::size_t>(height); ++y) {
    std::fill(sums.begin(), sums.end(), 1 << (taps.precision - 1));
    for (std::int64_t k = 0; k < taps.count[y]; ++k) {
      const std::int32_t w =
          taps.weights[y * static_cast<std::size_t>(taps.most) + static_cast<std::size_t>(k)];
      const std::uint8_t* in = from.pixels.data() + static_cast<std::size_t>(taps.first[y] + k) * row;
      for (std::size_t i = 0; i < row; ++i) sums[i] += w * in[i];
    }
    std::uint8_t* out = to.pixels.data() + y * row;
    for (std::size_t i = 0; i < row; ++i) out[i] = to_pixel(sums[i], taps.precision);
  }
  return to;
}

}  // namespace

void check_image_options(const ImageOptions& options) {
  const std::int32_t budget = options.max_soft_tokens;
  if (!options.any_budget) {
    require(budget == 70 || budget == 140 || budget == 280 || budget == 560 || budget == 1120,
            "max_soft_tokens is {}: the processor knows 70, 140, 280, 560 and 1120", budget);
  }
  require(budget >= 1 && budget <= 65536, "max_soft_tokens is {}, expected 1 to 65536", budget);
  require(options.patch >= 1 && options.patch <= 256, "the patch is {} pixels wide, expected 1 to 256",
          options.patch);
}

ImageSize target_size(ImageSize image, const ImageOptions& options) {
  check_image_options(options);
  require(image.width > 0 && image.height > 0, "the image is {} x {}: it has no pixels", image.width,
          image.height);
  const double h = image.height, w = image.width, patch = options.patch, budget = options.max_soft_tokens;
  const double target = budget * patch * patch;  // pixels
  const double factor = std::sqrt(target / (h * w));
  double height = std::floor(factor * h / patch) * patch;
  double width = std::floor(factor * w / patch) * patch;
  // An image longer than the budget allows is one square high (or wide); its length comes from the
  // proportions.
  if (height == 0) {
    height = patch;
    width = std::min(std::floor(w / h) * patch, budget * patch);
  } else if (width == 0) {
    width = patch;
    height = std::min(std::floor(h / w) * patch, budget * patch);
  }
  require(height >= patch && width >= patch && height * width <= target,
          "an image of {} x {} does not fit {} soft tokens of {} x {} pixels", image.width, image.height,
          options.max_soft_tokens, options.patch, options.patch);
  return {static_cast<std::int32_t>(width), static_cast<std::int32_t>(height)};
}

RgbImage resize_bicubic(const RgbImage& image, ImageSize size) {
  RgbImage result = size.width == image.width ? image : resize_rows(image, size.width);
  if (size.height != image.height) result = resize_columns(result, size.height);
  return result;
}

PatchedImage patch_image(const RgbImage& image, const ImageOptions& options) {
  const RgbImage resized = resize_bicubic(image, target_size({image.width, image.height}, options));
  PatchedImage result{resized.width / options.patch, resized.height / options.patch, {}};
  const std::size_t patch = static_cast<std::size_t>(options.patch), line = patch * kChannels;
  result.patches.resize(resized.pixels.size());
  std::uint8_t* out = result.patches.data();
  for (std::size_t row = 0; row < static_cast<std::size_t>(result.rows); ++row) {
    for (std::size_t column = 0; column < static_cast<std::size_t>(result.columns); ++column) {
      const std::size_t stride = static_cast<std::size_t>(resized.width) * kChannels;
      const std::uint8_t* corner = resized.pixels.data() + row * patch * stride + column * line;
      for (std::size_t y = 0; y < patch; ++y, out += line) std::memcpy(out, corner + y * stride, line);
    }
  }
  return result;
}

}  // namespace lapidary
