// Every case of op_cases.h on the device that LAPIDARY_TEST_DEVICE names (cpu if unset): against the naive
// reference, against finite differences, against the rounding of each element type, with strided rows, with
// every allowed alias, with NaN, with every field wrong, and twice for the same bits.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>

#include "kernels/check.h"
#include "tests/kernels/op_cases.h"

namespace lapidary {
namespace {

Backend& tested_backend() {
  const char* name = std::getenv("LAPIDARY_TEST_DEVICE");
  if (!name || std::strcmp(name, "cpu") == 0) return cpu_backend();
  require(std::strcmp(name, "cuda") == 0, "LAPIDARY_TEST_DEVICE is '{}', expected cpu or cuda", name);
  return cuda_backend(0);
}

std::vector<DType> tested_types() {
  std::vector<DType> types = {DType::f32, DType::bf16};
  if (tested_backend().device() == Device::cpu) types.insert(types.begin(), DType::f64);
  return types;
}

using Results = std::map<std::string, OpRun::Result>;

/// The case's arrays with those of type T rounded to `type`, and the reference's outputs from them.
Arrays arrays_for(const OpCase& c, DType type) {
  Arrays out = c.given;
  for (auto& [name, values] : out)
    if (!c.exact.count(name))
      for (double& x : values) x = rounded(x, type);
  if (c.reference)
    for (auto& [name, values] : c.reference(out)) out.emplace(name, std::move(values));
  return out;
}

Results run_case(const OpCase& c, Backend& backend, const Arrays& arrays, const RunOptions& options) {
  OpRun run(backend, arrays, options);
  c.run(run);
  return run.results();
}

double unit(DType type) {
  return type == DType::bf16 ? 0x1p-8 : type == DType::f32 ? 0x1p-24 : 0x1p-53;
}

void expect_close(const OpCase& c, const std::string& name, const OpRun::Result& found,
                  const Values& expected, DType type) {
  ASSERT_EQ(found.values.size(), expected.size()) << c.name << " " << name;
  double square = 0;
  for (const double x : expected) square += std::isfinite(x) ? x * x : 0;
  const double rms = expected.empty() ? 0 : std::sqrt(square / static_cast<double>(expected.size()));
  const Bound bound = c.bounds.count(name) ? c.bounds.at(name) : Bound{};
  const bool narrow = type == DType::bf16 || found.dtype == DType::bf16;
  const double slack = (narrow ? bound.type * unit(DType::bf16) : 0) +
                       bound.wide * unit(type == DType::f64 ? type : DType::f32);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::isinf(expected[i]) || std::isnan(expected[i])) {
      ASSERT_TRUE(found.values[i] == expected[i] || (std::isnan(expected[i]) && std::isnan(found.values[i])))
          << c.name << " " << name << "[" << i << "] = " << found.values[i] << ", expected " << expected[i];
      continue;
    }
    ASSERT_LE(std::abs(found.values[i] - expected[i]), slack * (std::abs(expected[i]) + rms))
        << c.name << " in " << name_of(type) << ": " << name << "[" << i << "] = " << found.values[i]
        << ", expected " << expected[i];
  }
}

void expect_same_bits(const OpCase& c, const Results& a, const Results& b, const char* when) {
  for (const auto& [name, result] : a) {
    const Values& other = b.at(name).values;
    ASSERT_EQ(result.values.size(), other.size());
    for (std::size_t i = 0; i < other.size(); ++i)
      ASSERT_TRUE(std::memcmp(&result.values[i], &other[i], sizeof(double)) == 0)
          << c.name << ": " << name << "[" << i << "] is " << result.values[i] << " and " << other[i] << " "
          << when;
  }
}

class Ops : public testing::TestWithParam<OpCase> {};
class Forward : public Ops {};
class Backward : public Ops {};

TEST_P(Forward, EqualsTheReferenceWithinItsFormat) {
  const OpCase& c = GetParam();
  for (const DType type : tested_types()) {
    const Arrays arrays = arrays_for(c, type);
    const Results results = run_case(c, tested_backend(), arrays, {.type = type});
    for (const auto& [name, result] : results) {
      ASSERT_TRUE(arrays.count(name)) << name;
      // What starts from given values has them under its own name; the reference's outcome is then "name'".
      const Values& expected = arrays.count(name + "'") ? arrays.at(name + "'") : arrays.at(name);
      expect_close(c, name, result, expected, type);
    }
  }
}

/// d(sum of cotangent times output) along `direction` of one given array, by a five-point stencil.
double directional_derivative(const OpCase& c, const Arrays& arrays, const std::string& input,
                              const Values& direction) {
  constexpr double kStep = 2e-3;
  const auto objective = [&](double step) {
    Arrays moved = c.given;
    for (std::size_t i = 0; i < direction.size(); ++i) moved[input][i] += step * direction[i];
    double sum = 0;
    const Arrays outputs = c.reference(moved);
    for (const auto& [cotangent, output] : c.gradients->cotangents) {
      const Values& y = outputs.at(output);
      const Values& d = arrays.at(cotangent);
      for (std::size_t i = 0; i < y.size(); ++i) sum += d[i] * y[i];
    }
    return sum;
  };
  return (8 * (objective(kStep) - objective(-kStep)) - (objective(2 * kStep) - objective(-2 * kStep))) /
         (12 * kStep);
}

/// Every element's own direction in small cases, else random ones.
std::vector<Values> directions_for(const OpCase& c, std::size_t size) {
  std::size_t numbers = 0;
  for (const auto& [name, values] : c.given) numbers += values.size();
  std::vector<Values> out;
  if (numbers <= 2500) {
    for (std::size_t i = 0; i < size; ++i) {
      out.emplace_back(size, 0.0);
      out.back()[i] = 1.0;
    }
  } else {
    for (unsigned k = 0; k < 2; ++k)
      out.push_back(random_values(static_cast<std::int64_t>(size), 900 + k, 1 / std::sqrt(double(size))));
  }
  return out;
}

TEST_P(Backward, EqualsFiniteDifferences) {
  const OpCase& c = GetParam();
  const Arrays arrays = arrays_for(c, DType::f64);
  const Results results = run_case(c, cpu_backend(), arrays, {.type = DType::f64});
  for (const auto& [result, input] : c.gradients->results) {
    Values gradient = results.at(result).values;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      if (c.gradients->accumulated.count(result))
        gradient[i] -= accumulator_start(static_cast<std::int64_t>(i));
      if (c.gradients->added_to.count(result)) gradient[i] -= arrays.at(c.gradients->added_to.at(result))[i];
    }
    ASSERT_EQ(gradient.size(), c.given.at(input).size()) << result;
    double norm = 0;
    for (const double g : gradient) norm += g * g;
    norm = std::sqrt(norm);
    for (const Values& direction : directions_for(c, gradient.size())) {
      double along = 0;
      for (std::size_t i = 0; i < gradient.size(); ++i) along += gradient[i] * direction[i];
      ASSERT_NEAR(along, directional_derivative(c, arrays, input, direction), 1e-8 * norm + 1e-10)
          << c.name << ": " << result;
    }
  }
}

/// The results of the case in double from exactly the numbers that a run in other types was given.
Results in_double(const OpCase& c, Arrays arrays, const std::map<std::string, DType>& types) {
  for (auto& [name, values] : arrays)
    if (const auto type = types.find(name); type != types.end())
      for (double& x : values) x = rounded(x, type->second);
  return run_case(c, cpu_backend(), arrays, {.type = DType::f64});
}

TEST_P(Backward, EqualsDoubleWithinItsFormat) {
  const OpCase& c = GetParam();
  for (const DType type : {DType::f32, DType::bf16}) {
    const Arrays arrays = arrays_for(c, type);
    for (const DType accumulator : {DType::f32, DType::bf16}) {
      OpRun run(tested_backend(), arrays, {.type = type, .accumulator = accumulator});
      c.run(run);
      const Results expected = in_double(c, arrays, run.types());
      for (const auto& [name, result] : run.results())
        expect_close(c, name, result, expected.at(name).values, type);
    }
  }
}

TEST_P(Ops, StridedRowsAndAliasesGiveTheSameBits) {
  const OpCase& c = GetParam();
  for (const DType type : tested_types()) {
    const Arrays arrays = arrays_for(c, type);
    const Results plain = run_case(c, tested_backend(), arrays, {.type = type});
    const Results strided = run_case(c, tested_backend(), arrays, {.type = type, .padding = 3});
    if (tested_backend().device() == Device::cpu) {
      expect_same_bits(c, plain, strided, "with strided rows");
    } else {
      // The GPU may read misaligned rows in another order: equal within the format, not in every bit.
      for (const auto& [name, result] : strided) expect_close(c, name, result, plain.at(name).values, type);
    }
    for (const auto& alias : c.aliases)
      expect_same_bits(c, plain, run_case(c, tested_backend(), arrays, {.type = type, .alias = {alias}}),
                       "with an alias");
  }
}

TEST_P(Ops, GivesTheSameBitsTwiceAndOnAnyNumberOfThreads) {
  const OpCase& c = GetParam();
  const int threads = omp_get_max_threads();
  for (const DType type : tested_types()) {
    const Arrays arrays = arrays_for(c, type);
    omp_set_num_threads(2);
    const Results first = run_case(c, tested_backend(), arrays, {.type = type});
    const Results second = run_case(c, tested_backend(), arrays, {.type = type});
    omp_set_num_threads(1);
    const Results single = run_case(c, tested_backend(), arrays, {.type = type});
    omp_set_num_threads(threads);
    expect_same_bits(c, first, second, "in two runs");
    if (c.same_bits_on_any_threads) expect_same_bits(c, first, single, "on two threads and one");
  }
}

bool any_nan(const Results& results) {
  for (const auto& [name, result] : results)
    for (const double x : result.values)
      if (std::isnan(x)) return true;
  return false;
}

TEST_P(Ops, CarriesNanThrough) {
  const OpCase& c = GetParam();
  for (const DType type : tested_types()) {
    const Arrays whole = arrays_for(c, type);
    for (const auto& [name, values] : c.given) {
      if (c.exact.count(name) || c.ignores_nan.count(name) || values.empty()) continue;
      Arrays arrays = whole;
      arrays[name].assign(values.size(), std::nan(""));
      EXPECT_TRUE(any_nan(run_case(c, tested_backend(), arrays, {.type = type})))
          << c.name << " hides NaN in " << name;
    }
  }
}

/// The message of the Error that a damaged field causes, or a text that says that there was none.
std::string refusal(const OpCase& c, const Arrays& arrays, const std::string& field, Damage damage) {
  OpRun run(tested_backend(), arrays, {.type = DType::f32, .damaged = field, .damage = damage});
  try {
    c.run(run);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST_P(Ops, RefusesEveryFieldThatIsWrong) {
  const OpCase& c = GetParam();
  const Arrays arrays = arrays_for(c, DType::f32);
  std::vector<std::string> fields;
  {
    OpRun run(tested_backend(), arrays, {.type = DType::f32});
    c.run(run);
    fields = run.fields();
  }
  // Cases that run a forward first are refused by either operation.
  const std::string start = c.name.substr(0, 3);
  for (const std::string& field : fields) {
    const auto refused = [&](Damage damage) {
      const std::string message = refusal(c, arrays, field, damage);
      return message.substr(0, 3) == start && message.find(':') != std::string::npos ? "" : message;
    };
    const auto expect_refused = [&](const std::set<std::string>& fine, Damage damage, const char* what) {
      if (!fine.count(field)) {
        EXPECT_EQ(refused(damage), "") << c.name << ": " << what << " " << field;
      }
    };
    expect_refused(c.any_width, Damage::wider, "wider");
    expect_refused(c.any_type, Damage::other_type, "another type of");
    expect_refused(c.optional, Damage::missing, "without");
  }
}

std::string test_name(const testing::TestParamInfo<OpCase>& info) {
  std::string name = info.param.name;
  for (char& ch : name)
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  return name;
}

std::vector<OpCase> cases_with(bool gradients) {
  std::vector<OpCase> out;
  for (OpCase& c : all_op_cases())
    if (c.gradients.has_value() == gradients) out.push_back(std::move(c));
  return out;
}

INSTANTIATE_TEST_SUITE_P(All, Ops, testing::ValuesIn(all_op_cases()), test_name);
INSTANTIATE_TEST_SUITE_P(All, Forward, testing::ValuesIn(cases_with(false)), test_name);
INSTANTIATE_TEST_SUITE_P(All, Backward, testing::ValuesIn(cases_with(true)), test_name);

}  // namespace

void PrintTo(const OpCase& c, std::ostream* out) {
  *out << c.name;
}

}  // namespace lapidary
