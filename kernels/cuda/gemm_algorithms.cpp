#include "kernels/cuda/gemm_algorithms.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>

#include "kernels/check.h"
#include "kernels/cuda/check.h"
#include "kernels/file.h"
#include "kernels/json.h"

namespace lapidary {

namespace {

constexpr std::int64_t kLargestFile = std::int64_t{16} << 20;

std::string to_hex(const cublasLtMatmulAlgo_t& algorithm) {
  std::string out;
  for (const std::uint64_t word : algorithm.data) out += fmt::format("{:016x}", word);
  return out;
}

cublasLtMatmulAlgo_t from_hex(const std::string& hex, const std::string& where) {
  cublasLtMatmulAlgo_t out{};
  constexpr std::size_t kDigits = 16;
  require(hex.size() == kDigits * std::size(out.data) &&
              hex.find_first_not_of("0123456789abcdef") == std::string::npos,
          "{}: an algorithm of {} characters, expected {} hexadecimal digits", where, hex.size(),
          kDigits * std::size(out.data));
  for (std::size_t i = 0; i < std::size(out.data); ++i)
    out.data[i] = std::stoull(hex.substr(i * kDigits, kDigits), nullptr, 16);
  return out;
}

constexpr double kNever = std::numeric_limits<double>::infinity();

/// Milliseconds of one of `count` runs after `warmup` others; kNever where one does not run.
double time_of(const std::function<cublasStatus_t()>& run, int warmup, int count, cudaStream_t stream) {
  cudaEvent_t from = nullptr, to = nullptr;
  cuda_ok(cudaEventCreate(&from), "creating an event");
  cuda_ok(cudaEventCreate(&to), "creating an event");
  bool good = true;
  for (int i = 0; good && i < warmup; ++i) good = run() == CUBLAS_STATUS_SUCCESS;
  cuda_ok(cudaEventRecord(from, stream), "recording an event");
  for (int i = 0; good && i < count; ++i) good = run() == CUBLAS_STATUS_SUCCESS;
  cuda_ok(cudaEventRecord(to, stream), "recording an event");
  cuda_ok(cudaEventSynchronize(to), "measuring a matrix product");
  float milliseconds = 0;
  cuda_ok(cudaEventElapsedTime(&milliseconds, from, to), "measuring a matrix product");
  cuda_ok(cudaEventDestroy(from), "destroying an event");
  cuda_ok(cudaEventDestroy(to), "destroying an event");
  return good ? static_cast<double>(milliseconds) / count : kNever;
}

// A burst says little: cool, an algorithm that needs more power may win that loses once the GPU is at its
// power limit, where runs spend their time. So each candidate runs for a while before and while it is timed,
// all in turn, and those far behind the best drop out after each round.
constexpr std::array<double, 3> kLimits = {1.06, 1.03, 1.0};
constexpr double kVisit = 40;                // milliseconds timed, after half as many that are not
constexpr const char* kLasting = "lasting";  // in a file: measured so, not in bursts as once

struct Contender {
  cublasLtMatmulAlgo_t algorithm{};
  std::vector<double> times;  // milliseconds; the first is a single run's

  double median() const {
    std::vector<double> sorted(times.begin() + (times.size() > 1 ? 1 : 0), times.end());
    std::ranges::sort(sorted);
    return sorted[sorted.size() / 2];
  }
};

}  // namespace

std::optional<cublasLtMatmulAlgo_t> GemmAlgorithms::find(const GemmKey& key) const {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return std::nullopt;
  return found->second.algorithm;
}

cublasLtMatmulAlgo_t GemmAlgorithms::measure(
    const GemmKey& key, const std::vector<cublasLtMatmulHeuristicResult_t>& candidates,
    const std::function<cublasStatus_t(const cublasLtMatmulAlgo_t&)>& run, cudaStream_t stream) {
  std::vector<Contender> left;
  for (const cublasLtMatmulHeuristicResult_t& candidate : candidates) {
    Contender c{candidate.algo, {}};
    c.times.push_back(time_of([&] { return run(c.algorithm); }, 1, 1, stream));
    if (c.times.front() < kNever) left.push_back(std::move(c));
  }
  if (left.empty()) left.push_back({candidates.front().algo, {kNever}});
  for (const double within : kLimits) {
    for (Contender& c : left) {
      const int count = 1 + static_cast<int>(kVisit / c.times.front());
      c.times.push_back(time_of([&] { return run(c.algorithm); }, count / 2, count, stream));
    }
    std::ranges::stable_sort(left, {}, &Contender::median);
    const double limit = within * left.front().median();
    std::erase_if(left, [&](const Contender& c) { return c.median() > limit; });
  }
  entries_[key] = {left.front().algorithm, left.front().median()};
  return left.front().algorithm;
}

void GemmAlgorithms::save(const std::string& path, const std::string& device, const std::string& run) {
  runs_.insert(run);
  std::string text;
  const auto add = [&](nlohmann::json line) {
    line["device"] = device;
    line["cublaslt"] = cublasLtGetVersion();
    text += line.dump() + '\n';
  };
  for (const auto& [key, entry] : entries_)
    add({{"key", key},
         {"algorithm", to_hex(entry.algorithm)},
         {"milliseconds", entry.milliseconds},
         {kLasting, true}});
  for (const std::string& known : runs_) add({{"run", known}});
  // Several processes may save at once: each writes a file of its own, the last one stays.
  const std::string fresh = fmt::format("{}.{}", path, getpid());
  if (const auto folder = std::filesystem::path(path).parent_path(); !folder.empty())
    std::filesystem::create_directories(folder);
  std::filesystem::remove(fresh);
  write_new_text_file(fresh, text);
  publish(fresh, path);
}

void GemmAlgorithms::read(const nlohmann::json& line, const std::string& where) {
  if (line.contains("run")) {
    runs_.insert(json_string(line, "run", where));
    return;
  }
  GemmKey key{};
  const nlohmann::json& numbers = json_member(line, "key", nlohmann::json::value_t::array, where);
  const std::vector<std::int64_t> counts = as_counts(numbers, where);
  require(counts.size() == key.size(), "{}: a key of {} numbers, expected {}", where, counts.size(),
          key.size());
  std::ranges::copy(counts, key.begin());
  entries_[key] = {from_hex(json_string(line, "algorithm", where), where), line.value("milliseconds", 0.0)};
}

void GemmAlgorithms::load(const std::string& path, const std::string& device) {
  entries_.clear();
  runs_.clear();
  if (!std::filesystem::exists(path)) return;
  const std::string text = read_text_file(path, kLargestFile);
  std::size_t begin = 0;
  for (int number = 1; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string where = fmt::format("{} line {}", path, number);
    const nlohmann::json line = parse_json(std::string_view(text).substr(begin, end - begin), where);
    begin = end + 1;
    const bool counts = line.contains("run") || line.contains(kLasting);
    if (counts && json_string(line, "device", where) == device &&
        json_count(line, "cublaslt", where) == static_cast<std::int64_t>(cublasLtGetVersion()))
      read(line, where);
  }
}

GemmAlgorithms& gemm_algorithms() {
  static auto& algorithms = *new GemmAlgorithms;  // never destroyed, as the backend
  return algorithms;
}

}  // namespace lapidary
