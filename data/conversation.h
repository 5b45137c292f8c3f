// Writes a sample down as tokens in Gemma 4's markup, and with every token whether it is trained: the mask is
// made where the markup is written, never found again in finished text. Rules and examples:
// docs/ingestion.md.
#pragma once
#include <array>
#include <string>

#include "data/document.h"
#include "data/media.h"
#include "data/sample.h"
#include "data/tokenizer.h"

namespace lapidary {

/// Which part of a sample is trained. Media, their markers and an empty thought channel never are.
enum class TrainOn {
  all,          ///< every token but the first, headers and prompts included
  answers,      ///< what the model says: reasoning, answers and the closing <turn|> of every model turn
  last_answer,  ///< the same of the last model turn alone
};
constexpr std::array<const char*, 3> kTrainOnNames = {"all", "answers", "last_answer"};

/// Which model turns without reasoning begin with `<|channel>thought\n<channel|>`, as the released model's do
/// when it answers without thinking.
enum class EmptyChannel { trained_turns, last_turn, none };
constexpr std::array<const char*, 3> kEmptyChannelNames = {"trained_turns", "last_turn", "none"};

/// Names in the markup. A channel with an empty name does not exist: for vocabularies that have none.
struct Markup {
  TokenNames tokens;
  std::string system = "system", user = "user", model = "model", thought = "thought";
};

/// Sets one name by its key ("begin_turn", "model", ...). Error for an unknown key, which lists the known
/// ones.
void set_markup(Markup& markup, const std::string& key, const std::string& value);

struct ConversationOptions {
  TrainOn train_on = TrainOn::answers;
  EmptyChannel empty_channel = EmptyChannel::trained_turns;
  Markup markup;
};

/// Turns samples into documents; may be shared between threads. `tokenizer` must outlive it.
///
///   text          <bos> TEXT <eos>                      everything behind <bos> is trained
///   completion    <bos> PROMPT COMPLETION <eos>         trained: COMPLETION and <eos>
///   conversation  <bos>, then for every turn <|turn>ROLE\nCONTENT<turn|>\n with trimmed contents,
///   consecutive
///                 assistant messages forming one turn. Reasoning is written, and trained, in trained turns
///                 only: at inference the model does not see what it thought in earlier turns.
///   tokens        as they are, from <bos> on; trained is what the sample says, whatever TrainOn is
class ConversationRenderer {
 public:
  ConversationRenderer(const Tokenizer& tokenizer, ConversationOptions options);

  /// Error, opening with the sample's source, if a medium cannot be read, the vocabulary lacks a token that
  /// the sample needs, an answer is empty, or no token would be trained.
  Document render(const Sample& sample, const MediaSource& media) const;

 private:
  const Tokenizer& tokenizer_;
  ConversationOptions options_;
};

}  // namespace lapidary
