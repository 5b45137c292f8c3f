// encode_strings TOKENIZER < STRINGS: each line of the input is a JSON string, which may hold bytes that are
// not UTF-8; prints its ids, separated by spaces, on one line, and at the end to stderr how many MB a second
// were encoded and how many ill-formed sequences were replaced. tools/compare_tokenizer.py compares the ids.
#include <chrono>
#include <iostream>

#include "data/bpe_tokenizer.h"
#include "data/utf8.h"
#include "kernels/check.h"
#include "kernels/json.h"

int main(int argc, char** argv) {
  using namespace lapidary;
  try {
    require(argc == 2, "usage: encode_strings TOKENIZER < STRINGS");
    const auto tokenizer = load_tokenizer(argv[1]);
    std::vector<std::string> texts;
    std::int64_t repairs = 0;
    for (std::string line; std::getline(std::cin, line);) {
      repairs += static_cast<std::int64_t>(repair_utf8(line));
      texts.push_back(parse_json(line, fmt::format("line {}", texts.size() + 1)).get<std::string>());
    }

    std::vector<std::vector<std::int32_t>> ids(texts.size());
    std::size_t bytes = 0;
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < texts.size(); ++i) {
      tokenizer->encode(texts[i], ids[i]);
      bytes += texts[i].size();
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    for (const auto& line : ids) std::cout << fmt::format("{}\n", fmt::join(line, " "));
    std::cerr << fmt::format("{:.3f} {}\n", static_cast<double>(bytes) / seconds.count() / 1e6, repairs);
    return 0;
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
}
