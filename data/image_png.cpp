// PNG through libpng: every colour type and depth to 8-bit RGB, alpha and gamma ignored.
#include <png.h>

#include <csetjmp>
#include <cstring>
#include <vector>

#include "data/image_codecs.h"
#include "kernels/check.h"

namespace lapidary {
namespace {

/// libpng's callbacks must not return on errors. They jump, so every frame between the functions that call
/// setjmp and them holds nothing with a destructor.
struct PngDecoder {
  png_structp png = nullptr;
  png_infop info = nullptr;
  const char* bytes = nullptr;
  std::size_t left = 0;
  std::jmp_buf on_error = {};
  char message[200] = "";
};

[[noreturn]] void jump_out(png_structp png, png_const_charp text) {
  auto* decoder = static_cast<PngDecoder*>(png_get_error_ptr(png));
  std::strncpy(decoder->message, text, sizeof decoder->message - 1);
  std::longjmp(decoder->on_error, 1);
}

void ignore_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep to, std::size_t count) {
  auto* decoder = static_cast<PngDecoder*>(png_get_io_ptr(png));
  if (count > decoder->left) png_error(png, "the file ends early");
  std::memcpy(to, decoder->bytes, count);
  decoder->bytes += count;
  decoder->left -= count;
}

/// Reads what stands before the pixels and asks for RGB. False, with decoder.message set, on an error.
bool read_header(PngDecoder& decoder) {
  if (setjmp(decoder.on_error) != 0) return false;
  png_set_read_fn(decoder.png, &decoder, read_bytes);
  png_read_info(decoder.png, decoder.info);
  png_set_expand(decoder.png);    // palettes, 1 to 4 bits, transparent colours
  png_set_strip_16(decoder.png);  // the high byte
  png_set_gray_to_rgb(decoder.png);
  png_set_strip_alpha(decoder.png);
  return true;
}

bool start_pixels(PngDecoder& decoder) {
  if (setjmp(decoder.on_error) != 0) return false;
  png_set_interlace_handling(decoder.png);
  png_read_update_info(decoder.png, decoder.info);
  return true;
}

bool read_pixels(PngDecoder& decoder, png_bytepp rows) {
  if (setjmp(decoder.on_error) != 0) return false;
  png_read_image(decoder.png, rows);
  png_read_end(decoder.png, decoder.info);
  return true;
}

/// Owns what libpng allocated.
class OpenPng {
 public:
  OpenPng(std::string_view bytes, const std::string& name) : name_(name) {
    decoder_.bytes = bytes.data();
    decoder_.left = bytes.size();
    decoder_.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &decoder_, jump_out, ignore_warning);
    if (decoder_.png != nullptr) decoder_.info = png_create_info_struct(decoder_.png);
    const bool ok = decoder_.info != nullptr && read_header(decoder_);
    if (!ok) destroy();
    require(ok, "{}: PNG: {}", name_, decoder_.message);
  }
  ~OpenPng() { destroy(); }
  OpenPng(const OpenPng&) = delete;
  OpenPng& operator=(const OpenPng&) = delete;

  std::int64_t width() const { return png_get_image_width(decoder_.png, decoder_.info); }
  std::int64_t height() const { return png_get_image_height(decoder_.png, decoder_.info); }

  std::vector<std::uint8_t> pixels() {
    require(start_pixels(decoder_), "{}: PNG: {}", name_, decoder_.message);
    const auto row_bytes = static_cast<std::size_t>(width()) * 3;
    require(png_get_rowbytes(decoder_.png, decoder_.info) == row_bytes, "{}: PNG: cannot be turned into RGB",
            name_);
    std::vector<std::uint8_t> pixels(row_bytes * static_cast<std::size_t>(height()));
    std::vector<png_bytep> rows;
    for (std::size_t at = 0; at < pixels.size(); at += row_bytes) rows.push_back(pixels.data() + at);
    require(read_pixels(decoder_, rows.data()), "{}: PNG: {}", name_, decoder_.message);
    return pixels;
  }

  /// May stand behind the pixels: ask after pixels().
  std::string exif() const {
#ifdef PNG_eXIf_SUPPORTED
    png_uint_32 size = 0;
    png_bytep data = nullptr;
    if (png_get_eXIf_1(decoder_.png, decoder_.info, &size, &data) != 0 && data != nullptr)
      return {reinterpret_cast<const char*>(data), size};
#endif
    return {};
  }

 private:
  void destroy() {
    png_destroy_read_struct(&decoder_.png, &decoder_.info, nullptr);
  }

  PngDecoder decoder_;
  const std::string& name_;
};

}  // namespace

DecodedImage decode_png(std::string_view bytes, const std::string& name, std::int64_t max_pixels) {
  OpenPng png(bytes, name);
  check_pixels(png.width(), png.height(), max_pixels, name);
  DecodedImage decoded;
  decoded.image.width = static_cast<std::int32_t>(png.width());
  decoded.image.height = static_cast<std::int32_t>(png.height());
  decoded.image.pixels = png.pixels();
  decoded.exif = png.exif();
  return decoded;
}

}  // namespace lapidary
