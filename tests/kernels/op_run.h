// Runs one operation on any backend from arrays of doubles: builds its tensors in the element type asked for,
// with padding between rows where the operation allows it and guard bytes behind every tensor, and reads the
// results back. The cases (op_cases.h) are written once in these terms and serve every device and type.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kernels/arena.h"
#include "kernels/ops.h"

namespace lapidary {

using Values = std::vector<double>;
using Arrays = std::map<std::string, Values>;
using Shape = std::initializer_list<std::int64_t>;

/// One wrong thing to do to one field, to see it refused.
enum class Damage { wider, other_type, missing };

struct RunOptions {
  DType type = DType::f64;                     ///< T of the operation
  std::optional<DType> accumulator{};          ///< of weight gradients; without: float32, or f64 for f64
  std::int64_t padding = 0;                    ///< elements between the rows of fields that may be strided
  std::map<std::string, std::string> alias{};  ///< output -> the input whose memory it takes
  std::string damaged{};                       ///< field handed over wrongly
  Damage damage = Damage::wider;
};

class OpRun {
 public:
  OpRun(Backend& backend, const Arrays& given, const RunOptions& options);
  ~OpRun();
  OpRun(const OpRun&) = delete;
  OpRun& operator=(const OpRun&) = delete;

  DType type() const { return options_.type; }
  DType wide() const { return options_.type == DType::f64 ? DType::f64 : DType::f32; }
  Stream& stream() { return stream_; }
  const Values& given(const std::string& name) const;
  bool has(const std::string& name) const { return given_.count(name) > 0; }

  /// An input with the given values: of type T unless said otherwise.
  Tensor in(const std::string& name, Shape shape) { return input(name, type(), shape, 0); }
  Tensor in_rows(const std::string& name, Shape shape) {
    return input(name, type(), shape, options_.padding);
  }
  Tensor in_wide(const std::string& name, Shape shape) { return input(name, wide(), shape, 0); }
  Tensor in_as(const std::string& name, DType dtype, Shape shape) { return input(name, dtype, shape, 0); }
  /// in(), or nothing if no values are given.
  Tensor maybe_in(const std::string& name, Shape shape) { return has(name) ? in(name, shape) : Tensor(); }

  /// A result, filled with NaN before.
  Tensor out(const std::string& name, Shape shape) { return output(name, type(), shape, 0); }
  Tensor out_rows(const std::string& name, Shape shape) {
    return output(name, type(), shape, options_.padding);
  }
  Tensor out_wide(const std::string& name, Shape shape) { return output(name, wide(), shape, 0); }
  Tensor out_as(const std::string& name, DType dtype, Shape shape) { return output(name, dtype, shape, 0); }
  /// A result that starts from the given values of the same name.
  Tensor in_out(const std::string& name, Shape shape) { return in_out_as(name, type(), shape); }
  Tensor in_out_rows(const std::string& name, Shape shape);
  Tensor in_out_as(const std::string& name, DType dtype, Shape shape);
  /// A weight's gradient: a result that starts from accumulator_start().
  Tensor accumulator(const std::string& name, Shape shape);

  template <class Op>
  void operator()(const Op& op) {
    Arena workspace(backend_, "test workspace", scratch_of(op));
    stream_.set_workspace(&workspace);
    lapidary::run(stream_, op);
    backend_.synchronize(stream_);
  }

  /// Reads a tensor of this run.
  Values read(const Tensor& tensor);
  /// Declares values computed from results to be a result themselves.
  void record(const std::string& name, DType dtype, Values values);

  /// Takes a tensor out of the results: what it holds is a device's own affair.
  void forget(const std::string& name);

  struct Result {
    DType dtype;
    Values values;
  };
  /// All results by name. Checks that nothing was written between rows, behind tensors or into inputs.
  std::map<std::string, Result> results();
  /// Element types of all tensors made so far.
  std::map<std::string, DType> types() const;
  /// Names of the fields handed out, in order.
  const std::vector<std::string>& fields() const { return fields_; }

 private:
  template <class Op>
  std::size_t scratch_of(const Op& op) {
    if constexpr (requires { op.scratch_bytes(Device::cpu); }) {
      return op.scratch_bytes(stream_.device()) + Arena::kAlignment;
    } else {
      return 0;
    }
  }
  struct Buffer {
    std::string name;
    Tensor tensor;
    std::size_t bytes;
    bool result, input;
    std::vector<std::byte> before;
  };
  Tensor input(const std::string& name, DType dtype, Shape shape, std::int64_t padding);
  Tensor output(const std::string& name, DType dtype, Shape shape, std::int64_t padding);
  Tensor make(const std::string& name, DType dtype, Shape shape, std::int64_t padding, const Values* values,
              bool result);
  Tensor handed_out(const std::string& name, const Tensor& tensor);
  std::vector<std::byte> download(const Buffer& buffer);
  void check_untouched(const Buffer& buffer, const std::vector<std::byte>& now);

  Backend& backend_;
  const Arrays& given_;
  RunOptions options_;
  Stream& stream_;
  std::vector<Buffer> buffers_;
  std::map<std::string, Result> recorded_;
  std::vector<std::string> fields_;
};

/// Where element i of a weight's gradient starts: small multiples of 1/8, exact in every float type.
double accumulator_start(std::int64_t i);

/// The value nearest to x in an element type.
double rounded(double x, DType dtype);

/// Standard normal numbers times scale plus shift; the same for the same seed.
Values random_values(std::int64_t count, unsigned seed, double scale = 1.0, double shift = 0.0);

}  // namespace lapidary
