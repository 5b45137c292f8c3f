#include "kernels/checksum.h"

#include <algorithm>
#include <new>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {

struct Checksum::State {
  XXH3_state_t xxh;
};

Checksum::Checksum() : state_(new State) {
  XXH3_128bits_reset(&state_->xxh);
}
Checksum::~Checksum() = default;

void Checksum::add(const void* bytes, std::size_t count) {
  XXH3_128bits_update(&state_->xxh, bytes, count);
}

std::string Checksum::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string checksum_of(std::string_view bytes) {
  Checksum checksum;
  checksum.add(bytes.data(), bytes.size());
  return checksum.hex();
}

std::string checksum_of_file(const std::string& path) {
  constexpr std::int64_t kPiece = 4 << 20;
  const File file = File::open_to_read(path);
  const std::int64_t size = file.size();
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min(size, kPiece)));
  Checksum checksum;
  for (std::int64_t at = 0; at < size; at += kPiece) {
    const auto count = static_cast<std::size_t>(std::min(kPiece, size - at));
    file.read_at(piece.data(), count, at);
    checksum.add(piece.data(), count);
  }
  return checksum.hex();
}

}  // namespace lapidary
