#include "data/build.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>

#include "data/build_split.h"
#include "data/build_threads.h"
#include "data/gsm8k.h"
#include "data/split_document.h"
#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// Everything that a sample says, each field with its length in front.
std::string content_of(const Sample& sample) {
  std::string content;
  const auto add = [&content](std::string_view field) {
    content += fmt::format("{}:{}", field.size(), field);
  };
  const auto add_parts = [&](const std::vector<Part>& parts) {
    for (const Part& part : parts) {
      add(std::to_string(static_cast<int>(part.kind)));
      add(part.value);
    }
    add("");
  };
  add_parts(sample.prompt);
  add_parts(sample.answer);
  for (const Message& message : sample.messages) {
    add(std::to_string(static_cast<int>(message.role)));
    add(message.reasoning);
    add_parts(message.parts);
  }
  if (sample.form == Sample::Form::tokens) {
    add(fmt::format("{}", fmt::join(sample.tokens, " ")));
    add(fmt::format("{}", fmt::join(sample.trained, "")));
  }
  return content;
}

/// True for `share` of all samples: equal contents fall on the same side.
bool is_validation(const Sample& sample, double share) {
  if (share <= 0) return false;
  const std::uint64_t hash = std::stoull(checksum_of(content_of(sample)).substr(0, 16), nullptr, 16);
  return static_cast<double>(hash) < share * 18446744073709551616.0;  // 2^64
}

TokenLayout layout_of(const Tokenizer& tokenizer, const BuildOptions& options) {
  TokenLayout layout = tokenizer.layout(options.conversation.markup.tokens);
  layout.patch_width = 3 * options.media.image.patch * options.media.image.patch;
  layout.frame_width = kSamplesPerFrame;
  return layout;
}

/// What the result depends on, besides the inputs' bytes: kept beside the data, and compared before a build
/// continues.
Json settings_of(const BuildOptions& options, const Tokenizer& tokenizer) {
  const ConversationOptions& conversation = options.conversation;
  const Markup& markup = conversation.markup;
  const TokenNames& names = markup.tokens;
  return {
      {"tokenizer", tokenizer.name()},
      {"tokenizer_fingerprint", tokenizer.fingerprint()},
      {"form", options.form == InputForm::gsm8k ? "gsm8k" : "samples"},
      {"train_on", kTrainOnNames.at(static_cast<std::size_t>(conversation.train_on))},
      {"empty_channel", kEmptyChannelNames.at(static_cast<std::size_t>(conversation.empty_channel))},
      {"markup",
       {names.pad, names.eos, names.bos, names.begin_turn, names.end_turn, names.begin_channel,
        names.end_channel, names.begin_image, names.image, names.end_image, names.begin_audio, names.audio,
        names.end_audio, names.video, markup.system, markup.user, markup.model, markup.thought}},
      {"image_tokens", options.media.image.max_soft_tokens},
      {"patch", options.media.image.patch},
      {"max_pixels", options.media.image_limits.max_pixels},
      {"max_seconds", options.media.audio.max_seconds},
      {"video_frames", options.media.video.frames},
      {"video_tokens", options.media.video.image.max_soft_tokens},
      {"max_tokens", options.max_tokens},
      {"over_long", options.over_long == OverLong::split ? "split" : "drop"},
      {"on_error", options.on_error == OnError::skip ? "skip" : "error"},
      {"validation", options.validation},
      {"shard_bytes", options.shard_bytes}};
}

class Builder {
 public:
  Builder(const BuildOptions& options, const Tokenizer& tokenizer,
          const std::function<void(const BuildProgress&)>& progress)
      : options_(options),
        progress_(progress),
        renderer_(tokenizer, options.conversation),
        output_(fs::absolute(options.output).lexically_normal()),
        reader_(options.inputs) {
    if (!output_.has_filename()) output_ = output_.parent_path();  // given with a slash at its end
    work_ = output_.string() + ".building";
    check_options();
    media_.reserve(options.inputs.size());
    for (const std::string& input : options.inputs) {
      media_.emplace_back(fs::path(input).parent_path(), options.media);
      std::error_code error;
      const auto bytes = fs::file_size(input, error);
      bytes_total_ += error ? 0 : static_cast<std::int64_t>(bytes);
    }
    start(tokenizer);
    const TokenLayout layout = layout_of(tokenizer, options);
    train_.emplace(work_ / "train", layout, options.shard_bytes);
    if (options.validation > 0) validation_.emplace(work_ / "validation", layout, options.shard_bytes);
    first_train_ = train_->first_sample();
    first_validation_ = validation_ ? validation_->first_sample() : first_train_;
    report_.resumed = first_train_ > 0 || first_validation_ > 0;
  }

  BuildReport run(const Tokenizer& tokenizer) {
    std::vector<std::jthread> workers;
    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    const int count = options_.threads > 0 ? options_.threads : cores;
    workers.reserve(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) workers.emplace_back([this] { work(); });
    for (std::jthread& worker : workers) worker.join();
    if (turnstile_.failure()) std::rethrow_exception(turnstile_.failure());
    finish(tokenizer);
    return std::move(report_);
  }

 private:
  void check_options() const {
    require(!options_.inputs.empty(), "no input is given: name one JSONL file or more");
    require(options_.validation >= 0 && options_.validation < 1,
            "the validation share is {}, expected at least 0 and less than 1", options_.validation);
    require(options_.max_tokens == 0 || options_.max_tokens >= 16,
            "max_tokens is {}, expected 0 (no limit) or at least 16", options_.max_tokens);
    require(options_.threads >= 0 && options_.threads <= 1024,
            "threads is {}, expected 0 (all cores) to 1024", options_.threads);
    check_image_options(options_.media.image);
    require(!fs::exists(output_) || fs::is_empty(output_),
            "{}: exists already; remove it or choose another output", output_.string());
  }

  /// Opens the working directory, or continues in it if it is of the same build.
  void start(const Tokenizer& tokenizer) {
    Json inputs = Json::array();
    for (const std::string& input : options_.inputs) {
      LineReader probe(input);  // fails here rather than after hours
      inputs.push_back({{"path", input},
                        {"bytes", fs::file_size(input)},
                        {"modified", fs::last_write_time(input).time_since_epoch().count()}});
    }
    const Json description = {{"settings", settings_of(options_, tokenizer)}, {"inputs", inputs}};
    const std::string path = (work_ / "build.json").string();
    if (!fs::exists(path)) {
      fs::remove_all(work_);
      create_directories(work_.string());
      write_new_text_file(path + ".tmp", description.dump(1) + "\n");
      publish(path + ".tmp", path);
      return;
    }
    const Json before = read_json_file(path, 1 << 24);
    for (const char* key : {"settings", "inputs"})
      require(
          before.contains(key) && before[key] == description[key],
          "{}: holds an interrupted build with other {}; repeat it with the same, or remove the directory",
          work_.string(), key);
  }

  struct Result {
    std::int64_t sample = 0;
    bool validation = false;
    SampleOutcome outcome;
    std::exception_ptr failure;  ///< ends the build when its turn comes
  };

  /// Its data set has it from the build that is continued.
  bool is_done(const Result& result) const {
    return result.sample < (result.validation ? first_validation_ : first_train_);
  }

  void work() {
    const std::int64_t first = std::min(first_train_, first_validation_);
    Chunk chunk;
    while (reader_.next(chunk)) {
      std::vector<Result> results;
      for (const InputLine& line : chunk.lines)
        if (line.number >= first) results.push_back(render(line));
      if (!turnstile_.pass(chunk.number, [&] { hand_in(chunk, results); })) return;
    }
  }

  /// Everything about a line that needs no order. Does not throw.
  Result render(const InputLine& line) {
    Result result;
    result.sample = line.number;
    result.outcome.utf8_repairs = line.utf8_repairs;
    result.outcome.kind = SampleOutcome::Kind::bad_line;
    try {
      const auto parse = options_.form == InputForm::gsm8k ? parse_gsm8k : parse_sample;
      const Sample sample = parse(line.text, line.place);
      result.validation = is_validation(sample, options_.validation);
      if (is_done(result)) return result;
      result.outcome.kind = SampleOutcome::Kind::bad_sample;
      limit(renderer_.render(sample, media_[line.input]), result.outcome);
    } catch (const Error& e) {
      // What failed for reasons of the machine says nothing about the sample.
      const bool of_sample = e.code() == ExitCode::bad_input;
      if (options_.on_error == OnError::error || !of_sample) result.failure = std::current_exception();
      result.outcome.message = e.what();
    } catch (...) {
      result.failure = std::current_exception();
    }
    return result;
  }

  void limit(Document document, SampleOutcome& outcome) const {
    outcome.kind = SampleOutcome::Kind::documents;
    const auto tokens = static_cast<std::int64_t>(document.tokens.size());
    if (options_.max_tokens == 0 || tokens <= options_.max_tokens) {
      outcome.documents.push_back(std::move(document));
      return;
    }
    const std::string source = document.source;
    if (options_.over_long == OverLong::split)
      outcome.documents = split_document(std::move(document), options_.max_tokens);
    if (!outcome.documents.empty()) return;
    outcome.kind = SampleOutcome::Kind::over_long;
    outcome.message =
        fmt::format("{}: has {} tokens, more than the {} allowed", source, tokens, options_.max_tokens);
  }

  /// In the order of the chunks, one thread at a time.
  void hand_in(const Chunk& chunk, const std::vector<Result>& results) {
    for (const Result& result : results) {
      if (is_done(result)) continue;
      if (result.failure) std::rethrow_exception(result.failure);
      (result.validation ? validation_ : train_)->add(result.sample, result.outcome);
    }
    if (chunk.read_error) std::rethrow_exception(chunk.read_error);
    if (!progress_) return;
    BuildProgress now{.bytes_read = chunk.bytes_read, .bytes_total = bytes_total_};
    for (const auto* split : {&train_, &validation_}) {
      if (!*split) continue;
      const BuildCounts& counts = (*split)->counts();
      now.samples += counts.samples;
      now.documents += counts.documents;
      now.tokens += counts.tokens;
      now.dropped += counts.dropped();
    }
    progress_(now);
  }

  void finish(const Tokenizer& tokenizer) {
    const Json notes = {{"inputs", options_.inputs}, {"settings", settings_of(options_, tokenizer)}};
    report_.train = train_->counts();
    report_.dropped_examples = train_->examples();
    if (validation_) {
      report_.validation = validation_->counts();
      report_.dropped_examples.insert(report_.dropped_examples.end(), validation_->examples().begin(),
                                      validation_->examples().end());
    }
    check_result();
    if (validation_) validation_->finish(notes);
    train_->finish(notes);
    validation_.reset();
    train_.reset();
    sync_directory(work_.string());
    if (fs::exists(output_)) fs::remove(output_);  // empty: checked at the start
    publish(work_.string(), output_.string());
  }

  void check_result() {
    const bool train = report_.train.documents > 0;
    if (train && (!validation_ || report_.validation.documents > 0)) return;
    std::error_code ignored;
    fs::remove_all(work_, ignored);
    require(train, "{}: no document is left for training; {} of {} samples were dropped{}",
            options_.inputs.front(), report_.train.dropped(), report_.train.samples,
            report_.dropped_examples.empty() ? "" : ", the first: " + report_.dropped_examples.front());
    fail("the validation share of {} holds none of the {} samples: raise it", options_.validation,
         report_.train.samples);
  }

  const BuildOptions& options_;
  const std::function<void(const BuildProgress&)>& progress_;
  ConversationRenderer renderer_;
  fs::path output_, work_;
  ChunkReader reader_;
  Turnstile turnstile_;
  std::vector<MediaFiles> media_;  ///< [inputs]
  std::int64_t bytes_total_ = 0;
  std::optional<BuildSplit> train_, validation_;
  std::int64_t first_train_ = 0, first_validation_ = 0;  ///< where each continues
  BuildReport report_;
};

}  // namespace

BuildReport build_dataset(const BuildOptions& options, const Tokenizer& tokenizer,
                          const std::function<void(const BuildProgress&)>& progress) {
  return Builder(options, tokenizer, progress).run(tokenizer);
}

}  // namespace lapidary
