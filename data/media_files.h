// Media from the file system: what `data build` renders samples with.
#pragma once
#include <filesystem>
#include <string>

#include "data/audio.h"
#include "data/image.h"
#include "data/media.h"
#include "data/video.h"

namespace lapidary {

struct MediaOptions {
  ImageOptions image;
  ImageLimits image_limits;
  AudioOptions audio;
  VideoOptions video;  ///< patch and any_budget of its frames are those of `image`
};

class MediaFiles : public MediaSource {
 public:
  /// Relative paths of samples start at `folder`, the one of their JSONL file.
  MediaFiles(std::filesystem::path folder, const MediaOptions& options);

  PatchedImage image(const std::string& path) const override;
  FramedSound sound(const std::string& path) const override;
  SampledVideo video(const std::string& path) const override;

 private:
  std::string resolve(const std::string& path) const;

  std::filesystem::path folder_;
  MediaOptions options_;
};

}  // namespace lapidary
