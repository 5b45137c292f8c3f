// What the HDF5 wrapper promises: values, shapes and attributes come back as written, rows can be read and
// written in parts, offsets point at the bytes, and every mistake is an Error that names file and dataset.
#include "kernels/hdf5_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <functional>
#include <thread>

#include "kernels/error.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

class Hdf5FileTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() / ("lapidary-hdf5-" + std::to_string(getpid()) + ".h5");
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::string error_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  std::filesystem::path path_;
};

TEST_F(Hdf5FileTest, values_shapes_and_attributes_come_back) {
  const std::vector<float> weights = {1, 2, 3, 4, 5, 6};
  const std::vector<bf16> halves = {bf16(1.5f), bf16(-3e38f), bf16(1e-30f)};
  {
    Hdf5File file = Hdf5File::create(path_);
    file.write("model/layer.0/weight", DType::f32, {3, 2}, weights.data());
    file.write("model/halves", halves);
    file.write("empty", std::vector<std::int64_t>{});
    file.write("no_rows", DType::u8, {0, 48}, nullptr);
    file.write_attribute("format", "lapidary shard – é");
    file.write_attribute("version", std::int64_t{-7});
    file.close();
  }
  const Hdf5File file = Hdf5File::open(path_);
  EXPECT_EQ(file.datasets(),
            (std::vector<std::string>{"empty", "model/halves", "model/layer.0/weight", "no_rows"}));
  EXPECT_EQ(file.read<float>("model/layer.0/weight"), weights);
  EXPECT_EQ(file.shape("model/layer.0/weight").dims, (std::vector<std::int64_t>{3, 2}));
  const std::vector<bf16> read = file.read<bf16>("model/halves");
  ASSERT_EQ(read.size(), halves.size());
  for (std::size_t i = 0; i < read.size(); ++i) EXPECT_EQ(read[i].bits, halves[i].bits);
  EXPECT_TRUE(file.read<std::int64_t>("empty").empty());
  EXPECT_EQ(file.shape("no_rows").offset, -1);
  EXPECT_EQ(file.text_attribute("format"), "lapidary shard – é");
  EXPECT_EQ(file.integer_attribute("version"), -7);
  EXPECT_TRUE(file.contains("model/halves"));
  EXPECT_FALSE(file.contains("model/none"));
  EXPECT_FALSE(file.contains("none/at/all"));
}

TEST_F(Hdf5FileTest, rows_are_written_and_read_in_parts) {
  std::vector<std::int32_t> rows(6 * 5);
  for (int i = 0; i < 30; ++i) rows[i] = 100 + i;
  {
    Hdf5File file = Hdf5File::create(path_);
    file.create_dataset("rows", DType::i32, {6, 5});
    file.write_rows("rows", 4, 2, rows.data() + 20);
    file.write_rows("rows", 0, 4, rows.data());
    file.close();
  }
  const Hdf5File file = Hdf5File::open(path_);
  std::vector<std::int32_t> part(2 * 5);
  file.read_rows("rows", DType::i32, 3, 2, part.data());
  EXPECT_EQ(part, std::vector<std::int32_t>(rows.begin() + 15, rows.begin() + 25));
  EXPECT_EQ(file.read<std::int32_t>("rows"), rows);
}

TEST_F(Hdf5FileTest, the_offset_is_where_the_bytes_stand) {
  std::vector<std::int16_t> samples(100'000);
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<std::int16_t>(i * 7);
  {
    Hdf5File file = Hdf5File::create(path_);
    file.write("small", std::vector<std::uint8_t>{1, 2, 3});
    file.write("samples", samples);
    file.close();
  }
  const std::int64_t offset = Hdf5File::open(path_).shape("samples").offset;
  EXPECT_EQ(offset % 4096, 0);
  std::vector<std::int16_t> direct(samples.size());
  File::open_to_read(path_).read_at(direct.data(), 2 * direct.size(), offset);
  EXPECT_EQ(direct, samples);
}

TEST_F(Hdf5FileTest, equal_contents_make_equal_files) {
  std::string bytes[2];
  for (std::string& contents : bytes) {
    Hdf5File file = Hdf5File::create(path_);
    file.write("values", std::vector<double>(1000, 0.5));
    file.write_attribute("version", std::int64_t{1});
    file.close();
    contents = read_text_file(path_, 1 << 20);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST_F(Hdf5FileTest, mistakes_name_file_and_dataset) {
  {
    Hdf5File file = Hdf5File::create(path_);
    file.write("values", std::vector<float>{1, 2, 3});
    file.write_attribute("text", "abc");
    EXPECT_NE(error_of([&] { file.write("values", std::vector<float>{1}); }).find("'values'"),
              std::string::npos);
    EXPECT_NE(
        error_of([&] { file.write_rows("values", 2, 2, nullptr); }).find("has 3 rows, asked for [2, 4)"),
        std::string::npos);
    file.close();
  }
  const Hdf5File file = Hdf5File::open(path_);
  const std::string missing = error_of([&] { file.shape("absent"); });
  EXPECT_NE(missing.find(path_.string()), std::string::npos) << missing;
  EXPECT_NE(missing.find("'absent'"), std::string::npos) << missing;
  EXPECT_NE(error_of([&] { file.read<bf16>("values"); }).find("holds f32, expected bf16"), std::string::npos);
  EXPECT_NE(error_of([&] { static_cast<void>(file.integer_attribute("text")); }).find("not one integer"),
            std::string::npos);
  EXPECT_NE(error_of([&] { static_cast<void>(file.text_attribute("no such")); }).find("'no such' is missing"),
            std::string::npos);
  EXPECT_NE(error_of([&] { Hdf5File::open(path_.string() + ".absent"); }).find(".absent"), std::string::npos);
  EXPECT_NE(error_of([&] { Hdf5File::create("/no/such/directory/file.h5"); }).find("cannot be created"),
            std::string::npos);
}

TEST_F(Hdf5FileTest, something_else_is_refused) {
  std::ofstream(path_) << "this is text, not an HDF5 file";
  EXPECT_NE(error_of([&] { Hdf5File::open(path_); }).find("cannot be opened as an HDF5 file"),
            std::string::npos);
}

TEST_F(Hdf5FileTest, threads_may_use_files_of_their_own_and_stay_silent) {
  {
    Hdf5File file = Hdf5File::create(path_);
    file.write("values", std::vector<std::int32_t>(1000, 42));
    file.close();
  }
  testing::internal::CaptureStderr();
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        const Hdf5File file = Hdf5File::open(path_);
        if (file.read<std::int32_t>("values").back() == 42 && !file.contains("absent")) ++good;
        EXPECT_THROW(file.shape("absent"), Error);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 200);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(Hdf5FileTest, a_file_in_memory_reserves_without_taking) {
  const File memory = File::in_memory();
  const std::int64_t large = std::int64_t{1} << 38;  // bytes that no machine has
  {
    Hdf5File file = Hdf5File::create_in_memory(memory);
    file.create_dataset("large", DType::u8, {large});
    file.write("small", std::vector<float>{1, 2, 3});
    EXPECT_GT(file.shape("large").offset, 0);
    file.close();
  }
  ASSERT_GT(memory.size(), large);
  std::filesystem::remove(path_);
  {
    File copy = File::create(path_);  // as its writer does: what is not a value
    std::vector<char> bytes(8192);
    copy.write_at(bytes.data(), 1, memory.size() - 1);
    memory.read_at(bytes.data(), bytes.size(), 0);
    copy.write_at(bytes.data(), bytes.size(), 0);
    const std::int64_t rest = memory.size() - large - 8192;
    bytes.resize(static_cast<std::size_t>(std::max<std::int64_t>(rest, 0)));
    memory.read_at(bytes.data(), bytes.size(), memory.size() - rest);
    copy.write_at(bytes.data(), bytes.size(), memory.size() - rest);
  }
  EXPECT_EQ(Hdf5File::open(path_).read<float>("small"), (std::vector<float>{1, 2, 3}));
}

TEST_F(Hdf5FileTest, a_virtual_dataset_shows_blocks_of_other_files) {
  const std::string name = path_.filename().string();
  const std::filesystem::path parts = path_.string() + ".parts";
  std::vector<bf16> halves;
  for (int i = 0; i < 24; ++i) halves.emplace_back(static_cast<float>(i));
  {
    Hdf5File file = Hdf5File::create(parts);
    file.write("a.weight", halves);
    file.write("counts", std::vector<std::int64_t>{7, 8, 9});
    file.close();
    Hdf5File index = Hdf5File::create(path_);
    const std::string source = parts.filename().string();
    // [3, 2, 4]: elements 5 to 20 of 24, as blocks of up to one row, one plane, one row
    index.create_virtual_dataset("a.weight", DType::bf16, {3, 2, 4},
                                 {{{0, 1, 1}, {1, 1, 3}, source, "a.weight", 0, 24},
                                  {{1, 0, 0}, {1, 2, 4}, source, "a.weight", 3, 24},
                                  {{2, 0, 0}, {1, 1, 4}, source, "a.weight", 11, 24}});
    index.create_virtual_dataset("counts", DType::i64, {4}, {{{1}, {3}, source, "counts", 0, 3}});
    EXPECT_NE(error_of([&] {
                index.create_virtual_dataset("x", DType::f32, {4}, {{{1, 0}, {3, 1}, source, "x", 0, 3}});
              }),
              "no error");
    index.close();
  }
  const auto expect_values = [&](bool there) {
    const Hdf5File file = Hdf5File::open(path_);
    const auto values = file.read<bf16>("a.weight");
    ASSERT_EQ(values.size(), 24u);
    for (int i = 0; i < 24; ++i) {
      const auto value = static_cast<float>(values[static_cast<std::size_t>(i)]);
      if (there && i >= 5 && i < 20)
        EXPECT_EQ(value, static_cast<float>(i - 5));
      else
        EXPECT_TRUE(std::isnan(value)) << i << ": " << value;
    }
    EXPECT_EQ(file.read<std::int64_t>("counts"),
              (std::vector<std::int64_t>{0, there ? 7 : 0, there ? 8 : 0, there ? 9 : 0}));
  };
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path("/");  // sources are found beside the index, wherever the reader works
  expect_values(true);
  std::filesystem::current_path(before);
  std::filesystem::remove(parts);
  expect_values(false);
}

}  // namespace
}  // namespace lapidary
