// UTF-8 as ingestion needs it: files that are not quite UTF-8 are repaired and counted rather than refused or
// passed on, and message contents are trimmed of the same white space as Python's str.strip(), which chat
// templates use.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace lapidary {

/// Bytes of the UTF-8 character at the front of `text` (1 to 4), or 0 where none is well-formed there:
/// overlong forms, surrogates and values above U+10FFFF are not. `text` must not be empty.
std::size_t utf8_length(std::string_view text);

/// Replaces each maximal ill-formed piece by U+FFFD, as Python's errors="replace" does. Returns how many
/// there were; leaves well-formed text untouched.
std::size_t repair_utf8(std::string& text);

/// The text without leading and trailing white space (Unicode's, as Python sees it). Expects UTF-8.
std::string_view trim(std::string_view text);

}  // namespace lapidary
