// The invariants of a document (document.h), checked in one place: before it is stored, when it is read back
// and by `data verify`.
#pragma once
#include <string>

#include "data/document.h"

namespace lapidary {

/// Throws Error unless the document keeps every rule that shards, loader and model rely on. The message
/// starts with `where` and names the token, image or sound, what was found and what was expected:
/// - at least one token; every id in [0, layout.vocabulary); one `trained` entry (0 or 1) per token;
/// - `trained` is 0 at token 0 and at every placeholder;
/// - images and sounds are in order of first_token, inside the document, do not overlap, have at least one
/// soft token
///   and as many values as their grid or frame count asks for;
/// - an image's placeholders are all layout.image or all layout.video, a sound's all layout.audio; no such id
/// stands
///   outside an image or sound.
void check_document(const Document& document, const TokenLayout& layout, const std::string& where);

}  // namespace lapidary
