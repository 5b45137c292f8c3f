// XXH3-128 of bytes that come in pieces: what manifests store for every file (about 15 GB/s on one core). It
// finds damage, not forgery.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace lapidary {

class Checksum {
 public:
  Checksum();
  ~Checksum();
  void add(const void* bytes, std::size_t count);
  std::string hex() const;  ///< of everything added so far: 32 lower-case digits, as xxhsum -H2 prints them

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string checksum_of(std::string_view bytes);

/// Of a whole file, read in pieces of 4 MiB.
std::string checksum_of_file(const std::string& path);

}  // namespace lapidary
