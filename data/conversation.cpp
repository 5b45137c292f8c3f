#include "data/conversation.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "data/utf8.h"
#include "kernels/check.h"

namespace lapidary {
namespace {

/// Builds the document front to back. Text is collected until a token or a change of the mask ends it, so
/// that it is tokenized in the same pieces as the finished text would be.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, const Sample& sample, const MediaSource& media)
      : tokenizer_(tokenizer), sample_(sample), media_(media) {
    document_.source = sample.source;
  }

  void text(std::string_view text, bool trained) {
    if (trained != pending_trained_) flush();
    pending_trained_ = trained;
    pending_ += text;
  }

  void token(const std::string& name, bool trained) {
    flush();
    push(id(name), trained);
  }

  /// Contents as the processor expects them: media in place, texts trimmed where the chat template does so.
  void parts(const std::vector<Part>& parts, bool trained, bool trimmed, const TokenNames& names) {
    for (const Part& part : parts) {
      if (part.kind == Part::Kind::text) {
        text(trimmed ? trim(part.value) : std::string_view(part.value), trained);
        continue;
      }
      try {
        medium(part, names);
      } catch (const Error& e) {
        throw Error(fmt::format("{}: {}", sample_.source, e.what()), e.code());
      }
    }
  }

  /// What follows can stand without what is before it.
  void cut() {
    flush();
    document_.cuts.push_back(static_cast<std::int32_t>(document_.tokens.size()));
  }

  Document finish() {
    flush();
    const bool any =
        std::find(document_.trained.begin(), document_.trained.end(), 1) != document_.trained.end();
    require(any, "{}: no token of this sample is trained: it has no answer", sample_.source);
    return std::move(document_);
  }

 private:
  std::int32_t id(const std::string& name) const {
    const auto found = tokenizer_.special(name);
    require(found.has_value(), "{}: this sample needs the token \"{}\", which the tokenizer {} does not have",
            sample_.source, name, tokenizer_.name());
    return *found;
  }

  void push(std::int32_t token, bool trained) {
    document_.tokens.push_back(token);
    document_.trained.push_back(trained && document_.tokens.size() > 1 ? 1 : 0);
  }

  void flush() {
    if (pending_.empty()) return;
    tokenizer_.encode(pending_, document_.tokens);
    document_.trained.resize(document_.tokens.size(), pending_trained_ ? 1 : 0);
    pending_.clear();
  }

  void medium(const Part& part, const TokenNames& names) {
    if (part.kind == Part::Kind::image) return image(media_.image(part.value), names.image, names);
    if (part.kind == Part::Kind::audio) return sound(media_.sound(part.value), names);
    SampledVideo video = media_.video(part.value);
    for (std::size_t i = 0; i < video.frames.size(); ++i) {
      const std::int32_t seconds = video.seconds[i];
      text(fmt::format("{}{:02}:{:02} ", i == 0 ? "" : " ", seconds / 60, seconds % 60), false);
      image(std::move(video.frames[i]), names.video, names);
    }
  }

  void image(PatchedImage image, const std::string& placeholder, const TokenNames& names) {
    token(names.begin_image, false);
    DocumentImage& stored = document_.images.emplace_back();
    stored.first_token = placeholders(placeholder, image.columns * image.rows);
    stored.columns = image.columns;
    stored.rows = image.rows;
    stored.patches = std::move(image.patches);
    token(names.end_image, false);
  }

  void sound(FramedSound sound, const TokenNames& names) {
    token(names.begin_audio, false);
    DocumentSound& stored = document_.sounds.emplace_back();
    stored.first_token = placeholders(names.audio, sound.frames);
    stored.frames = sound.frames;
    stored.samples = std::move(sound.samples);
    token(names.end_audio, false);
  }

  /// Returns the index of the first.
  std::int32_t placeholders(const std::string& name, std::int32_t count) {
    const auto first = static_cast<std::int32_t>(document_.tokens.size());
    const std::size_t end = document_.tokens.size() + static_cast<std::size_t>(count);
    document_.tokens.resize(end, id(name));
    document_.trained.resize(end, 0);
    return first;
  }

  const Tokenizer& tokenizer_;
  const Sample& sample_;
  const MediaSource& media_;
  Document document_;
  std::string pending_;
  bool pending_trained_ = false;
};

/// Messages [begin, end) that are written as one turn.
struct Turn {
  std::size_t begin = 0, end = 0;
  Message::Role role = Message::Role::user;
  bool reasons = false;  ///< some message of it has a reasoning
};

std::vector<Turn> turns_of(const std::vector<Message>& messages) {
  std::vector<Turn> turns;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message::Role role = messages[i].role;
    const bool joins =
        role == Message::Role::model && !turns.empty() && turns.back().role == Message::Role::model;
    if (!joins) turns.push_back({i, i, role, false});
    turns.back().end = i + 1;
    turns.back().reasons |= !trim(messages[i].reasoning).empty();
  }
  return turns;
}

bool is_empty(const Message& message) {
  const auto blank = [](const Part& p) { return p.kind == Part::Kind::text && trim(p.value).empty(); };
  return trim(message.reasoning).empty() && std::all_of(message.parts.begin(), message.parts.end(), blank);
}

/// Writes one model turn's contents; its header and end are the caller's.
void write_model_turn(Writer& writer, const Sample& sample, const Turn& turn, bool trained,
                      bool empty_channel, const Markup& markup) {
  if (empty_channel && !turn.reasons && !markup.tokens.begin_channel.empty()) {
    writer.token(markup.tokens.begin_channel, false);
    writer.text(markup.thought + "\n", false);
    writer.token(markup.tokens.end_channel, false);
  }
  for (std::size_t i = turn.begin; i < turn.end; ++i) {
    const Message& message = sample.messages[i];
    require(!trained || !is_empty(message), "{}: message {} is an answer to be trained and is empty",
            sample.source, i + 1);
    const std::string_view reasoning = trim(message.reasoning);
    if (trained && !reasoning.empty()) {
      require(!markup.tokens.begin_channel.empty(),
              "{}: message {} has a reasoning, but the markup has no channel", sample.source, i + 1);
      writer.token(markup.tokens.begin_channel, true);
      writer.text(fmt::format("{}\n{}\n", markup.thought, reasoning), true);
      writer.token(markup.tokens.end_channel, true);
    }
    writer.parts(message.parts, trained, true, markup.tokens);
  }
}

void write_conversation(Writer& writer, const Sample& sample, const ConversationOptions& options) {
  const Markup& markup = options.markup;
  const std::vector<Turn> turns = turns_of(sample.messages);
  const auto is_model = [](const Turn& turn) { return turn.role == Message::Role::model; };
  const auto behind_last = std::find_if(turns.rbegin(), turns.rend(), is_model).base();
  const Turn* last_answer = behind_last == turns.begin() ? nullptr : &*(behind_last - 1);
  const bool all = options.train_on == TrainOn::all;

  writer.token(markup.tokens.bos, false);
  for (const Turn& turn : turns) {
    const bool trained =
        all || (is_model(turn) && (options.train_on == TrainOn::answers || &turn == last_answer));
    const std::string& role = is_model(turn)                       ? markup.model
                              : turn.role == Message::Role::system ? markup.system
                                                                   : markup.user;
    if (!is_model(turn)) writer.cut();
    writer.token(markup.tokens.begin_turn, all);
    writer.text(role + "\n", all);
    if (is_model(turn)) {
      const bool empty_channel = options.empty_channel == EmptyChannel::trained_turns ? trained
                                 : options.empty_channel == EmptyChannel::last_turn   ? &turn == last_answer
                                                                                      : false;
      write_model_turn(writer, sample, turn, trained, empty_channel, markup);
    } else {
      writer.parts(sample.messages[turn.begin].parts, all, true, markup.tokens);
    }
    writer.token(markup.tokens.end_turn, trained);
    writer.text("\n", all);
  }
}

/// What was tokenized elsewhere. Pictures and sounds cannot come so: their contents would be missing.
Document tokens_document(const Sample& sample, const Tokenizer& tokenizer, const TokenNames& names) {
  const std::int32_t vocabulary = tokenizer.vocabulary();
  const std::array<const std::string*, 3> media = {&names.image, &names.audio, &names.video};
  std::array<std::optional<std::int32_t>, 3> placeholders;
  std::ranges::transform(media, placeholders.begin(),
                         [&](const std::string* name) { return tokenizer.special(*name); });
  for (std::size_t i = 0; i < sample.tokens.size(); ++i) {
    const std::int32_t id = sample.tokens[i];
    require(id < vocabulary, "{}: token {} has id {}, the tokenizer {} has ids 0 to {}", sample.source, i, id,
            tokenizer.name(), vocabulary - 1);
    for (std::size_t m = 0; m < media.size(); ++m)
      require(placeholders[m] != id,
              "{}: token {} is {} (id {}): pictures and sounds cannot be given as ids, only in \"messages\", "
              "\"prompt\" or \"text\"",
              sample.source, i, *media[m], id);
  }
  const auto bos = tokenizer.special(names.bos);
  require(bos == sample.tokens.front(),
          "{}: token 0 has id {}, expected {} (id {}), with which the model's texts begin", sample.source,
          sample.tokens.front(), names.bos, bos.value_or(-1));
  Document document;
  document.source = sample.source;
  document.tokens = sample.tokens;
  document.trained = sample.trained;
  document.trained.front() = 0;
  require(std::ranges::find(document.trained, 1) != document.trained.end(),
          "{}: no token of this sample is trained: \"labels\" is -100 behind token 0", sample.source);
  return document;
}

}  // namespace

void set_markup(Markup& markup, const std::string& key, const std::string& value) {
  TokenNames& t = markup.tokens;
  const std::array<std::pair<const char*, std::string*>, 18> names = {{
      {"pad", &t.pad},
      {"eos", &t.eos},
      {"bos", &t.bos},
      {"begin_turn", &t.begin_turn},
      {"end_turn", &t.end_turn},
      {"begin_channel", &t.begin_channel},
      {"end_channel", &t.end_channel},
      {"begin_image", &t.begin_image},
      {"image", &t.image},
      {"end_image", &t.end_image},
      {"begin_audio", &t.begin_audio},
      {"audio", &t.audio},
      {"end_audio", &t.end_audio},
      {"video", &t.video},
      {"system", &markup.system},
      {"user", &markup.user},
      {"model", &markup.model},
      {"thought", &markup.thought},
  }};
  std::string known;
  for (const auto& [name, target] : names) {
    if (key == name) {
      *target = value;
      return;
    }
    known += known.empty() ? name : fmt::format(", {}", name);
  }
  fail("markup key \"{}\" is unknown; known are {}", key, known);
}

ConversationRenderer::ConversationRenderer(const Tokenizer& tokenizer, ConversationOptions options)
    : tokenizer_(tokenizer), options_(std::move(options)) {}

Document ConversationRenderer::render(const Sample& sample, const MediaSource& media) const {
  const TokenNames& names = options_.markup.tokens;
  if (sample.form == Sample::Form::tokens) return tokens_document(sample, tokenizer_, names);
  Writer writer(tokenizer_, sample, media);
  if (sample.form == Sample::Form::conversation) {
    write_conversation(writer, sample, options_);
    return writer.finish();
  }
  const bool text = sample.form == Sample::Form::text;
  const auto content = [](const Part& p) { return p.kind != Part::Kind::text || !p.value.empty(); };
  require(std::any_of(sample.answer.begin(), sample.answer.end(), content), "{}: the {} is empty",
          sample.source, text ? "text" : "completion");
  writer.token(names.bos, false);
  writer.parts(sample.prompt, options_.train_on == TrainOn::all, false, names);
  writer.parts(sample.answer, true, false, names);
  writer.token(names.eos, true);
  return writer.finish();
}

}  // namespace lapidary
