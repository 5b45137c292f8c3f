#include "data/media_files.h"

#include <utility>

#include "kernels/check.h"

namespace lapidary {

MediaFiles::MediaFiles(std::filesystem::path folder, const MediaOptions& options)
    : folder_(std::move(folder)), options_(options) {
  options_.video.image.patch = options_.image.patch;
  options_.video.image.any_budget = options_.image.any_budget;
}

std::string MediaFiles::resolve(const std::string& path) const {
  for (const char* scheme : {"http:", "https:", "data:", "gs:", "s3:"})
    require(!path.starts_with(scheme), "{:.60}: media are read from files; store it and give its path", path);
  return (folder_ / (path.starts_with("file://") ? path.substr(7) : path)).lexically_normal().string();
}

PatchedImage MediaFiles::image(const std::string& path) const {
  return patch_image(read_image(resolve(path), options_.image_limits), options_.image);
}

FramedSound MediaFiles::sound(const std::string& path) const {
  return read_sound(resolve(path), options_.audio);
}

SampledVideo MediaFiles::video(const std::string& path) const {
  return read_video(resolve(path), options_.video);
}

}  // namespace lapidary
