// Reading and writing safetensors files and folders.
#include "model/safetensors.h"

#include <cmath>
#include <limits>

#include "kernels/file.h"
#include "tests/model/safetensors_fixture.h"
#include "tests/model/safetensors_writer.h"

namespace lapidary {
namespace {

using Bits = std::vector<std::uint16_t>;

// 7 tensors, every floating type, as the safetensors library orders and pads them.
const char* const kHeader =
    R"({"__metadata__":{"format":"pt"},"ids":{"dtype":"I64","shape":[3],"data_offsets":[0,24]},)"
    R"("d":{"dtype":"F64","shape":[2],"data_offsets":[24,40]},)"
    R"("a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[40,64]},)"
    R"("b.weight":{"dtype":"BF16","shape":[4],"data_offsets":[64,72]},)"
    R"("h":{"dtype":"F16","shape":[],"data_offsets":[72,74]},)"
    R"("empty":{"dtype":"U8","shape":[0,5],"data_offsets":[74,74]},)"
    R"("mask":{"dtype":"BOOL","shape":[2],"data_offsets":[74,76]}}     )";

std::string data() {
  return raw<std::int64_t>({1, -2, std::int64_t{1} << 40}) + raw<double>({0.1, -1e300}) +
         raw<float>({0, 1, 2, 3, 4, 0.1f}) + raw<std::uint16_t>({0x3f80, 0x4000, 0x7fc0, 0x8000}) +
         raw<std::uint16_t>({0x3555}) + raw<std::uint8_t>({1, 0});
}

TEST(Safetensors, ReadsEveryTypeAndRange) {
  const TemporaryFolder folder;
  write_raw(folder / "x.safetensors", safetensors_bytes(kHeader, data()));
  const Safetensors file(folder / "x.safetensors");
  ASSERT_EQ(file.tensors().size(), 7u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.read_all<std::int64_t>("ids"), (std::vector<std::int64_t>{1, -2, std::int64_t{1} << 40}));
  EXPECT_EQ(file.read_all<std::int64_t>("mask"), (std::vector<std::int64_t>{1, 0}));
  EXPECT_EQ(file.read_all<double>("d"), (std::vector<double>{0.1, -1e300}));
  EXPECT_EQ(file.read_all<float>("a.weight"), (std::vector<float>{0, 1, 2, 3, 4, 0.1f}));
  EXPECT_EQ(file.read_all<float>("h"), std::vector<float>{0.333251953125f});
  EXPECT_TRUE(file.read_all<float>("d").size() == 2 && file.find("empty")->elements == 0);
  std::vector<double> part(3);
  file.read(file.at("a.weight"), 3, 3, part.data());
  EXPECT_EQ(part, (std::vector<double>{3, 4, static_cast<double>(0.1f)}));
  std::vector<bf16> rounded(3);
  file.read(file.at("a.weight"), 3, 3, rounded.data());
  EXPECT_EQ(rounded[2].bits, 0x3dcd);
  Bits bits(2);
  file.read_bytes(file.at("b.weight"), 2, 2, bits.data());
  EXPECT_EQ(bits, (Bits{0x7fc0, 0x8000}));
  const auto widened = file.read_all<float>("b.weight");
  EXPECT_TRUE(widened[1] == 2 && std::isnan(widened[2]) && std::signbit(widened[3]));
}

TEST(Safetensors, ConvertsInPieces) {
  const TemporaryFolder folder;
  std::vector<float> values(700000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) * 0.37f;
  SafetensorsWriter writer(folder / "x.safetensors", {{"w", StoredType::f32, {700, 1000}}});
  writer.write(0, 300000, 400000, values.data() + 300000);
  writer.write(0, 0, 300000, values.data());
  writer.commit();
  const Safetensors file(folder / "x.safetensors");
  std::vector<bf16> rounded(600000);
  file.read(file.at("w"), 50000, 600000, rounded.data());
  for (std::size_t i = 0; i < rounded.size(); ++i)
    ASSERT_EQ(rounded[i].bits, bf16(values[50000 + i]).bits) << i;
}

TEST(Safetensors, RefusesWrongReads) {
  const TemporaryFolder folder;
  write_raw(folder / "x.safetensors", safetensors_bytes(kHeader, data()));
  const Safetensors file(folder / "x.safetensors");
  std::vector<float> to(8);
  std::vector<std::int64_t> ids(8);
  EXPECT_TRUE(contains(message_of([&] { file.at("c"); }), "there is no tensor c"));
  EXPECT_TRUE(contains(message_of([&] { file.read(file.at("ids"), 0, 3, to.data()); }),
                       "ids holds I64, which cannot be read as f32"));
  EXPECT_TRUE(contains(message_of([&] { file.read(file.at("a.weight"), 0, 3, ids.data()); }),
                       "a.weight holds F32, which cannot be read as i64"));
  for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {-1, 1}, {0, 7}, {6, 1}, {0, -1}, {7, 0}, {1, std::numeric_limits<std::int64_t>::max()}})
    EXPECT_NE(
        message_of([&, begin = first, n = count] { file.read(file.at("a.weight"), begin, n, to.data()); }),
        "no error")
        << first;
  std::filesystem::resize_file(folder / "x.safetensors", 300);
  EXPECT_TRUE(contains(message_of([&] { file.read_all<float>("a.weight"); }), "the file ends at byte 300"));
}

TEST(Safetensors, HalfPrecisionAgainstItsDefinition) {
  for (int bits = 0; bits < 65536; ++bits) {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const double sign = (bits & 0x8000) != 0 ? -1 : 1;
    const float got = half_to_float(static_cast<std::uint16_t>(bits));
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(got)) << bits;
      continue;
    }
    const double expected = exponent == 31  ? std::numeric_limits<double>::infinity()
                            : exponent == 0 ? std::ldexp(fraction, -24)
                                            : std::ldexp(1024 + fraction, exponent - 25);
    ASSERT_EQ(got, sign * expected) << bits;
    ASSERT_EQ(std::signbit(got), sign < 0) << bits;
  }
}

TEST(SafetensorsWriter, WritesWhatTheLibraryWrites) {
  const TemporaryFolder folder;
  std::vector<StoredTensor> tensors = {
      {"mask", StoredType::boolean, {2}},  {"a.weight", StoredType::f32, {2, 3}},
      {"b.weight", StoredType::bf16, {4}}, {"empty", StoredType::u8, {0, 5}},
      {"h", StoredType::f16, {}},          {"ids", StoredType::i64, {3}},
      {"d", StoredType::f64, {2}}};
  sort_as_safetensors(tensors);
  SafetensorsWriter writer(folder / "x.safetensors", tensors);
  const std::string bytes = data();
  std::int64_t at = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const StoredTensor& tensor = writer.tensors()[i];
    writer.write(i, 0, tensor.elements, bytes.data() + at);
    at += tensor.bytes();
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "x.safetensors"));
  writer.commit();
  EXPECT_EQ(read_raw(folder / "x.safetensors"), safetensors_bytes(kHeader, bytes));
}

TEST(SafetensorsWriter, LeavesNothingHalfWritten) {
  const TemporaryFolder folder;
  const std::string path = folder / "x.safetensors";
  write_raw(path, "before");
  const float values[4] = {};
  {
    SafetensorsWriter writer(path, {{"w", StoredType::f32, {4}}});
    writer.write(0, 0, 3, values);
    EXPECT_TRUE(contains(message_of([&] { writer.commit(); }), "1 elements of w were not written"));
    EXPECT_NE(message_of([&] { writer.write(0, 2, 2, values); }), "no error");  // one of them twice
  }
  EXPECT_EQ(read_raw(path), "before");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
  EXPECT_TRUE(contains(message_of([&] {
                         SafetensorsWriter(path, {{"w"}, {"w"}});
                       }),
                       "w cannot be written twice"));
  EXPECT_TRUE(
      contains(message_of([&] { SafetensorsWriter(folder / "absent/x", {{"w"}}); }), "absent/.x.partial"));
}

// -- headers that must be refused, each for its own reason
struct BadHeader {
  const char* what;
  std::string header;  ///< with 8 bytes of tensors
  std::string expected;
};

TEST(Safetensors, RefusesBadHeaders) {
  const std::string good = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  const std::vector<BadHeader> cases = {
      {"empty", "", "does not begin with '{'"},
      {"not an object", "[1]", "does not begin with '{'"},
      {"leading space", " " + good, "does not begin with '{'"},
      {"cut", good.substr(0, 20), "not valid JSON"},
      {"not UTF-8", "{\"\xff\":1}", "not valid JSON"},
      {"duplicate tensor", good.substr(0, good.size() - 1) + "," + good.substr(1), "key \"w\" appears twice"},
      {"duplicate key", R"({"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
       "appears twice"},
      {"deep", R"({"w":{"dtype":"F32","shape":[[[2]]],"data_offsets":[0,8]}})", "nested deeper"},
      {"unknown dtype", one(R"("F8_E4M3")", "[8]", "[0,8]"), "dtype \"F8_E4M3\" is not one of"},
      {"dtype is a number", one("32", "[2]", "[0,8]"), "\"dtype\" is number, expected string"},
      {"member missing", R"({"w":{"dtype":"F32","shape":[2]}})",
       "expected an object with dtype, shape and data_offsets"},
      {"member too many", R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})",
       "expected an object with"},
      {"tensor is a string", R"({"w":"F32"})", "expected an object with"},
      {"negative dimension", one(R"("F32")", "[-2]", "[0,8]"), "expected a non-negative integer"},
      {"half a dimension", one(R"("F32")", "[2.0]", "[0,8]"), "expected a non-negative integer"},
      {"dimension in text", one(R"("F32")", R"(["2"])", "[0,8]"), "expected a non-negative integer"},
      {"dimension over 64 bits", one(R"("F32")", "[18446744073709551616]", "[0,8]"),
       "expected a non-negative integer"},
      {"product over 64 bits", one(R"("F32")", "[4294967296,4294967296]", "[0,8]"), "does not fit 64 bits"},
      {"bytes over 64 bits", one(R"("F32")", "[4611686018427387904]", "[0,8]"), "does not take the 8 bytes"},
      {"wraps to the right size", one(R"("F32")", "[4611686018427387906]", "[0,8]"),
       "does not take the 8 bytes"},
      {"shape and bytes differ", one(R"("F32")", "[3]", "[0,8]"), "F32 [3] does not take the 8 bytes"},
      {"end before begin", one(R"("F32")", "[2]", "[8,0]"), "data_offsets [8, 0]"},
      {"end after the file", one(R"("F32")", "[3]", "[0,12]"), "within the 8 bytes"},
      {"three offsets", one(R"("F32")", "[2]", "[0,4,8]"), "data_offsets [0, 4, 8]"},
      {"gap at the front", one(R"("F32")", "[1]", "[4,8]"), "begins at byte 4 of the tensors, expected 0"},
      {"not to the end", one(R"("F32")", "[1]", "[0,4]"), "the tensors end at byte 4 of 8"},
      {"overlap",
       R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "b: begins at byte 4 of the tensors, expected 8"},
      {"metadata not text", R"({"__metadata__":{"a":1},)" + good.substr(1),
       "\"a\" is number, expected a string"},
      {"metadata not an object", R"({"__metadata__":3,)" + good.substr(1),
       "__metadata__: expected an object"},
  };
  const TemporaryFolder folder;
  const std::string path = folder / "bad.safetensors";
  for (const BadHeader& bad : cases) {
    write_raw(path, safetensors_bytes(bad.header, "12345678"));
    const std::string message = message_of([&] { const Safetensors file(path); });
    EXPECT_TRUE(contains(message, bad.expected) && contains(message, path)) << bad.what << ": " << message;
  }
  write_raw(path, safetensors_bytes(good, "12345678"));
  EXPECT_EQ(message_of([&] { const Safetensors file(path); }), "no error");
}

TEST(Safetensors, RefusesBadLengths) {
  const TemporaryFolder folder;
  const std::string path = folder / "bad.safetensors";
  const std::string good =
      safetensors_bytes(R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "12");
  write_raw(path, good.substr(0, 7));
  EXPECT_TRUE(contains(message_of([&] { const Safetensors file(path); }), "too short"));
  for (const std::uint64_t length :
       {good.size() - 7, std::size_t{1} << 40, ~std::size_t{0}, std::size_t{1} << 63}) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, 8);
    write_raw(path, bytes);
    EXPECT_TRUE(contains(message_of([&] { const Safetensors file(path); }), "header length")) << length;
  }
  EXPECT_TRUE(contains(message_of([&] { const Safetensors file(folder / "absent"); }), "No such file"));
  EXPECT_TRUE(contains(message_of([&] { const Safetensors file(folder.path()); }),
                       "found neither model.safetensors"));
}

class SafetensorsFolder : public testing::Test {
 protected:
  SafetensorsFolder() {
    shard("1", "a", 1);
    shard("2", "b", 2);
    index(R"({"a":"m-1.safetensors","b":"m-2.safetensors"})");
  }
  void shard(const std::string& number, const std::string& tensor, float value) {
    write_raw(folder_ / ("m-" + number + ".safetensors"),
              safetensors_bytes("{\"" + tensor + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                                raw<float>({value})));
  }
  void index(const std::string& weight_map) {
    write_raw(folder_ / "model.safetensors.index.json",
              R"({"metadata":{"total_size":123456789},"weight_map":)" + weight_map + "}");
  }
  std::string message() const {
    return message_of([&] { const Safetensors model(folder_.path()); });
  }
  TemporaryFolder folder_;
};

TEST_F(SafetensorsFolder, ReadsShardsTogether) {
  const Safetensors model(folder_.path());
  EXPECT_EQ(model.files().size(), 2u);
  EXPECT_EQ(model.read_all<float>("a"), std::vector<float>{1});
  EXPECT_EQ(model.read_all<float>("b"), std::vector<float>{2});
}

TEST_F(SafetensorsFolder, IndexAndFilesMustAgree) {
  index(R"({"a":"m-1.safetensors"})");
  EXPECT_EQ(message(), "no error");  // a file that the index does not name is not looked at
  index(R"({"a":"m-1.safetensors","b":"m-3.safetensors"})");
  EXPECT_TRUE(contains(message(), "names m-3.safetensors, which does not exist"));
  index(R"({"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-2.safetensors"})");
  EXPECT_TRUE(contains(message(), "c should be in m-2.safetensors, which does not have it"));
  index(R"({"a":"m-2.safetensors","b":"m-1.safetensors"})");
  EXPECT_TRUE(contains(message(), "a should be in m-2.safetensors, found in")) << message();
  index(R"({"a":"m-1.safetensors","c":"m-2.safetensors"})");
  EXPECT_TRUE(contains(message(), "is not in weight_map"));
  index(R"({"a":"m-1.safetensors","a":"m-2.safetensors"})");
  EXPECT_TRUE(contains(message(), "key \"a\" appears twice"));
  index(R"({"a":"../m-1.safetensors"})");
  EXPECT_TRUE(contains(message(), "is not the name of a file beside the index"));
  index("{}");
  EXPECT_TRUE(contains(message(), "weight_map is empty"));
  index(R"(["a"])");
  EXPECT_TRUE(contains(message(), "\"weight_map\" is array, expected object"));
  shard("2", "a", 2);
  index(R"({"a":"m-1.safetensors","b":"m-2.safetensors"})");
  EXPECT_TRUE(contains(message(), "a is also in")) << message();
}

}  // namespace
}  // namespace lapidary
