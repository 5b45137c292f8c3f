// The public GSM8K files as input: one {"question": ..., "answer": ...} a line, the answer ending in a line
// "#### N".
#pragma once
#include <string>
#include <string_view>

#include "data/sample.h"

namespace lapidary {

/// The line as a conversation: the question is the user's, the answer the model's, as it stands but for the
/// calculator's notes ("48/2 = <<48/2=24>>24"), which nobody should learn to write. Other keys are left
/// alone. Error, opening with `source`, where a key is missing, a note does not end, or the last line is not
/// "#### " and a number: whatever scores the model looks for that line.
Sample parse_gsm8k(std::string_view line, const std::string& source);

}  // namespace lapidary
