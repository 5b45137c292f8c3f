#include "kernels/cuda/loss_products.h"

#include <cmath>

#include "kernels/cuda/loss_epilogues.cuh"
#include "kernels/cuda/loss_plan.h"
#include "kernels/cuda/tensor_map.h"

namespace lapidary {

namespace {

using namespace product;

static_assert(kProductRows == kTileM * kCluster && kProductColumns == kTileN);

int tiles(std::int64_t size, int tile) {
  return static_cast<int>(ceil_div(size, tile));
}

/// Clusters of a kernel that run at a time on this GPU.
template <class First, class Second>
int resident_clusters() {
  static const int count = [] {
    cuda_ok(cudaFuncSetAttribute(kernel<First, Second>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kSharedBytes)),
            "asking for a product's shared memory");
    cudaLaunchConfig_t config{};
    config.gridDim = kCluster;
    config.blockDim = kThreads;
    config.dynamicSmemBytes = kSharedBytes;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {kCluster, 1, 1};
    config.attrs = &cluster;
    config.numAttrs = 1;
    int clusters = 0;
    cuda_ok(cudaOccupancyMaxActiveClusters(&clusters, kernel<First, Second>, &config),
            "asking how many clusters fit");
    return clusters;
  }();
  return count;
}

/// All clusters run at a time, which parts of a sum that wait for others rely on.
template <class First, class Second>
void launch(Stream& stream, const First& first, const Second& second, int clusters) {
  kernel<First, Second>
      <<<static_cast<unsigned>(clusters * kCluster), kThreads, kSharedBytes, cuda_stream(stream)>>>(first,
                                                                                                    second);
  launched("a product of the loss head");
}

template <class P>
void launch(Stream& stream, P& product) {
  product.clusters = std::min(resident_clusters<P, Nothing>(), product.work.units());
  launch(stream, product, Nothing{}, product.clusters);
}

/// How product.cuh expects its operands.
CUtensorMap map_a(const Tensor& x, Major major) {
  return major == Major::k ? make_tensor_map(x, kTileM, kTileK) : make_tensor_map(x, kTileK, 64);
}
CUtensorMap map_b(const Tensor& x, Major major) {
  return major == Major::k ? make_tensor_map(x, kTileN / 2, kTileK) : make_tensor_map(x, kTileK / 2, 64);
}

struct FinishTerms {
  SoftCap soft_cap;
  float cap;
  int rows, columns, stride, parts, first_row;
  const std::int32_t* targets;
  const float* partial;
  const unsigned long long* best;
  const float* target;
  float* stats;
};

constexpr int kFinishRows = 8, kFinishParts = 64;  // a sector of rows; many blocks and threads, for latency

/// Adds a row's sums over the tiles, in a fixed order, and writes its statistics.
__global__ void __launch_bounds__(kFinishRows* kFinishParts) finish_stats(FinishTerms t) {
  __shared__ double sums[3][kFinishParts][kFinishRows];
  const int lane = static_cast<int>(threadIdx.x) % kFinishRows,
            part = static_cast<int>(threadIdx.x) / kFinishRows;
  const int row = static_cast<int>(blockIdx.x) * kFinishRows + lane;
  double mine[3] = {};
  for (int tile = part; tile < t.parts; tile += kFinishParts) {
#pragma unroll
    for (int k = 0; k < 3; ++k)
      mine[k] += t.partial[(static_cast<std::int64_t>(tile) * 3 + k) * t.stride + row];
  }
#pragma unroll
  for (int k = 0; k < 3; ++k) sums[k][part][lane] = mine[k];
  __syncthreads();
  if (part > 0 || row >= t.rows) return;
  for (int p = 1; p < kFinishParts; ++p) {
#pragma unroll
    for (int k = 0; k < 3; ++k) mine[k] += sums[k][p][lane];
  }
  const int outside = t.parts * kTileN - t.columns;  // columns of the last tile that are none of the table's
  mine[0] -= outside * static_cast<double>(t.soft_cap.four_exp(0.0f));
  const double cap = t.cap;
  const auto capped = [&](float z) { return t.cap * (2.0f * t.soft_cap.logistic(z) - 1.0f); };
  const int target = t.targets[row] < 0 ? -1 : t.targets[row] - t.first_row;
  const unsigned long long best = t.best[row];
  const auto bits = static_cast<unsigned>(best >> 32);
  const float top = __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
  float* stats = t.stats + static_cast<std::int64_t>(row) * kLossStats;
  stats[kLossMax] = t.cap;
  stats[kLossSum] = static_cast<float>(mine[0] / 4);
  stats[kLossWeightedSum] = static_cast<float>((2 * mine[1] - mine[0]) * cap / 4);
  stats[kLossLogitSum] = static_cast<float>((2 * mine[2] - t.columns) * cap);
  stats[kLossTarget] = target >= 0 && target < t.columns ? capped(t.target[row]) : 0.0f;
  stats[kLossBest] = capped(top);
  stats[kLossBestId] =
      static_cast<float>(t.first_row + static_cast<int>(0xffffffffu - static_cast<unsigned>(best)));
}

template <bool kStore>
void score_product_as(Stream& stream, const LossScores& op) {
  const std::int64_t tokens = op.hidden.rows(), rows = op.table.rows();
  const ScoreScratch plan(tokens, rows);
  auto* scratch = static_cast<std::byte*>(op.scratch.data());
  auto* partial = reinterpret_cast<float*>(scratch);
  auto* best = reinterpret_cast<unsigned long long*>(scratch + plan.partial);
  auto* target = reinterpret_cast<float*>(scratch + plan.partial + plan.best);
  cuda_ok(cudaMemsetAsync(best, 0, plan.best, cuda_stream(stream)), "clearing the best logits");
  Work work{};
  work.pairs = tiles(tokens, kTileM * kCluster);
  work.columns = tiles(rows, kTileN);
  work.steps = tiles(op.hidden.cols(), kTileK);
  work.splits = 1;
  work.group = std::min(work.pairs, 8);
  const SoftCap cap(op.cap);
  Product<Major::k, Major::k, ScaledExp<kStore>> product{
      {map_a(op.hidden, Major::k), map_b(op.table, Major::k), {}},
      work,
      {cap, static_cast<int>(tokens), static_cast<int>(rows), static_cast<int>(plan.stride),
       static_cast<int>(op.first_row), ptr<std::int32_t>(op.targets), partial, best, target,
       ptr_or_null<float>(op.tile_best), work.columns}};
  if constexpr (kStore) product.maps.c = make_tensor_map(op.scores, kTileM, 64);
  launch(stream, product);
  finish_stats<<<static_cast<unsigned>(ceil_div(tokens, kFinishRows)), kFinishRows * kFinishParts, 0,
                 cuda_stream(stream)>>>({cap, static_cast<float>(op.cap), static_cast<int>(tokens),
                                         static_cast<int>(rows), static_cast<int>(plan.stride), work.columns,
                                         static_cast<int>(op.first_row), ptr<std::int32_t>(op.targets),
                                         partial, best, target, ptr<float>(op.stats)});
  launched("the loss head's statistics");
}

/// Parts of k for a product with few tiles: the fewest that keep all clusters busy to within 1 %.
int splits_for(const Work& work, int clusters) {
  constexpr int kMost = 128, kShortest = 32;
  const int tiles = work.pairs * work.columns;
  const auto efficiency = [&](int splits) {
    const int units = tiles * splits, rounds = (units + clusters - 1) / clusters;
    return static_cast<double>(units) / (static_cast<double>(rounds) * clusters);
  };
  int best = 1;
  for (int splits = 2; splits <= kMost && work.steps / splits >= kShortest; ++splits)
    if (efficiency(splits) > efficiency(best) + 0.01) best = splits;
  return best;
}

using HiddenProduct = Product<Major::k, Major::mn, AddInOrder>;
template <class T>
using TableProduct = Product<Major::mn, Major::mn, AddToTable<T>>;

}  // namespace

void score_product(Stream& stream, const LossScores& op) {
  if (op.scores) {
    score_product_as<true>(stream, op);
  } else {
    score_product_as<false>(stream, op);
  }
}

namespace {

/// Both products in one launch, the clusters shared out by arithmetic.
template <class T>
void launch_together(Stream& stream, HiddenProduct& hidden, TableProduct<T>& table) {
  const int clusters = resident_clusters<HiddenProduct, TableProduct<T>>();
  const auto first = static_cast<double>(hidden.work.tile_steps()),
             second = static_cast<double>(table.work.tile_steps());
  hidden.clusters =
      std::clamp(static_cast<int>(std::lround(clusters * first / (first + second))), 1, clusters - 1);
  table.clusters = clusters - hidden.clusters;
  hidden.work.splits = splits_for(hidden.work, hidden.clusters);
  launch(stream, hidden, table, clusters);
}

HiddenProduct hidden_product(const GradientProducts& p) {
  HiddenProduct out{
      {map_a(p.scores, Major::k), map_b(p.table, Major::mn), make_tensor_map(p.d_hidden, kTileM, 32)},
      {},
      {}};
  out.work.pairs = tiles(p.d_hidden.rows(), kTileM * kCluster);
  out.work.columns = tiles(p.d_hidden.cols(), kTileN);
  out.work.steps = tiles(p.table.rows(), kTileK);
  out.work.group = out.work.pairs;
  out.terms = {p.parts, out.work.columns};
  return out;
}

template <class T>
TableProduct<T> table_product(const GradientProducts& p) {
  TableProduct<T> out{{map_a(p.scores, Major::mn), map_b(p.scaled, Major::mn),
                       make_tensor_map(p.d_table, kTileM, AddToTable<T>::kColumns)},
                      {},
                      {}};
  out.work.pairs = tiles(p.d_table.rows(), kTileM * kCluster);
  out.work.columns = tiles(p.d_table.cols(), kTileN);
  out.work.steps = tiles(p.scaled.rows(), kTileK);
  out.work.splits = out.work.group = 1;
  return out;
}

}  // namespace

void gradient_products(Stream& stream, const GradientProducts& p) {
  HiddenProduct hidden = hidden_product(p);
  const auto counters = static_cast<std::size_t>(hidden.work.pairs * kCluster * hidden.work.columns);
  cuda_ok(cudaMemsetAsync(p.parts, 0, counters * sizeof(int), cuda_stream(stream)),
          "clearing a product's counters");
  if (p.d_table.dtype() == DType::f32) {
    TableProduct<float> table = table_product<float>(p);
    launch_together(stream, hidden, table);
    return;
  }
  if (p.d_table.dtype() != DType::bf16) refuse("LossGradient", p.d_table.dtype());
  // Half the traffic: measured faster one after the other.
  hidden.work.splits = splits_for(hidden.work, resident_clusters<HiddenProduct, Nothing>());
  launch(stream, hidden);
  TableProduct<Bf16> table = table_product<Bf16>(p);
  launch(stream, table);
}

}  // namespace lapidary
