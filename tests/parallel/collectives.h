// What the tests of several ranks share: a mesh over MPI's world, tensors in host memory, numbers that every
// rank can compute for every other.
#pragma once
#include <mpi.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/arena.h"
#include "kernels/device.h"
#include "parallel/mesh.h"

namespace lapidary {

struct World {
  int rank = 0, size = 1;
  World() {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
  }
  Mesh mesh(int shard, int vocabulary) const {
    return make_mpi_mesh(resolve_mesh(size, rank, shard, vocabulary, size), cpu_backend());
  }
};

/// A value in [-1, 1) that looks random, the same for everybody who asks with the same numbers.
inline double noise(std::uint64_t a, std::uint64_t b, std::uint64_t c = 0) {
  std::uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xc2b2ae3d27d4eb4fu + c * 0x165667b19e3779f9u + 1;
  for (int round = 0; round < 3; ++round) x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<double>(x >> 11) * 0x1p-52 - 1.0;
}

inline void set(const Tensor& t, std::int64_t i, double value) {
  switch (t.dtype()) {
    case DType::f32:
      t.as<float>()[i] = static_cast<float>(value);
      return;
    case DType::bf16:
      t.as<bf16>()[i] = bf16(static_cast<float>(value));
      return;
    case DType::f64:
      t.as<double>()[i] = value;
      return;
    case DType::i64:
      t.as<std::int64_t>()[i] = std::llround(value * 1000);
      return;
    case DType::i32:
      t.as<std::int32_t>()[i] = static_cast<std::int32_t>(std::lround(value * 1000));
      return;
    case DType::i16:
      t.as<std::int16_t>()[i] = static_cast<std::int16_t>(std::lround(value * 1000));
      return;
    case DType::u8:
      t.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(std::lround(value * 100 + 100));
      return;
  }
}

inline double get(const Tensor& t, std::int64_t i) {
  switch (t.dtype()) {
    case DType::f32:
      return static_cast<double>(t.as<float>()[i]);
    case DType::bf16:
      return static_cast<double>(static_cast<float>(t.as<bf16>()[i]));
    case DType::f64:
      return t.as<double>()[i];
    case DType::i64:
      return static_cast<double>(t.as<std::int64_t>()[i]);
    case DType::i32:
      return t.as<std::int32_t>()[i];
    case DType::i16:
      return t.as<std::int16_t>()[i];
    case DType::u8:
      return t.as<std::uint8_t>()[i];
  }
  return 0;
}

/// Owns the memory of one tensor.
class HostTensor {
 public:
  HostTensor(DType dtype, std::initializer_list<std::int64_t> shape)
      : size_(Tensor(nullptr, dtype, shape).bytes()),
        memory_(size_ + 1, std::byte{0xAB}),
        view_(memory_.data(), dtype, shape) {}
  const Tensor& view() const { return view_; }
  const std::byte* bytes() const { return memory_.data(); }
  bool same_bits(const Tensor& other) const {
    return other.bytes() == size_ && std::memcmp(other.data(), memory_.data(), size_) == 0;
  }

 private:
  std::size_t size_;
  std::vector<std::byte> memory_;  // alignment: a vector's, enough for every element type
  Tensor view_;
};

/// True on every rank if it is true on all.
inline bool everywhere(bool here) {
  int mine = here ? 1 : 0, all = 0;
  MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  return all != 0;
}

/// Whether these bytes are the same on all ranks of the world.
inline bool same_on_all_ranks(const void* data, std::size_t bytes) {
  std::vector<std::byte> first(bytes);
  if (bytes > 0) std::memcpy(first.data(), data, bytes);
  MPI_Bcast(first.data(), static_cast<int>(bytes), MPI_BYTE, 0, MPI_COMM_WORLD);
  return everywhere(bytes == 0 || std::memcmp(first.data(), data, bytes) == 0);
}

}  // namespace lapidary
