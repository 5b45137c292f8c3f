// JPEG through libjpeg-turbo with its defaults (accurate integer transform, smooth chroma), as Pillow uses
// it.
#include <csetjmp>
#include <cstdio>
#include <vector>

// These need FILE and size_t before them.
#include <jpeglib.h>

#include <jerror.h>

#include "data/image_codecs.h"
#include "kernels/check.h"

namespace lapidary {
namespace {

constexpr int kMaxScans = 500;  // of a progressive file; each one costs a pass over the whole picture

/// libjpeg reports through callbacks that must not return on errors. They jump, so every frame between
/// decode() and them holds nothing with a destructor.
struct JpegDecoder {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_progress_mgr progress;
  std::jmp_buf on_error;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void jump_out(j_common_ptr info) {
  auto* decoder = static_cast<JpegDecoder*>(info->client_data);
  (*info->err->format_message)(info, decoder->message);
  std::longjmp(decoder->on_error, 1);
}

/// Level -1 is a warning: the data is damaged and libjpeg would go on with what it can guess. Three are
/// harmless: bytes to skip before a marker, and versions of JFIF and Adobe headers that are not known.
void refuse_warnings(j_common_ptr info, int level) {
  const int code = info->err->msg_code;
  const bool harmless = code == JWRN_EXTRANEOUS_DATA || code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM;
  if (level < 0 && !harmless) jump_out(info);
}

void limit_scans(j_common_ptr info) {
  auto* decoder = static_cast<JpegDecoder*>(info->client_data);
  if (decoder->info.input_scan_number <= kMaxScans) return;
  std::snprintf(decoder->message, sizeof decoder->message, "more than %d scans", kMaxScans);
  std::longjmp(decoder->on_error, 1);
}

void discard_output(j_common_ptr) {}

/// Reads the header. False, with decoder.message set, on an error.
bool read_header(JpegDecoder& decoder, std::string_view bytes) {
  if (setjmp(decoder.on_error) != 0) return false;
  jpeg_create_decompress(&decoder.info);
  decoder.progress.progress_monitor = limit_scans;
  decoder.info.progress = &decoder.progress;
  jpeg_save_markers(&decoder.info, JPEG_APP0 + 1, 0xFFFF);
  jpeg_mem_src(&decoder.info, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_read_header(&decoder.info, TRUE);
  // Grey and YCbCr become RGB in libjpeg; it cannot turn four inks into RGB.
  const bool inks = decoder.info.jpeg_color_space == JCS_CMYK || decoder.info.jpeg_color_space == JCS_YCCK;
  decoder.info.out_color_space = inks ? JCS_CMYK : JCS_RGB;
  jpeg_calc_output_dimensions(&decoder.info);
  return true;
}

/// Decodes all rows into `pixels`. False, with decoder.message set, on an error.
bool read_pixels(JpegDecoder& decoder, std::uint8_t* pixels, std::size_t row_bytes) {
  if (setjmp(decoder.on_error) != 0) return false;
  jpeg_start_decompress(&decoder.info);
  while (decoder.info.output_scanline < decoder.info.output_height) {
    JSAMPROW row = pixels + decoder.info.output_scanline * row_bytes;
    jpeg_read_scanlines(&decoder.info, &row, 1);
  }
  jpeg_finish_decompress(&decoder.info);
  return true;
}

/// a * b / 255, rounded, for bytes: Pillow's MULDIV255.
std::uint8_t times_255th(unsigned a, unsigned b) {
  const unsigned t = a * b + 128;
  return static_cast<std::uint8_t>(((t >> 8) + t) >> 8);
}

/// Four inks to RGB as Pillow does it. JPEGs with four inks store them inverted (Adobe's convention).
std::vector<std::uint8_t> inks_to_rgb(const std::vector<std::uint8_t>& inks) {
  std::vector<std::uint8_t> rgb(inks.size() / 4 * 3);
  for (std::size_t i = 0; i < inks.size() / 4; ++i) {
    const unsigned not_black = inks[4 * i + 3];
    for (std::size_t c = 0; c < 3; ++c)
      rgb[3 * i + c] = static_cast<std::uint8_t>(not_black - times_255th(255u - inks[4 * i + c], not_black));
  }
  return rgb;
}

std::string find_exif(const jpeg_decompress_struct& info) {
  static constexpr std::string_view kSignature("Exif\0\0", 6);
  for (const jpeg_marker_struct* m = info.marker_list; m != nullptr; m = m->next) {
    const std::string_view data(reinterpret_cast<const char*>(m->data), m->data_length);
    if (data.substr(0, kSignature.size()) == kSignature) return std::string(data.substr(kSignature.size()));
  }
  return {};
}

/// Owns what libjpeg allocated.
class OpenJpeg {
 public:
  OpenJpeg(std::string_view bytes, const std::string& name) : name_(name) {
    decoder_.info = {};
    decoder_.info.err = jpeg_std_error(&decoder_.errors);
    decoder_.info.client_data = &decoder_;
    decoder_.errors.error_exit = jump_out;
    decoder_.errors.emit_message = refuse_warnings;
    decoder_.errors.output_message = discard_output;
    if (!read_header(decoder_, bytes)) {
      jpeg_destroy_decompress(&decoder_.info);
      fail("{}: JPEG: {}", name, decoder_.message);
    }
  }
  ~OpenJpeg() { jpeg_destroy_decompress(&decoder_.info); }
  OpenJpeg(const OpenJpeg&) = delete;
  OpenJpeg& operator=(const OpenJpeg&) = delete;

  const jpeg_decompress_struct& info() const { return decoder_.info; }

  std::vector<std::uint8_t> pixels() {
    const std::size_t row_bytes =
        std::size_t{decoder_.info.output_width} * static_cast<std::size_t>(decoder_.info.output_components);
    std::vector<std::uint8_t> pixels(row_bytes * decoder_.info.output_height);
    require(read_pixels(decoder_, pixels.data(), row_bytes), "{}: JPEG: {}", name_, decoder_.message);
    return pixels;
  }

 private:
  JpegDecoder decoder_;
  const std::string& name_;
};

}  // namespace

DecodedImage decode_jpeg(std::string_view bytes, const std::string& name, std::int64_t max_pixels) {
  OpenJpeg jpeg(bytes, name);
  check_pixels(jpeg.info().output_width, jpeg.info().output_height, max_pixels, name);
  DecodedImage decoded;
  decoded.exif = find_exif(jpeg.info());
  decoded.image.width = static_cast<std::int32_t>(jpeg.info().output_width);
  decoded.image.height = static_cast<std::int32_t>(jpeg.info().output_height);
  decoded.image.pixels = jpeg.pixels();
  if (jpeg.info().output_components == 4) decoded.image.pixels = inks_to_rgb(decoded.image.pixels);
  return decoded;
}

}  // namespace lapidary
