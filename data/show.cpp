#include "data/show.h"

#include <algorithm>
#include <ostream>

#include "data/bpe_tokenizer.h"
#include "data/row_source.h"
#include "data/utf8.h"
#include "kernels/check.h"

namespace lapidary {

namespace {

/// Makes text harmless for a terminal: control characters are escaped, and a line break is shown and made.
std::string printable(std::string text) {
  repair_utf8(text);
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto after = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
    if (byte == '\n') {
      result += "\\n\n  ";
    } else if (byte == '\t') {
      result += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\x{:02x}", byte);
    } else if (byte == 0xc2 && after >= 0x80 && after < 0xa0) {  // U+0080 to U+009F
      result += fmt::format("\\u{:04x}", after);
      ++i;
    } else {
      result += text[i];
    }
  }
  return result;
}

/// One document of a row as text with marks.
class DocumentPrinter {
 public:
  DocumentPrinter(const Document& document, std::int64_t start,
                  const std::function<std::string(std::int32_t)>& decode)
      : document_(document), start_(start), decode_(decode) {}

  std::string print() {
    while (at_ < document_.tokens.size()) {
      if (!print_item()) print_token();
    }
    end_run();
    return text_;
  }

 private:
  /// An image or sound that starts here, as one mark.
  bool print_item() {
    const auto starts_here = [&](const auto& item) {
      return static_cast<std::size_t>(item.first_token) == at_;
    };
    const auto image = std::find_if(document_.images.begin(), document_.images.end(), starts_here);
    if (image != document_.images.end()) {
      print_mark(fmt::format("image {}x{}", image->columns, image->rows),
                 std::int64_t{image->columns} * image->rows);
      return true;
    }
    const auto sound = std::find_if(document_.sounds.begin(), document_.sounds.end(), starts_here);
    if (sound == document_.sounds.end()) return false;
    print_mark(fmt::format("sound {} frames", sound->frames), sound->frames);
    return true;
  }

  void print_mark(const std::string& what, std::int64_t tokens) {
    end_run();
    const std::int64_t first = start_ + static_cast<std::int64_t>(at_);
    text_ += fmt::format("[{} at {}..{}]", what, first, first + tokens - 1);
    at_ += static_cast<std::size_t>(tokens);
  }

  void print_token() {
    const bool trained = document_.trained[at_] != 0;
    if (trained != run_trained_) end_run();
    run_trained_ = trained;
    run_ += decode_(document_.tokens[at_++]);
  }

  void end_run() {
    if (!run_.empty()) text_ += run_trained_ ? "«" + printable(run_) + "»" : printable(run_);
    run_.clear();
  }

  const Document& document_;
  std::int64_t start_;  // of the document in its row
  const std::function<std::string(std::int32_t)>& decode_;
  std::size_t at_ = 0;
  std::string text_, run_;  // run: decoded tokens that are all trained or all not
  bool run_trained_ = false;
};

/// settings[key] of the notes that ingestion leaves; empty where there is none.
std::string setting_of(const nlohmann::json& notes, const char* key) {
  const auto settings = notes.find("settings");
  if (settings == notes.end() || !settings->is_object()) return "";
  const auto found = settings->find(key);
  return found != settings->end() && found->is_string() ? found->get<std::string>() : "";
}

}  // namespace

std::unique_ptr<const Tokenizer> tokenizer_of(const std::filesystem::path& directory,
                                              const std::string& given) {
  const DataSet set(directory);
  const nlohmann::json& notes = set.manifest().notes;
  const std::string named = setting_of(notes, "tokenizer"),
                    checksum = setting_of(notes, "tokenizer_fingerprint");
  require(!given.empty() || !named.empty(),
          "{}: does not say with which tokenizer it was built: --tokenizer does", directory.string());
  std::unique_ptr<const Tokenizer> tokenizer;
  try {
    tokenizer = load_tokenizer(given.empty() ? named : given);
  } catch (const Error& e) {
    if (!given.empty()) throw;
    fail("{}: {}, the tokenizer it was built with; --tokenizer names it where it is now", directory.string(),
         e.what());
  }
  require(checksum.empty() || tokenizer->fingerprint() == checksum,
          "{}: was built with the tokenizer {} ({}), {} is another ({})", directory.string(), named, checksum,
          tokenizer->name(), tokenizer->fingerprint());
  require(tokenizer->vocabulary() == set.manifest().layout.vocabulary,
          "{}: has vocabulary {}, the tokenizer {} has {}", directory.string(),
          set.manifest().layout.vocabulary, tokenizer->name(), tokenizer->vocabulary());
  return tokenizer;
}

void show_row(const LoaderOptions& options, std::int64_t row,
              const std::function<std::string(std::int32_t)>& decode, std::ostream& out) {
  require(row >= 0, "row {}: rows are counted from 0", row);
  RowSource source(options);
  source.plan().seek(row, 0, 0);
  Row planned;
  require(source.plan().next(planned), "row {}: the data ends after {} rows", row, source.plan().row());
  const std::vector<Document> documents = source.read({&planned, 1}, true).front();

  std::int64_t trained = 0, images = 0, sounds = 0;
  for (const Document& document : documents) {
    trained += std::count(document.trained.begin(), document.trained.end(), 1);
    for (const DocumentImage& image : document.images) images += std::int64_t{image.columns} * image.rows;
    for (const DocumentSound& sound : document.sounds) sounds += sound.frames;
  }
  out << fmt::format(
      "row {} (epoch {}): {} tokens in {} documents, {} trained, {} of images, {} of sounds, {} padding\n",
      row, source.plan().epoch(), planned.tokens, documents.size(), trained, images, sounds,
      options.sequence_length - planned.tokens);
  std::int64_t start = 0;
  for (std::size_t d = 0; d < documents.size(); ++d) {
    const Piece& piece = planned.pieces[d];
    const std::int32_t length = source.plan().document_tokens(piece.document);
    const std::string part = piece.tokens() == length
                                 ? ""
                                 : fmt::format(", tokens {} to {} of {}", piece.begin, piece.end - 1, length);
    out << fmt::format("\ndocument {} ({}){} at {}..{}\n  {}\n", piece.document,
                       printable(documents[d].source), part, start, start + piece.tokens() - 1,
                       DocumentPrinter(documents[d], start, decode).print());
    start += piece.tokens();
  }
}

}  // namespace lapidary
