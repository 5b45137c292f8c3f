#include "trainer/nearest.h"

#include <algorithm>
#include <array>

namespace lapidary {
namespace {
constexpr std::size_t kLongest = 64;
}

int edit_distance(std::string_view a, std::string_view b) {
  if (a.size() >= kLongest || b.size() >= kLongest) return static_cast<int>(std::max(a.size(), b.size()));
  // Three rows of the table d[i][j]: distance between the first i letters of a and the first j of b.
  std::array<std::array<int, kLongest>, 3> d{};
  for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = static_cast<int>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    auto& row = d[i % 3];
    const auto& above = d[(i + 2) % 3];
    const auto& above2 = d[(i + 1) % 3];
    row[0] = static_cast<int>(i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const int change = a[i - 1] == b[j - 1] ? 0 : 1;
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], above2[j - 2] + 1);
    }
  }
  return d[a.size() % 3][b.size()];
}

int misspelling_bound(std::string_view word) {
  return word.size() <= 3 ? 0 : static_cast<int>(word.size() / 3) + 1;
}

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  int best_distance = misspelling_bound(word) + 1;
  for (const auto& candidate : known) {
    const int distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace lapidary
