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

/// Milliseconds of `run`, the shorter of two rounds after a warm-up; infinity where it does not run.
double time_of(const std::function<cublasStatus_t()>& run, cudaStream_t stream) {
  constexpr int kRuns = 3;
  cudaEvent_t from = nullptr, to = nullptr;
  cuda_ok(cudaEventCreate(&from), "creating an event");
  cuda_ok(cudaEventCreate(&to), "creating an event");
  double best = std::numeric_limits<double>::infinity();
  bool good = run() == CUBLAS_STATUS_SUCCESS;
  for (int round = 0; good && round < 2; ++round) {
    cuda_ok(cudaEventRecord(from, stream), "recording an event");
    for (int i = 0; i < kRuns; ++i) good = run() == CUBLAS_STATUS_SUCCESS && good;
    cuda_ok(cudaEventRecord(to, stream), "recording an event");
    cuda_ok(cudaEventSynchronize(to), "measuring a matrix product");
    float milliseconds = 0;
    cuda_ok(cudaEventElapsedTime(&milliseconds, from, to), "measuring a matrix product");
    if (good) best = std::min(best, static_cast<double>(milliseconds) / kRuns);
  }
  cuda_ok(cudaEventDestroy(from), "destroying an event");
  cuda_ok(cudaEventDestroy(to), "destroying an event");
  return best;
}

}  // namespace

std::optional<cublasLtMatmulAlgo_t> GemmAlgorithms::find(const GemmKey& key) const {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return std::nullopt;
  return found->second.algorithm;
}

cublasLtMatmulAlgo_t GemmAlgorithms::measure(
    const GemmKey& key, const std::vector<cublasLtMatmulHeuristicResult_t>& candidates,
    const std::function<cublasStatus_t(const cublasLtMatmulAlgo_t&)>& run, cudaStream_t stream) {
  Entry best{candidates.front().algo, std::numeric_limits<double>::infinity()};
  for (const cublasLtMatmulHeuristicResult_t& candidate : candidates) {
    const double milliseconds = time_of([&] { return run(candidate.algo); }, stream);
    if (milliseconds < best.milliseconds) best = {candidate.algo, milliseconds};
  }
  entries_[key] = best;
  return best.algorithm;
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
    add({{"key", key}, {"algorithm", to_hex(entry.algorithm)}, {"milliseconds", entry.milliseconds}});
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
    if (json_string(line, "device", where) == device &&
        json_count(line, "cublaslt", where) == static_cast<std::int64_t>(cublasLtGetVersion()))
      read(line, where);
  }
}

GemmAlgorithms& gemm_algorithms() {
  static auto& algorithms = *new GemmAlgorithms;  // never destroyed, as the backend
  return algorithms;
}

}  // namespace lapidary
