// Cuts documents that are longer than a training row.
#pragma once
#include <cstdint>
#include <vector>

#include "data/document.h"

namespace lapidary {

/// The document in pieces of at most `max_tokens` tokens, each beginning with the document's first token
/// (<bos>), in order. An image, a sound or a frame of a video stays whole, between its markers: where one
/// would be cut, the piece ends before it. Conversations are cut where a turn begins that is not the model's,
/// unless question and answer alone are too long. Pieces in which nothing is trained are left out. Empty
/// where a medium alone is too long. A document that fits is returned as it is. Expects max_tokens >= 2.
std::vector<Document> split_document(Document document, std::int64_t max_tokens);

}  // namespace lapidary
