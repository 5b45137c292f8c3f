// From a decoded image to the model's soft tokens: the processor's target size, its resampling and its patch
// layout (specification 4.2 and 4.3), reproduced value for value.
#pragma once
#include <cstdint>
#include <vector>

#include "data/media.h"

namespace lapidary {

/// Interleaved 8-bit RGB: pixels[(y * width + x) * 3 + channel].
struct RgbImage {
  std::int32_t width = 0, height = 0;
  std::vector<std::uint8_t> pixels;
};

struct ImageOptions {
  std::int32_t max_soft_tokens = 280;  ///< the budget: 70, 140, 280, 560 or 1120
  std::int32_t patch = 48;             ///< pixels along the side of one soft token
  bool any_budget = false;             ///< allows any positive budget: for small models
};

/// Error where the budget or the patch is not one that the processor knows (or, with any_budget, not
/// positive).
void check_image_options(const ImageOptions& options);

struct ImageSize {
  std::int32_t width = 0, height = 0;
};

/// The size that an image is resampled to: the largest multiples of the patch that hold its proportions and
/// the budget. Small images are enlarged. Double precision in the processor's order of operations, because a
/// single rounding decides over a row.
ImageSize target_size(ImageSize image, const ImageOptions& options);

/// Antialiased bicubic resampling (a = -0.5) as torchvision computes it for uint8 on a CPU: rows first, then
/// columns, an 8-bit image between them, weights rounded to 16-bit integers.
RgbImage resize_bicubic(const RgbImage& image, ImageSize size);

/// Resamples to target_size() and cuts the result into squares, row-major.
PatchedImage patch_image(const RgbImage& image, const ImageOptions& options);

}  // namespace lapidary
