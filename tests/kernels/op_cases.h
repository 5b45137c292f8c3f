// Every operation over a table of awkward shapes, written once for all backends and element types. A case
// knows its inputs, a naive reference in double that shares no code with the backends, how to run the
// operation, and how exact the result must be; ops_test.cpp turns each into tests.
#pragma once
#include "tests/kernels/op_run.h"

namespace lapidary {

/// Allowed error of a result, in units of the last place: |x - expected| <= (type u(T) + wide u(f32 or f64))
/// (|expected| + root mean square of all expected), with u half the distance of 1 to the next number. A wide
/// count of n suits a sum of about n^2 terms.
struct Bound {
  double type = 1;   ///< roundings to T
  double wide = 32;  ///< of what is computed in float32 (double for f64)
};

/// What a gradient test needs: which given array is the gradient of which reference output, and which result
/// is then the gradient of which given array.
struct Gradients {
  std::map<std::string, std::string> cotangents;  ///< given array -> output of the reference
  std::map<std::string, std::string> results;     ///< result of the run -> given array
  std::set<std::string> accumulated;              ///< results that start from accumulator_start()
  std::map<std::string, std::string> added_to;    ///< results that start from a given array
};

struct OpCase {
  std::string name;  ///< "RmsNorm.3x5"; up to the dot the operation's name, which its messages carry
  Arrays given;
  std::set<std::string> exact{};  ///< given arrays that are never rounded to T: integers, float32 tables
  /// Outputs of the forward from given arrays (rounded to T where T is smaller than double). The outputs are
  /// given to run() too, so that a backward finds what its forward saved.
  std::function<Arrays(const Arrays&)> reference;
  std::function<void(OpRun&)> run;
  std::map<std::string, Bound> bounds{};         ///< of results; others have Bound{}
  std::map<std::string, std::string> aliases{};  ///< allowed: output -> input, each tried alone
  std::optional<Gradients> gradients{};
  std::set<std::string> optional{};      ///< fields whose absence is no error
  std::set<std::string> any_type{};      ///< fields whose element type alone is never wrong
  std::set<std::string> any_width{};     ///< fields whose last dimension alone is never wrong
  std::set<std::string> ignores_nan{};   ///< given arrays that legitimately leave every result free of NaN
  bool same_bits_on_any_threads = true;  ///< false where BLAS decides the order of sums
};

std::vector<OpCase> matmul_cases();
std::vector<OpCase> norm_cases();
std::vector<OpCase> mlp_cases();
std::vector<OpCase> rope_cases();
std::vector<OpCase> attention_cases();
std::vector<OpCase> embedding_cases();
std::vector<OpCase> feature_cases();
std::vector<OpCase> loss_cases();
std::vector<OpCase> optimizer_cases();
std::vector<OpCase> elementwise_cases();
std::vector<OpCase> all_op_cases();

}  // namespace lapidary
