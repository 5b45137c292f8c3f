#include "tests/kernels/op_run.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/check.h"

namespace lapidary {

namespace {

constexpr std::size_t kGuard = 256;  // bytes behind every tensor
constexpr std::byte kPoison{0xff};   // NaN in every float type, -1 in every integer

double decode(const std::byte* at, DType dtype) {
  const auto as = [&]<class T>() {
    T value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  };
  switch (dtype) {
    case DType::f32:
      return static_cast<double>(as.operator()<float>());
    case DType::bf16:
      return static_cast<double>(static_cast<float>(as.operator()<bf16>()));
    case DType::f64:
      return as.operator()<double>();
    case DType::i64:
      return static_cast<double>(as.operator()<std::int64_t>());
    case DType::i32:
      return as.operator()<std::int32_t>();
    case DType::i16:
      return as.operator()<std::int16_t>();
    case DType::u8:
      return as.operator()<std::uint8_t>();
  }
  fail("no such type");
}

void encode(double value, std::byte* at, DType dtype) {
  const auto put = [&](auto x) { std::memcpy(at, &x, sizeof(x)); };
  switch (dtype) {
    case DType::f32:
      return put(static_cast<float>(value));
    case DType::bf16:
      return put(bf16(static_cast<float>(value)));
    case DType::f64:
      return put(value);
    case DType::i64:
      return put(static_cast<std::int64_t>(value));
    case DType::i32:
      return put(static_cast<std::int32_t>(value));
    case DType::i16:
      return put(static_cast<std::int16_t>(value));
    case DType::u8:
      return put(static_cast<std::uint8_t>(value));
  }
}

/// Byte offset of element (row i, column j) of a tensor.
std::size_t offset_of(const Tensor& t, std::int64_t i, std::int64_t j) {
  return static_cast<std::size_t>(i * t.row_stride() + j) * size_of(t.dtype());
}

/// The numbers of a tensor that lies in `host`.
Values decode(const std::vector<std::byte>& host, const Tensor& t) {
  Values out;
  out.reserve(static_cast<std::size_t>(t.numel()));
  for (std::int64_t i = 0; i < t.rows(); ++i)
    for (std::int64_t j = 0; j < t.cols(); ++j)
      out.push_back(decode(host.data() + offset_of(t, i, j), t.dtype()));
  return out;
}

/// The tensor with one more element in its last dimension.
Tensor widened(const Tensor& t) {
  switch (t.dims()) {
    case 1:
      return Tensor(t.data(), t.dtype(), {t.size(0) + 1});
    case 2:
      return Tensor(t.data(), t.dtype(), {t.size(0), t.size(1) + 1});
    default:
      return Tensor(t.data(), t.dtype(), {t.size(0), t.size(1), t.size(2) + 1});
  }
}

Tensor retyped(const Tensor& t) {
  const DType other = t.dtype() == DType::i32 ? DType::f32 : DType::i32;
  switch (t.dims()) {
    case 1:
      return Tensor(t.data(), other, {t.size(0)});
    case 2:
      return Tensor(t.data(), other, {t.size(0), t.size(1)});
    default:
      return Tensor(t.data(), other, {t.size(0), t.size(1), t.size(2)});
  }
}

/// One for all runs: a GPU's stream keeps a workspace for products once it has computed one.
Stream& stream_of(Backend& backend) {
  static std::map<Backend*, std::unique_ptr<Stream>> streams;
  std::unique_ptr<Stream>& stream = streams[&backend];
  if (!stream) stream = backend.make_stream("test");
  return *stream;
}

}  // namespace

OpRun::OpRun(Backend& backend, const Arrays& given, const RunOptions& options)
    : backend_(backend), given_(given), options_(options), stream_(stream_of(backend)) {}

OpRun::~OpRun() {
  for (const Buffer& buffer : buffers_) backend_.release(buffer.tensor.data());
}

const Values& OpRun::given(const std::string& name) const {
  const auto at = given_.find(name);
  require(at != given_.end(), "the case has no values for '{}'", name);
  return at->second;
}

Tensor OpRun::make(const std::string& name, DType dtype, Shape shape, std::int64_t padding,
                   const Values* values, bool result) {
  Tensor t(nullptr, dtype, shape);
  require(!values || static_cast<std::int64_t>(values->size()) == t.numel(), "'{}': {} values for {}", name,
          values ? values->size() : 0, t.describe());
  const std::int64_t stride = t.cols() + (t.dims() > 1 ? padding : 0);
  const std::size_t size = size_of(dtype);
  const std::size_t bytes = static_cast<std::size_t>(t.rows() * stride) * size + kGuard;
  std::vector<std::byte> host(bytes, kPoison);
  if (values) {
    for (std::int64_t i = 0; i < t.rows(); ++i)
      for (std::int64_t j = 0; j < t.cols(); ++j)
        encode((*values)[static_cast<std::size_t>(i * t.cols() + j)],
               host.data() + static_cast<std::size_t>(i * stride + j) * size, dtype);
  }
  void* data = backend_.allocate(bytes);
  backend_.copy_to_device(stream_, data, host.data(), bytes);
  backend_.synchronize(stream_);
  t = Tensor(data, dtype, shape);
  if (stride != t.cols()) t = Tensor(data, dtype, {t.rows(), stride}).col_range(0, t.cols());
  buffers_.push_back({name, t, bytes, result, values != nullptr && !result, std::move(host)});
  return handed_out(name, t);
}

Tensor OpRun::handed_out(const std::string& name, const Tensor& tensor) {
  fields_.push_back(name);
  if (name != options_.damaged) return tensor;
  switch (options_.damage) {
    case Damage::wider:
      return widened(tensor);
    case Damage::other_type:
      return retyped(tensor);
    case Damage::missing:
      break;
  }
  return {};
}

Tensor OpRun::input(const std::string& name, DType dtype, Shape shape, std::int64_t padding) {
  return make(name, dtype, shape, padding, &given(name), false);
}

Tensor OpRun::output(const std::string& name, DType dtype, Shape shape, std::int64_t padding) {
  const auto alias = options_.alias.find(name);
  if (alias == options_.alias.end()) return make(name, dtype, shape, padding, nullptr, true);
  for (Buffer& buffer : buffers_) {
    if (buffer.name != alias->second) continue;
    buffer.name = name;  // what was an input is from now on this result
    buffer.result = true;
    buffer.input = false;
    return handed_out(name, buffer.tensor);
  }
  fail("'{}' cannot take the memory of '{}', which is not there", name, alias->second);
}

Tensor OpRun::in_out_rows(const std::string& name, Shape shape) {
  return make(name, type(), shape, options_.padding, &given(name), true);
}

Tensor OpRun::in_out_as(const std::string& name, DType dtype, Shape shape) {
  return make(name, dtype, shape, 0, &given(name), true);
}

Tensor OpRun::accumulator(const std::string& name, Shape shape) {
  Values start(static_cast<std::size_t>(Tensor(nullptr, DType::u8, shape).numel()));
  for (std::size_t i = 0; i < start.size(); ++i) start[i] = accumulator_start(static_cast<std::int64_t>(i));
  return make(name, options_.accumulator.value_or(wide()), shape, 0, &start, true);
}

std::vector<std::byte> OpRun::download(const Buffer& buffer) {
  std::vector<std::byte> host(buffer.bytes);
  backend_.copy_to_host(stream_, host.data(), buffer.tensor.data(), buffer.bytes);
  backend_.synchronize(stream_);
  return host;
}

Values OpRun::read(const Tensor& tensor) {
  for (const Buffer& buffer : buffers_) {
    if (buffer.tensor.data() != tensor.data()) continue;
    return decode(download(buffer), tensor);
  }
  fail("a tensor that this run did not make: {}", tensor.describe());
}

void OpRun::record(const std::string& name, DType dtype, Values values) {
  recorded_[name] = {dtype, std::move(values)};
}

void OpRun::forget(const std::string& name) {
  for (Buffer& buffer : buffers_)
    if (buffer.name == name) buffer.result = false;
}

void OpRun::check_untouched(const Buffer& buffer, const std::vector<std::byte>& now) {
  const Tensor& t = buffer.tensor;
  const auto check = [&](std::size_t begin, std::size_t end) {
    const auto difference = std::mismatch(now.begin() + static_cast<std::ptrdiff_t>(begin),
                                          now.begin() + static_cast<std::ptrdiff_t>(end),
                                          buffer.before.begin() + static_cast<std::ptrdiff_t>(begin));
    const auto at = static_cast<std::size_t>(difference.first - now.begin());
    if (at != end) fail("byte {} of '{}' ({}) was written to", at, buffer.name, t.describe());
  };
  std::size_t from = 0;
  if (!buffer.input) {
    for (std::int64_t i = 0; i < t.rows(); ++i) {
      check(from, offset_of(t, i, 0));
      from = offset_of(t, i, t.cols());
    }
  }
  check(from, buffer.bytes);
}

std::map<std::string, OpRun::Result> OpRun::results() {
  std::map<std::string, Result> out = recorded_;
  for (const Buffer& buffer : buffers_) {
    const std::vector<std::byte> now = download(buffer);
    check_untouched(buffer, now);
    if (buffer.result && !out.count(buffer.name))
      out[buffer.name] = {buffer.tensor.dtype(), decode(now, buffer.tensor)};
  }
  return out;
}

std::map<std::string, DType> OpRun::types() const {
  std::map<std::string, DType> out;
  for (const Buffer& buffer : buffers_) out[buffer.name] = buffer.tensor.dtype();
  return out;
}

double accumulator_start(std::int64_t i) {
  return static_cast<double>(i * 7 % 11 - 5) / 8.0;
}

double rounded(double x, DType dtype) {
  std::byte bytes[8];
  encode(x, bytes, dtype);
  return decode(bytes, dtype);
}

Values random_values(std::int64_t count, unsigned seed, double scale, double shift) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal;
  Values out(static_cast<std::size_t>(count));
  for (double& x : out) x = shift + scale * normal(rng);
  return out;
}

}  // namespace lapidary
