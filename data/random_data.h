// Data sets without meaning, of any size: what loaders are measured on (`lapidary bench data`).
#pragma once
#include <cstdint>
#include <filesystem>
#include <random>

#include "data/document.h"

namespace lapidary {

enum class RandomKind { text, images, sounds };

/// The released model's ids and feature widths.
TokenLayout released_layout();

/// Tokens of a conversation: log-normal around 500.
std::int32_t random_length(std::mt19937& random);

/// Writes shards of about `bytes` bytes to `directory`, which must not hold a data set: texts of
/// random_length() tokens; or pictures of 12 x 22 soft tokens, or sounds of 30 seconds, between 120 tokens of
/// text. Pixels and samples of a document are all equal: copying and hashing do not care what they are.
void write_random_data(const std::filesystem::path& directory, RandomKind kind, std::int64_t bytes);

}  // namespace lapidary
