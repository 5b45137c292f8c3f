// Training states with known values, cut in known and in random ways.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "tests/temporary_folder.h"
#include "trainer/checkpoint.h"

namespace lapidary {

struct TestTensor {
  std::string name, part;
  DType dtype;
  std::vector<std::int64_t> shape;
  std::int64_t elements() const {
    std::int64_t n = 1;
    for (const std::int64_t d : shape) n *= d;
    return n;
  }
};

/// The kinds of tensors that a training state has: matrices, vectors, three dimensions, one element; every
/// part.
inline std::vector<TestTensor> test_state() {
  std::vector<TestTensor> state;
  const std::vector<std::pair<std::string, std::vector<std::int64_t>>> parameters = {
      {"model.language_model.embed_tokens.weight", {37, 12}},
      {"model.language_model.layers.0.mlp.gate_proj.weight", {20, 9}},
      {"model.language_model.layers.0.input_layernorm.weight", {9}},
      {"model.language_model.layers.0.layer_scalar", {1}},
      {"model.vision_embedder.pos_embedding", {7, 2, 5}}};
  for (const auto& [name, shape] : parameters) {
    state.push_back({name, "weight", DType::bf16, shape});
    for (const char* part : {"master", "exp_avg", "exp_avg_sq"})
      state.push_back({name, part, DType::f32, shape});
    state.push_back({name, "remainder", DType::i16, shape});
  }
  return state;
}

/// Value of element i of tensor number t at a step: exact in every type that test_state() has.
inline int test_value(std::size_t t, std::int64_t i, std::int64_t step) {
  return static_cast<int>((i * 7 + static_cast<std::int64_t>(t) * 13 + step * 29) % 251);
}

inline void put_value(DType dtype, void* to, int value) {
  const auto number = static_cast<float>(value);
  const bf16 half(number);
  const auto integer = static_cast<std::int16_t>(value);
  switch (dtype) {
    case DType::f32:
      std::memcpy(to, &number, 4);
      break;
    case DType::bf16:
      std::memcpy(to, &half, 2);
      break;
    case DType::i16:
      std::memcpy(to, &integer, 2);
      break;
    default:
      fail("test_state() has no {}", name_of(dtype));
  }
}

/// Cuts [0, elements) into slices and deals them to `ranks` ranks, some of which may get nothing. The same on
/// every rank for the same generator state. Returns owner, begin, count.
struct Cut {
  int rank;
  std::int64_t begin, count;
};
inline std::vector<Cut> random_cuts(std::int64_t elements, int ranks, std::mt19937& random) {
  std::vector<Cut> cuts;
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  const std::int64_t longest = below(3) == 0 ? elements : 1 + below(elements);
  for (std::int64_t at = 0; at < elements;) {
    const std::int64_t count = std::min(elements - at, 1 + below(longest));
    cuts.push_back({static_cast<int>(below(ranks)), at, count});
    at += count;
  }
  std::shuffle(cuts.begin(), cuts.end(), random);
  return cuts;
}

/// One rank's share of a state, with memory of its own.
class Holding {
 public:
  Holding(const std::vector<TestTensor>& state, int rank, int ranks, unsigned seed) {
    std::mt19937 random(seed);
    for (const TestTensor& t : state) {
      CheckpointTensor tensor{t.name, t.part, t.dtype, t.shape, {}};
      for (const Cut& cut : random_cuts(t.elements(), ranks, random)) {
        if (cut.rank != rank) continue;
        memory_.push_back(std::make_unique<char[]>(static_cast<std::size_t>(cut.count) * size_of(t.dtype)));
        tensor.slices.push_back({cut.begin, cut.count, memory_.back().get()});
      }
      tensors_.push_back(std::move(tensor));
    }
  }
  std::vector<CheckpointTensor>& tensors() { return tensors_; }

  void fill(std::int64_t step) {
    for_each([&](std::size_t t, std::int64_t i, DType dtype, char* at) {
      put_value(dtype, at, test_value(t, i, step));
    });
  }
  void clear() {
    for_each([](std::size_t, std::int64_t, DType dtype, char* at) { std::memset(at, 0xee, size_of(dtype)); });
  }
  /// Elements that are not the step's.
  std::int64_t wrong(std::int64_t step) {
    std::int64_t count = 0;
    for_each([&](std::size_t t, std::int64_t i, DType dtype, char* at) {
      char expected[8];
      put_value(dtype, expected, test_value(t, i, step));
      count += std::memcmp(at, expected, size_of(dtype)) != 0 ? 1 : 0;
    });
    return count;
  }

 private:
  template <class F>
  void for_each(F&& f) {
    for (std::size_t t = 0; t < tensors_.size(); ++t)
      for (const CheckpointSlice& slice : tensors_[t].slices)
        for (std::int64_t i = 0; i < slice.count; ++i)
          f(t, slice.begin + i, tensors_[t].dtype,
            static_cast<char*>(slice.data) + i * static_cast<std::int64_t>(size_of(tensors_[t].dtype)));
  }
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<CheckpointTensor> tensors_;
};

}  // namespace lapidary
