#include "kernels/cuda/gemm.h"

#include <map>
#include <mutex>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_algorithms.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

cudaDataType_t blas_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDA_R_32F;
    case DType::bf16:
      return CUDA_R_16BF;
    default:
      fail("matrix products on the GPU take f32 and bf16, not {}", name_of(dtype));
  }
}

/// Largest power of two up to 16 that divides the address and the strides: what cuBLASLt may assume.
std::uint32_t alignment_of(const MatrixView& x, int batch) {
  const auto size = static_cast<std::uint64_t>(size_of(x.dtype));
  std::uint64_t bits = reinterpret_cast<std::uintptr_t>(x.data) | 16u;
  bits |= static_cast<std::uint64_t>(x.row_stride) * size;
  if (batch > 1) bits |= static_cast<std::uint64_t>(x.batch_stride) * size;
  return static_cast<std::uint32_t>(bits & (~bits + 1));
}

GemmKey key_of(const Gemm& g) {
  return {g.m,
          g.n,
          g.k,
          g.transpose_a,
          g.transpose_b,
          g.batch,
          g.beta == 0.0f ? 0 : 1,
          static_cast<std::int64_t>(g.a.dtype),
          static_cast<std::int64_t>(g.c.dtype),
          g.a.row_stride,
          g.b.row_stride,
          g.c.row_stride,
          g.a.batch_stride,
          g.b.batch_stride,
          g.c.batch_stride,
          alignment_of(g.a, g.batch),
          alignment_of(g.b, g.batch),
          alignment_of(g.c, g.batch)};
}

std::string describe(const Gemm& g) {
  return fmt::format("{} product [{}, {}] = [{}, {}]{} [{}, {}]{}, batch {}, result {}", name_of(g.a.dtype),
                     g.m, g.n, g.m, g.k, g.transpose_a ? " (transposed)" : "", g.k, g.n,
                     g.transpose_b ? " (transposed)" : "", g.batch, name_of(g.c.dtype));
}

/// The descriptors of one product shape and the algorithm chosen for it, kept until the process ends.
class Plan {
 public:
  Plan(const BlasContext& blas, const Gemm& g, cudaStream_t stream) {
    const std::string what = describe(g);
    blas_ok(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), what);
    // cuBLAS is column-major: it computes c^T = op(b)^T op(a)^T, with b in the first place.
    set_transpose(CUBLASLT_MATMUL_DESC_TRANSA, g.transpose_b, what);
    set_transpose(CUBLASLT_MATMUL_DESC_TRANSB, g.transpose_a, what);
    b_ = layout(g.b, g.transpose_b ? g.n : g.k, g.transpose_b ? g.k : g.n, g.batch, what);
    a_ = layout(g.a, g.transpose_a ? g.k : g.m, g.transpose_a ? g.m : g.k, g.batch, what);
    c_ = layout(g.c, g.m, g.n, g.batch, what);
    algorithm_ = choose(blas, g, stream, what);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void run(const BlasContext& blas, const Gemm& g, cudaStream_t stream) const {
    const cublasStatus_t status = run_with(algorithm_, blas, g, stream);
    if (status != CUBLAS_STATUS_SUCCESS) blas_ok(status, describe(g));
  }

 private:
  void set_transpose(cublasLtMatmulDescAttributes_t which, bool transpose, const std::string& what) {
    const cublasOperation_t op = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    blas_ok(cublasLtMatmulDescSetAttribute(operation_, which, &op, sizeof op), what);
  }

  static cublasLtMatrixLayout_t layout(const MatrixView& x, std::int64_t rows, std::int64_t cols, int batch,
                                       const std::string& what) {
    cublasLtMatrixLayout_t out = nullptr;
    blas_ok(cublasLtMatrixLayoutCreate(&out, blas_type(x.dtype), static_cast<std::uint64_t>(cols),
                                       static_cast<std::uint64_t>(rows), x.row_stride),
            what);
    if (batch > 1) {
      blas_ok(cublasLtMatrixLayoutSetAttribute(out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch),
              what);
      blas_ok(cublasLtMatrixLayoutSetAttribute(out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                               &x.batch_stride, sizeof x.batch_stride),
              what);
    }
    return out;
  }

  cublasStatus_t run_with(const cublasLtMatmulAlgo_t& algorithm, const BlasContext& blas, const Gemm& g,
                          cudaStream_t stream) const {
    void* c = const_cast<void*>(g.c.data);
    return cublasLtMatmul(blas.handle, operation_, &g.alpha, g.b.data, b_, g.a.data, a_, &g.beta, c, c_, c,
                          c_, &algorithm, blas.workspace, blas.workspace_bytes, stream);
  }

  cublasLtMatmulAlgo_t choose(const BlasContext& blas, const Gemm& g, cudaStream_t stream,
                              const std::string& what) const {
    GemmAlgorithms& known = gemm_algorithms();
    if (const auto found = known.find(key_of(g))) return *found;
    const double flops = 2.0 * static_cast<double>(g.m) * static_cast<double>(g.n) *
                         static_cast<double>(g.k) * static_cast<double>(g.batch);
    const bool measures = known.measuring && flops >= GemmAlgorithms::kWorthMeasuring;
    const auto candidates = ask(blas, g, measures ? GemmAlgorithms::kCandidates : 1, what);
    if (!measures) return candidates.front().algo;
    return known.measure(
        key_of(g), candidates,
        [&](const cublasLtMatmulAlgo_t& algorithm) { return run_with(algorithm, blas, g, stream); }, stream);
  }

  /// The library's suggestions, the best by its own reckoning first.
  std::vector<cublasLtMatmulHeuristicResult_t> ask(const BlasContext& blas, const Gemm& g, int count,
                                                   const std::string& what) const {
    cublasLtMatmulPreference_t preference = nullptr;
    blas_ok(cublasLtMatmulPreferenceCreate(&preference), what);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      blas_ok(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), what);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, blas.workspace_bytes);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(g.b, g.batch));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(g.a, g.batch));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(g.c, g.batch));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(g.c, g.batch));
    std::vector<cublasLtMatmulHeuristicResult_t> out(static_cast<std::size_t>(count));
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(blas.handle, operation_, b_, a_, c_, c_,
                                                                 preference, count, out.data(), &found);
    (void)cublasLtMatmulPreferenceDestroy(preference);
    blas_ok(status, what);
    require(found > 0, "cuBLASLt has no algorithm for the {}", what);
    out.resize(static_cast<std::size_t>(found));
    return out;
  }

  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
};

/// All plans, and the lock that guards them and gemm_algorithms().
struct Plans {
  std::mutex mutex;
  std::map<GemmKey, Plan> by_key;
};

Plans& plans() {
  static auto& all = *new Plans;  // never destroyed, as the backend
  return all;
}

const Plan& plan_for(const BlasContext& blas, const Gemm& g, cudaStream_t stream) {
  const std::lock_guard lock(plans().mutex);
  auto& by_key = plans().by_key;
  const GemmKey key = key_of(g);
  const auto found = by_key.find(key);
  if (found != by_key.end()) return found->second;
  return by_key.try_emplace(key, blas, g, stream).first->second;
}

MatrixView view_of(const Tensor& x) {
  return {x.data(), x.dtype(), x.rows() > 1 ? x.row_stride() : x.cols(), 0};
}

}  // namespace

void gemm(Stream& stream, const Gemm& g) {
  if (g.m == 0 || g.n == 0 || g.batch == 0) return;
  BlasContext& blas = static_cast<CudaBackend&>(stream.backend()).blas(stream);
  plan_for(blas, g, cuda_stream(stream)).run(blas, g, cuda_stream(stream));
}

void CudaBackend::measure_products(bool on) {
  const std::lock_guard lock(plans().mutex);
  if (on) plans().by_key.clear();
  gemm_algorithms().measuring = on;
}

void CudaBackend::save_products(const std::string& path, const std::string& run) {
  const std::lock_guard lock(plans().mutex);
  gemm_algorithms().save(path, name_, run);
}

bool CudaBackend::knows_products(const std::string& run) const {
  const std::lock_guard lock(plans().mutex);
  return gemm_algorithms().knows_run(run);
}

void CudaBackend::load_products(const std::string& path) {
  const std::lock_guard lock(plans().mutex);
  plans().by_key.clear();
  gemm_algorithms().load(path, name_);
}

void MatMul::cuda(Stream& stream) const {
  check(*this);
  Gemm g;
  g.a = view_of(a);
  g.b = view_of(b);
  g.c = view_of(c);
  g.m = c.rows();
  g.n = c.cols();
  g.k = transpose_a ? a.rows() : a.cols();
  g.transpose_a = transpose_a;
  g.transpose_b = transpose_b;
  g.alpha = static_cast<float>(alpha);
  g.beta = accumulate ? 1.0f : 0.0f;
  if (g.k == 0) {
    if (!accumulate) run(stream, Fill{c, 0.0});
    return;
  }
  gemm(stream, g);
}

}  // namespace lapidary
