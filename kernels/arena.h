// Planned memory: a block that is allocated once and handed out and taken back like a stack.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/device.h"
#include "kernels/tensor.h"

namespace lapidary {

/// Where an arena's block lies: on the device, or in host memory that the device's kernels reach (pinned; on
/// the CPU there is no difference).
enum class Place : std::uint8_t { device, host };

/// Allocates forward, gives back to a mark; every allocation is 256-byte aligned. On a plan backend there is
/// no block and no limit: the peak is the size that the real run needs, because the same calls are made.
class Arena {
 public:
  static constexpr std::size_t kAlignment = 256;

  /// `purpose` names the arena in memory tables and messages ("activations").
  Arena(Backend& backend, std::string purpose, std::size_t capacity, Place place = Place::device);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Contents are undefined. Throws Error naming the arena, what was asked for, what is in use and the
  /// capacity.
  Tensor allocate(DType dtype, std::initializer_list<std::int64_t> shape);
  Tensor allocate_bytes(std::size_t bytes);  ///< u8 [bytes]

  std::size_t mark() const { return used_; }
  void release_to(std::size_t mark);  ///< everything allocated since mark() is given back

  const std::string& purpose() const { return purpose_; }
  std::size_t used() const { return used_; }
  std::size_t peak() const { return peak_; }  ///< most bytes ever in use
  std::size_t capacity() const { return capacity_; }

 private:
  Backend* backend_;
  std::string purpose_;
  std::size_t capacity_;
  Place place_;
  std::byte* base_;
  std::size_t used_ = 0, peak_ = 0;
};

/// Gives back on scope exit what was allocated since construction.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release_to(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  std::size_t mark_;
};

}  // namespace lapidary
