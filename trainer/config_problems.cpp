#include "trainer/config_problems.h"

#include <algorithm>
#include <tuple>

#include "kernels/check.h"

namespace lapidary {
namespace {

// Nobody reads more; and a file that is no configuration at all would give one complaint a line.
constexpr std::size_t kMostProblems = 50;
constexpr std::size_t kMostQuoted = 60;

}  // namespace

std::string ConfigPlace::text() const {
  return line > 0 ? fmt::format("{}:{}:{}", source, line, column) : source;
}

void ConfigProblems::add(const ConfigPlace& place, const std::string& key, const std::string& message) {
  problems_.push_back(
      {place, fmt::format("{}: {}{}{}", place.text(), key, key.empty() ? "" : ": ", message)});
  if (problems_.size() >= kMostProblems) raise();
}

void ConfigProblems::raise() const {
  if (problems_.empty()) return;
  if (problems_.size() == 1) throw Error(problems_.front().text);
  auto sorted = problems_;
  const auto rank = [&](const ConfigPlace& place) {
    const auto source = std::find(sources_.begin(), sources_.end(), place.source);
    return std::tuple(source - sources_.begin(), place.line, place.column);
  };
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](const Problem& a, const Problem& b) { return rank(a.place) < rank(b.place); });
  std::string message = fmt::format("{} errors in the configuration{}:", sorted.size(),
                                    sorted.size() >= kMostProblems ? ", the rest was not read" : "");
  for (const auto& problem : sorted) message += "\n  " + problem.text;
  throw Error(message);
}

void append_quoted(std::string& text, char c) {
  const auto byte = static_cast<unsigned char>(c);
  if (byte < 0x20 || byte == 0x7F) {
    text += fmt::format("\\x{:02x}", byte);
  } else {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
}

std::string quote_found(const std::string& text) {
  std::string quoted;
  std::size_t taken = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    // Never cut inside a UTF-8 sequence.
    if (taken >= kMostQuoted && (byte & 0xC0u) != 0x80u) return fmt::format("\"{}...\"", quoted);
    ++taken;
    append_quoted(quoted, c);
  }
  return fmt::format("\"{}\"", quoted);
}

}  // namespace lapidary
