// lapidary data build, inspect, verify, show.
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <iostream>
#include <memory>

#include "data/bpe_tokenizer.h"
#include "data/build.h"
#include "data/show.h"
#include "kernels/check.h"
#include "launch/commands.h"

namespace lapidary {

namespace {

Markup read_markup(const std::vector<std::string>& settings) {
  Markup markup;
  for (const std::string& setting : settings) {
    const std::size_t equals = setting.find('=');
    require(equals != std::string::npos, "--markup {}: expected KEY=NAME", setting);
    set_markup(markup, setting.substr(0, equals), setting.substr(equals + 1));
  }
  return markup;
}

/// A bar that overwrites itself on a terminal and stays silent elsewhere.
class ProgressBar {
 public:
  void operator()(const BuildProgress& p) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point now = Clock::now();
    const bool last = p.bytes_read == p.bytes_total;
    if (!isatty(STDERR_FILENO) || (!last && now - shown_at_ < std::chrono::milliseconds(100))) return;
    // What a continued build finds done says nothing about the time that the rest takes.
    if (!shown_) first_bytes_ = p.bytes_read;
    const double share = p.bytes_total > 0 ? fraction(p.bytes_read, p.bytes_total) : 1;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const double rate = static_cast<double>(p.bytes_read - first_bytes_) / seconds;
    const auto filled = static_cast<std::size_t>(kWidth * share);
    const std::string rest =
        rate > 0 ? fmt::format(", {:.0f} s left", static_cast<double>(p.bytes_total - p.bytes_read) / rate)
                 : "";
    std::cerr << fmt::format("\r[{:<{}}] {:3.0f} %  {} samples, {} tokens, {} dropped{}\x1b[K",
                             std::string(filled, '#'), kWidth, 100 * share, p.samples, p.tokens, p.dropped,
                             rest)
              << std::flush;
    shown_ = true;
    shown_at_ = now;
  }
  ~ProgressBar() {
    if (shown_) std::cerr << '\n';
  }

 private:
  static constexpr int kWidth = 30;
  static double fraction(std::int64_t part, std::int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
  }

  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now(), shown_at_;
  std::int64_t first_bytes_ = 0;
  bool shown_ = false;
};

void print_counts(const char* name, const BuildCounts& c) {
  std::cout << fmt::format(
      "{}: {} documents, {} tokens ({} trained), {} images ({} tokens), {} frames of videos ({} tokens), {} "
      "sounds ({} tokens), {} dropped\n",
      name, c.documents, c.tokens, c.trained_tokens, c.images, c.image_tokens, c.video_frames, c.video_tokens,
      c.sounds, c.sound_tokens, c.dropped());
}

}  // namespace

int run_data_build(const DataBuildArguments& arguments) {
  BuildOptions options;
  options.inputs = arguments.inputs;
  options.output = arguments.output;
  options.form = arguments.form;
  options.conversation = {arguments.train_on, arguments.empty_channel, read_markup(arguments.markup)};
  const std::unique_ptr<const Tokenizer> tokenizer =
      load_tokenizer(arguments.tokenizer, options.conversation.markup.tokens);
  options.media.image.max_soft_tokens = static_cast<std::int32_t>(arguments.image_tokens);
  options.media.image.any_budget = true;
  options.media.video.frames = static_cast<std::int32_t>(arguments.video_frames);
  options.media.video.image.max_soft_tokens = static_cast<std::int32_t>(arguments.video_tokens);
  options.media.audio.max_seconds = arguments.max_seconds;
  options.max_tokens = arguments.max_tokens;
  options.over_long = arguments.over_long;
  options.on_error = arguments.on_error;
  options.validation = arguments.validation;
  options.threads = static_cast<int>(arguments.workers);
  ProgressBar progress;
  const BuildReport report = build_dataset(options, *tokenizer, std::ref(progress));
  if (report.resumed) std::cout << "continued an interrupted build\n";
  print_counts("train", report.train);
  if (arguments.validation > 0) print_counts("validation", report.validation);
  for (const std::string& message : report.dropped_examples) std::cout << "dropped: " << message << '\n';
  return 0;
}

int run_data_inspect(const DataFolderArguments& arguments) {
  constexpr std::int64_t kUsualRow = 8192;
  for (const std::string& folder : arguments.folders) inspect_data_set(folder, kUsualRow, std::cout);
  return 0;
}

int run_data_verify(const DataFolderArguments& arguments) {
  std::int64_t problems = 0;
  for (const std::string& folder : arguments.folders) problems += verify_data_set(folder, std::cout);
  return problems == 0 ? 0 : static_cast<int>(ExitCode::bad_input);
}

int run_data_show(const DataShowArguments& arguments) {
  LoaderOptions options;
  options.sources = {{arguments.folder, 1.0}};
  options.sequence_length = arguments.sequence_length;
  options.seed = static_cast<std::uint64_t>(arguments.seed);
  options.skip_too_long = true;
  const std::unique_ptr<const Tokenizer> tokenizer = tokenizer_of(arguments.folder, arguments.tokenizer);
  show_row(
      options, arguments.row, [&](std::int32_t id) { return tokenizer->piece(id); }, std::cout);
  return 0;
}

}  // namespace lapidary
