// Uploads on a device whose copies happen only when the host waits for an event behind them, as late as a GPU
// may do them: the host must neither wait for the stream nor touch what has not left it.
#include "model/device_batch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <optional>

#include "kernels/error.h"

namespace lapidary {
namespace {

class LateDevice final : public Backend {
 public:
  int stream_waits = 0, event_waits = 0, allocations = 0;

  Device device() const override { return Device::cuda; }
  std::string description() const override { return "a device for tests"; }
  DeviceMemory memory() const override { return {}; }
  void* allocate(std::size_t bytes) override { return std::calloc(bytes, 1); }
  void release(void* data) noexcept override { std::free(data); }
  void* allocate_host(std::size_t bytes) override {
    ++allocations;
    return std::calloc(bytes, 1);
  }
  void release_host(void* data) noexcept override { std::free(data); }
  std::unique_ptr<Stream> make_stream(const char*) override {
    return std::make_unique<Stream>(*this, nullptr, nullptr);
  }
  void copy_to_device(const Stream&, void* to, const void* from, std::size_t bytes) override {
    copies_.push_back({to, from, bytes});
  }
  void copy_to_host(const Stream&, void*, const void*, std::size_t) override { std::abort(); }
  Event record(const Stream&) override { return {std::make_shared<std::size_t>(copies_.size())}; }
  Event record_timed(const Stream& stream) override { return record(stream); }
  double seconds_between(const Event&, const Event&) override { return 0; }
  void wait(const Stream&, const Event&) override {}
  void synchronize(const Stream&) override {
    ++stream_waits;
    finish(copies_.size());
  }
  void synchronize(const Event& event) override {
    if (!event.native) return;
    ++event_waits;
    finish(*static_cast<std::size_t*>(event.native.get()));
  }
  void finish(std::size_t count) {
    for (; done_ < count; ++done_) std::memcpy(copies_[done_].to, copies_[done_].from, copies_[done_].bytes);
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
  };
  std::vector<Copy> copies_;
  std::size_t done_ = 0;
};

Batch text(std::int32_t tokens, std::int32_t first) {
  Batch batch;
  std::vector<std::int32_t> document;
  for (std::int32_t t = 0; t < tokens; ++t) {
    batch.ids.push_back(first + t);
    batch.targets.push_back(first + t + 1);
    batch.positions.push_back(t);
    document.push_back(0);
  }
  attention_intervals(document, std::vector<std::uint8_t>(document.size(), 0), 4, ImageAttention::sliding,
                      batch.full, batch.sliding);
  batch.rows = 1;
  return batch;
}

template <class T>
std::vector<T> values(const Tensor& x) {
  return {x.as<T>(), x.as<T>() + x.numel()};
}

class Uploads : public testing::Test {
 protected:
  ModelConfig config = read_model_config(LAPIDARY_SOURCE_DIR "/configs/models/quickstart.json");
  LateDevice device;
  std::unique_ptr<Stream> stream = device.make_stream("");
  Arena arena{device, "activations", std::size_t{4} << 20};
  std::optional<BatchUploader> upload{std::in_place, config, 64, FeatureTypes{}};
};

TEST_F(Uploads, ArriveWholeAfterTheBatchIsGone) {
  std::optional<Batch> batch = text(10, 30);
  const Batch before = *batch;
  const DeviceBatch on_device = (*upload)(*stream, arena, *batch, "batch");
  batch.reset();
  device.synchronize(*stream);
  EXPECT_EQ(values<std::int32_t>(on_device.ids), before.ids);
  EXPECT_EQ(values<std::int32_t>(on_device.targets), before.targets);
  EXPECT_EQ(values<std::int32_t>(on_device.positions), before.positions);
  EXPECT_EQ(values<std::int32_t>(on_device.full_lo), before.full.lo);
  EXPECT_EQ(values<std::int32_t>(on_device.sliding_hi), before.sliding.hi);
  EXPECT_EQ(values<float>(on_device.full_frequencies), config.rope_frequencies(true));
  EXPECT_EQ(values<float>(on_device.sliding_frequencies), config.rope_frequencies(false));
  EXPECT_EQ(on_device.patches.rows(), 0);
}

TEST_F(Uploads, NeverWaitForTheStreamAndKeepTwoUnderWay) {
  std::vector<DeviceBatch> on_device;
  for (std::int32_t i = 0; i < 6; ++i) {
    on_device.push_back((*upload)(*stream, arena, text(20, 30 + 20 * i), "batch"));
    EXPECT_EQ(device.event_waits, std::max(0, i - 1));
  }
  EXPECT_EQ(device.stream_waits, 0);
  EXPECT_EQ(device.allocations, 2) << "a steady step allocates nothing";
  device.finish(6);
  for (std::int32_t i = 0; i < 6; ++i)
    EXPECT_EQ(values<std::int32_t>(on_device[static_cast<std::size_t>(i)].ids), text(20, 30 + 20 * i).ids)
        << i;
}

TEST_F(Uploads, BuffersGrowOnlyAfterTheirUploadHasLeft) {
  const DeviceBatch small = (*upload)(*stream, arena, text(2, 30), "batch");
  (*upload)(*stream, arena, text(2, 40), "batch");
  const DeviceBatch large = (*upload)(*stream, arena, text(60, 50), "batch");
  device.finish(3);
  EXPECT_EQ(values<std::int32_t>(small.ids), (std::vector<std::int32_t>{30, 31}));
  EXPECT_EQ(values<std::int32_t>(large.ids), text(60, 50).ids);
}

TEST_F(Uploads, SoftTokensTakeNoRowOfTheTable) {
  Batch batch = text(6, 30);
  batch.ids[2] = config.image_id;
  batch.targets[2] = -1;
  batch.patches.dtype = DType::u8;
  batch.patches.width = config.vision.patch_width();
  batch.patches.count = 1;
  batch.patches.token = {2};
  batch.patches.values.assign(static_cast<std::size_t>(batch.patches.width), std::byte{7});
  batch.patch_xy = {1, 2};
  const DeviceBatch on_device = (*upload)(*stream, arena, batch, "batch");
  device.synchronize(*stream);
  EXPECT_EQ(values<std::int32_t>(on_device.ids), (std::vector<std::int32_t>{30, 31, -1, 33, 34, 35}));
  EXPECT_EQ(values<std::int32_t>(on_device.patch_xy), batch.patch_xy);
  EXPECT_EQ(values<std::uint8_t>(on_device.patches),
            std::vector<std::uint8_t>(batch.patches.values.size(), 7));
  batch.patch_xy = {-1, 2};
  EXPECT_THROW((*upload)(*stream, arena, batch, "batch"), Error);
  EXPECT_THROW((*upload)(*stream, arena, text(65, 30), "batch"), Error);
}

}  // namespace
}  // namespace lapidary
