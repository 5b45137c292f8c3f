// What one optimizer layout stored, read by another: the float32 values survive as far as the layout can hold
// them, and the same layout is the same bytes.
#include "trainer/checkpoint_convert.h"

#include <cmath>
#include <map>

#include "kernels/adamw_update.h"
#include "kernels/moment_codes.h"
#include "tests/trainer/checkpoint_fixture.h"

namespace lapidary {
namespace {

using Part = std::pair<const char*, DType>;

const std::vector<Part> kFloat32 = {
    {"weight", DType::bf16}, {"master", DType::f32}, {"exp_avg", DType::f32}, {"exp_avg_sq", DType::f32}};
const std::vector<Part> kSplit = {{"weight", DType::bf16},
                                  {"remainder", DType::i16},
                                  {"exp_avg", DType::bf16},
                                  {"exp_avg_sq", DType::bf16}};
const std::vector<Part> kBf16 = {
    {"weight", DType::bf16}, {"exp_avg", DType::bf16}, {"exp_avg_sq", DType::bf16}};
const std::vector<Part> kFloat8 = {
    {"weight", DType::bf16}, {"exp_avg", DType::u8}, {"exp_avg_sq", DType::u8}};
const std::vector<Part> kWide = {{"weight", DType::f32}, {"exp_avg", DType::f32}, {"exp_avg_sq", DType::f32}};

/// The bytes of one tensor in every part of a layout.
struct State {
  explicit State(const std::vector<Part>& layout, std::size_t count) : layout_(layout), count_(count) {
    for (const auto& [part, type] : layout) bytes_[part].resize(count * size_of(type));
  }
  template <class T>
  T* as(const char* part) {
    return reinterpret_cast<T*>(bytes_.at(part).data());
  }
  bool has(const char* part) const { return bytes_.contains(part); }
  const std::vector<char>& bytes(const char* part) const { return bytes_.at(part); }
  /// Cut in two, so that pieces do not begin at 0 only.
  std::vector<CheckpointTensor> tensors(const std::vector<std::string>& parts = {}) {
    std::vector<CheckpointTensor> out;
    const auto n = static_cast<std::int64_t>(count_), half = n / 3;
    for (const auto& [part, type] : layout_) {
      if (!parts.empty() && std::find(parts.begin(), parts.end(), part) == parts.end()) continue;
      char* data = bytes_.at(part).data();
      out.push_back(
          {"w",
           part,
           type,
           {n},
           {{half, n - half, data + half * static_cast<std::int64_t>(size_of(type))}, {0, half, data}}});
    }
    return out;
  }

 private:
  std::vector<Part> layout_;
  std::size_t count_;
  std::map<std::string, std::vector<char>> bytes_;
};

/// Float32 values of every kind: ties between bf16 neighbours, signs, subnormals, infinities, large, small.
std::vector<float> values(std::size_t count) {
  std::mt19937 random(3);
  std::vector<float> out = {0.0f,    -0.0f,  1.0f,     1.00390625f, -1.01171875f,
                            3.4e38f, 1e-40f, INFINITY, -INFINITY};
  while (out.size() < count) {
    float v = 0;
    const std::uint32_t bits = random();
    std::memcpy(&v, &bits, 4);
    if (!std::isnan(v)) out.push_back(v);
  }
  return out;
}

constexpr std::uint32_t kNearest = 0x8000;

/// What a layout's moment makes of a value.
float kept(const std::vector<Part>& layout, std::string_view moment, float v) {
  const DType type =
      std::ranges::find_if(layout, [&](const Part& part) { return moment == part.first; })->second;
  if (type == DType::f32) return v;
  if (type == DType::bf16) return static_cast<float>(bf16(v));
  return moment == "exp_avg" ? decode_first_moment(encode_first_moment(v, kNearest))
                             : decode_second_moment(encode_second_moment(v, kNearest));
}

class CheckpointConvert : public testing::Test {
 protected:
  /// A checkpoint as the optimizer would leave it, in this layout.
  Checkpoint save(const std::vector<Part>& layout, std::int64_t step) {
    State state(layout, value_.size());
    for (std::size_t i = 0; i < value_.size(); ++i) {
      const float v = value_[i];
      if (state.has("master")) state.as<float>("master")[i] = v;
      if (state.has("remainder")) state.as<std::int16_t>("remainder")[i] = split_float(v).rest;
      if (layout == kWide)
        state.as<float>("weight")[i] = v;
      else if (layout == kSplit)
        state.as<std::uint16_t>("weight")[i] = split_float(v).upper;
      else
        state.as<bf16>("weight")[i] = bf16(v);
      for (const char* moment : {"exp_avg", "exp_avg_sq"}) {
        const std::size_t size = state.bytes(moment).size() / value_.size();
        if (size == 4)
          state.as<float>(moment)[i] = v;
        else if (size == 2)
          state.as<bf16>(moment)[i] = bf16(v);
        else
          state.as<std::uint8_t>(moment)[i] = std::string_view(moment) == "exp_avg"
                                                  ? encode_first_moment(v, kNearest)
                                                  : encode_second_moment(v, kNearest);
      }
    }
    return open_checkpoint(write_checkpoint(folder_.path(), step, state.tensors(), "{}", alone_), alone_);
  }
  State load(const Checkpoint& checkpoint, const std::vector<Part>& layout,
             const std::vector<std::string>& parts = {}) {
    State state(layout, value_.size());
    read_checkpoint(checkpoint, state.tensors(parts), alone_, {.convert = true, .store = {}});
    return state;
  }

  const TemporaryFolder folder_;
  HostGroup alone_;
  std::vector<float> value_ = values(5000);
};

TEST_F(CheckpointConvert, EveryLayoutFromEveryOther) {
  const std::vector<std::vector<Part>> layouts = {kFloat32, kSplit, kBf16, kFloat8, kWide};
  std::int64_t step = 0;
  for (const auto& from : layouts) {
    const Checkpoint checkpoint = save(from, ++step);
    for (const auto& to : layouts) {
      SCOPED_TRACE(fmt::format("{} parts to {} parts, {}", from.size(), to.size(), step));
      State state = load(checkpoint, to);
      const bool exact = from != kBf16 && from != kFloat8;
      for (std::size_t i = 0; i < value_.size(); ++i) {
        const float v = exact ? value_[i] : static_cast<float>(bf16(value_[i]));
        const bf16 near(v);
        if (state.has("master")) {
          ASSERT_EQ(float_bits(state.as<float>("master")[i]), float_bits(v)) << i;
        }
        if (to == kWide) {
          ASSERT_EQ(float_bits(state.as<float>("weight")[i]), float_bits(v)) << i;
        }
        if (to == kSplit) {
          const SplitFloat split{state.as<std::uint16_t>("weight")[i],
                                 state.as<std::int16_t>("remainder")[i]};
          ASSERT_EQ(float_bits(join_float(split)), float_bits(v)) << i;
        }
        if (to == kFloat32) {
          ASSERT_EQ(state.as<bf16>("weight")[i].bits, near.bits) << i;
        }
        // A bf16 run takes the bf16 weight that was stored, whichever way it was rounded.
        if (to == kBf16 || to == kFloat8) {
          const std::uint16_t bits = state.as<bf16>("weight")[i].bits;
          ASSERT_TRUE(bits == near.bits || (from == kSplit && bits == split_float(v).upper)) << i;
        }
        for (const char* part : {"exp_avg", "exp_avg_sq"}) {
          const float moment = kept(to, part, kept(from, part, value_[i]));
          if (to == kFloat32 || to == kWide) {
            ASSERT_EQ(float_bits(state.as<float>(part)[i]), float_bits(moment)) << i;
          } else if (to != kFloat8) {
            ASSERT_EQ(state.as<bf16>(part)[i].bits, bf16(moment).bits) << i;
          } else {
            const std::uint8_t code = state.as<std::uint8_t>(part)[i];
            ASSERT_EQ(float_bits(std::string_view(part) == "exp_avg" ? decode_first_moment(code)
                                                                     : decode_second_moment(code)),
                      float_bits(moment))
                << i;
          }
        }
      }
    }
  }
}

TEST_F(CheckpointConvert, WeightsAloneFollowFromAnyLayout) {
  std::int64_t step = 0;
  for (const auto& from : {kFloat32, kSplit, kWide}) {
    const Checkpoint checkpoint = save(from, ++step);
    State master = load(checkpoint, kFloat32, {"weight", "master"});
    State wide = load(checkpoint, kWide, {"weight"});
    for (std::size_t i = 0; i < value_.size(); ++i) {
      ASSERT_EQ(float_bits(master.as<float>("master")[i]), float_bits(value_[i])) << i;
      ASSERT_EQ(float_bits(wide.as<float>("weight")[i]), float_bits(value_[i])) << i;
    }
  }
}

TEST_F(CheckpointConvert, WhatCannotBeMadeIsNamed) {
  const Checkpoint checkpoint = save(kFloat32, 1);
  const auto read = [&](const Checkpoint& from, const std::vector<Part>& layout, bool convert) {
    State state(layout, value_.size());
    return message_of(
        [&] { read_checkpoint(from, state.tensors(), alone_, {.convert = convert, .store = {}}); });
  };
  EXPECT_TRUE(contains(read(checkpoint, kSplit, false), "w (remainder): missing"));
  EXPECT_TRUE(contains(read(checkpoint, kSplit, false), "w (exp_avg): f32, expected bf16"));
  EXPECT_TRUE(contains(read(checkpoint, {{"weight", DType::i32}}, true), "w (weight): bf16, expected i32"));
  EXPECT_TRUE(contains(read(checkpoint, {{"noise", DType::f32}}, true), "w (noise): missing"));
  State weights(kBf16, value_.size());
  const Checkpoint light =
      open_checkpoint(write_checkpoint(folder_.path(), 2, weights.tensors({"weight"}), "{}", alone_), alone_);
  EXPECT_TRUE(contains(read(light, kBf16, true), "holds weights only, no optimizer state to resume from"));
}

// Values on their way to a device: in order, whole, converted.
TEST_F(CheckpointConvert, StoreTakesThePieces) {
  const Checkpoint checkpoint = save(kSplit, 1);
  State state(kFloat32, value_.size());
  std::size_t bytes = 0;
  CheckpointReadOptions options;
  options.convert = true;
  options.store = [&](void* to, const void* host, std::size_t count) {
    std::memcpy(to, host, count);
    bytes += count;
  };
  read_checkpoint(checkpoint, state.tensors(), alone_, options);
  EXPECT_EQ(bytes, 14 * value_.size());
  for (std::size_t i = 0; i < value_.size(); ++i)
    ASSERT_EQ(float_bits(state.as<float>("master")[i]), float_bits(value_[i])) << i;
}

}  // namespace
}  // namespace lapidary
