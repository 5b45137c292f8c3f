// What the commands `lapidary data inspect|verify|show` print.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>

#include "data/loader_options.h"
#include "data/tokenizer.h"

namespace lapidary {

/// Counts, lengths of the documents, how full rows of `sequence_length` tokens get, and ingestion's notes.
/// Reads manifest and index only. Error where they are damaged, or a shard is missing or truncated.
void inspect_data_set(const std::filesystem::path& directory, std::int64_t sequence_length,
                      std::ostream& out);

/// Checks everything that is recorded about a data set: every file's size and hashes, the HDF5 structure
/// (opened only where the hash is right), every document's rules and counts. Prints a line per shard and one
/// per problem; returns the number of problems. Error where manifest or index cannot be used. Memory does not
/// depend on the data's size.
std::int64_t verify_data_set(const std::filesystem::path& directory, std::ostream& out);

/// The tokenizer that a data set was built with, as its notes name it, or the one at `given` (as
/// load_tokenizer takes it) where that is not empty. Error where it is another than the data's: by its
/// checksum, or, where the notes have none, by its vocabulary.
std::unique_ptr<const Tokenizer> tokenizer_of(const std::filesystem::path& directory,
                                              const std::string& given);

/// Prints row `row` (global number, as the loader counts them with these options): its documents with what is
/// trained between « and », images as [image 12x22 at 17..280] (columns x rows, tokens of the row), sounds as
/// [sound 25 frames at 300..324], control characters escaped. `decode` gives the text of one id.
void show_row(const LoaderOptions& options, std::int64_t row,
              const std::function<std::string(std::int32_t)>& decode, std::ostream& out);

}  // namespace lapidary
