// Which cuBLASLt algorithm computes which product: what was measured in this process or read from a file.
#pragma once
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/gemm.h"
#include "kernels/json.h"

namespace lapidary {

/// What an algorithm is chosen for: sizes, transpositions, types, strides and alignments. Equal keys run the
/// same algorithm, so equal calls give the same bits.
using GemmKey = std::array<std::int64_t, 18>;

class GemmAlgorithms {
 public:
  /// Products below this many operations are not worth a measurement: the library's first choice serves.
  static constexpr double kWorthMeasuring = 1e11;
  static constexpr int kCandidates = 24;

  bool measuring = false;

  std::optional<cublasLtMatmulAlgo_t> find(const GemmKey& key) const;
  /// The fastest of the candidates under lasting load; run(candidate) queues one product on the stream. Takes
  /// seconds.
  cublasLtMatmulAlgo_t measure(const GemmKey& key,
                               const std::vector<cublasLtMatmulHeuristicResult_t>& candidates,
                               const std::function<cublasStatus_t(const cublasLtMatmulAlgo_t&)>& run,
                               cudaStream_t stream);

  /// One JSON object a line: device, library version, and either key, the algorithm's bytes in hex and
  /// milliseconds, or the name of a run whose products are all there. Adds `run` to those.
  void save(const std::string& path, const std::string& device, const std::string& run);
  /// Replaces what is known. Lines of other devices or versions, and of bursts, are skipped; a damaged line
  /// is an Error.
  void load(const std::string& path, const std::string& device);
  bool knows_run(const std::string& run) const { return runs_.contains(run); }

 private:
  struct Entry {
    cublasLtMatmulAlgo_t algorithm{};
    double milliseconds = 0;
  };
  void read(const nlohmann::json& line, const std::string& where);

  std::map<GemmKey, Entry> entries_;
  std::set<std::string> runs_;
};

/// The process's. Guarded by the mutex of gemm()'s plans: use it through gemm.h and the backend.
GemmAlgorithms& gemm_algorithms();

}  // namespace lapidary
