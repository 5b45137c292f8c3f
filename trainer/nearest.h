// "Did you mean ...?": the known word nearest to what was typed.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

/// Letters inserted, deleted, replaced, or swapped with their neighbour to make a into b. 64 or more: not
/// computed, the longer length is returned.
int edit_distance(std::string_view a, std::string_view b);

/// How far a misspelling of this word may be from what was meant and still be recognised: of three letters,
/// one that is wrong makes another word (gpu, cpu).
int misspelling_bound(std::string_view word);

/// The nearest of `known` within misspelling_bound(word); empty if there is none. The first of equals.
std::string nearest(const std::string& word, const std::vector<std::string>& known);

}  // namespace lapidary
