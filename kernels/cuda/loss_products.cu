#include "kernels/cuda/loss_products.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/loss_epilogues.cuh"
#include "kernels/cuda/loss_plan.h"
#include "kernels/cuda/processors.h"
#include "kernels/cuda/tensor_map.h"

namespace lapidary {

namespace {

using namespace product;

static_assert(kProductRows == kTileM * Two::kM && Two::kM == Four::kM && Two::kM == Eight::kM &&
              kProductColumns == kTileN);

int tiles(std::int64_t size, int tile) {
  return static_cast<int>(ceil_div(size, tile));
}

/// A launch of `clusters` clusters; companion: as soon as those of the launch before all run.
template <class First, class Second>
cudaLaunchConfig_t launch_config(int clusters, bool companion, cudaLaunchAttribute& attribute) {
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(clusters * First::Cluster::kSize);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = kSharedBytes;
  config.attrs = &attribute;
  config.numAttrs = companion ? 1 : 0;
  return config;
}

/// Clusters of a kernel that run at a time on this GPU.
template <class First, class Second>
int resident_clusters() {
  static const int count = [] {
    cuda_ok(cudaFuncSetAttribute(kernel<First, Second>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kSharedBytes)),
            "asking for a product's shared memory");
    cudaLaunchAttribute attribute{};
    const cudaLaunchConfig_t config = launch_config<First, Second>(1, false, attribute);
    int clusters = 0;
    cuda_ok(cudaOccupancyMaxActiveClusters(&clusters, kernel<First, Second>, &config),
            "asking how many clusters fit");
    return clusters;
  }();
  return count;
}

template <class First, class Second>
void launch(Stream& stream, const First& first, const Second& second, int clusters, bool companion = false) {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config = launch_config<First, Second>(clusters, companion, attribute);
  config.stream = cuda_stream(stream);
  cuda_ok(cudaLaunchKernelEx(&config, kernel<First, Second>, first, second), "launching a product");
  launched("a product of the loss head");
}

/// A product alone.
template <class P>
void launch(Stream& stream, P& product) {
  product.clusters = std::min(resident_clusters<P, Nothing>(), product.work.units());
  launch(stream, product, Nothing{}, product.clusters);
}

/// Launches a product of clusters of two beside the larger ones of the launch before.
template <class P>
void launch_companion(Stream& stream, P& product, int clusters) {
  if (product.work.units() == 0) return;
  product.clusters = std::min({clusters, resident_clusters<P, Nothing>(), product.work.units()});
  launch(stream, product, Nothing{}, product.clusters, true);
}

/// Clusters of two that find room beside so many of another size.
template <class C>
int spare_clusters(int clusters) {
  return std::max(0, processors() - clusters * C::kSize) / Two::kSize;
}

/// How product.cuh expects its operands.
template <class C>
CUtensorMap map_a(const Tensor& x, Major major) {
  return major == Major::k ? make_tensor_map(x, kTileM / C::kN, kTileK)
                           : make_tensor_map(x, kTileK / C::kN, 64);
}
template <class C>
CUtensorMap map_b(const Tensor& x, Major major) {
  return major == Major::k ? make_tensor_map(x, kTileN / C::kM, kTileK)
                           : make_tensor_map(x, kTileK / C::kM, 64);
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

template <class C, bool kStore>
using ScoreProduct = Product<C, Operand<Major::k, true>, Operand<Major::k>, ScaledExp<kStore>>;

/// Tiles [first, last) of the table's rows.
template <class C, bool kStore>
ScoreProduct<C, kStore> score_part(const LossScores& op, const typename ScaledExp<kStore>::Terms& terms,
                                   int first, int last) {
  ScoreProduct<C, kStore> out{{map_a<C>(op.hidden, Major::k), map_b<C>(op.table, Major::k), {}}, {}, terms};
  if constexpr (kStore) out.maps.c = make_tensor_map(op.scores, kTileM, 64);
  out.work.rows = tiles(op.hidden.rows(), kTileM * C::kM);
  out.work.columns = tiles(last - first, C::kN);
  out.work.steps = tiles(op.hidden.cols(), kTileK);
  out.work.group = std::min(out.work.rows, 8);
  out.work.first_n = first;
  return out;
}

/// The product, shared out such that all multiprocessors are done at the same time.
template <bool kStore>
void launch_scores(Stream& stream, const LossScores& op, const typename ScaledExp<kStore>::Terms& terms) {
  auto main = score_part<Four, kStore>(op, terms, 0, terms.tiles);
  const int resident = resident_clusters<decltype(main), Nothing>(), spare = spare_clusters<Four>(resident);
  if (spare > 0) {
    const int parts = resident * Four::kN + spare;
    main.work.columns = std::max(1, (terms.tiles * resident + parts / 2) / parts);
  }
  launch(stream, main);
  const int done = std::min(main.work.columns * Four::kN, terms.tiles);
  auto companion = score_part<Two, kStore>(op, terms, done, terms.tiles);
  launch_companion(stream, companion, spare);
}

template <bool kStore>
void score_product_as(Stream& stream, const LossScores& op) {
  const auto tokens = static_cast<int>(op.hidden.rows()), rows = static_cast<int>(op.table.rows()),
             columns = tiles(rows, kTileN), first_row = static_cast<int>(op.first_row);
  const ScoreScratch plan(tokens, rows);
  const auto stride = static_cast<int>(plan.stride);
  auto* scratch = static_cast<std::byte*>(op.scratch.data());
  auto* partial = reinterpret_cast<float*>(scratch);
  auto* best = reinterpret_cast<unsigned long long*>(scratch + plan.partial);
  auto* target = reinterpret_cast<float*>(scratch + plan.partial + plan.best);
  const auto* targets = ptr<std::int32_t>(op.targets);
  const SoftCap cap(op.cap);
  cuda_ok(cudaMemsetAsync(best, 0, plan.best, cuda_stream(stream)), "clearing the best logits");
  launch_scores<kStore>(stream, op,
                        {cap, tokens, rows, stride, first_row, targets, partial, best, target,
                         ptr_or_null<float>(op.tile_best), columns});
  finish_stats<<<static_cast<unsigned>(ceil_div(tokens, kFinishRows)), kFinishRows * kFinishParts, 0,
                 cuda_stream(stream)>>>({cap, static_cast<float>(op.cap), tokens, rows, stride, columns,
                                         first_row, targets, partial, best, target, ptr<float>(op.stats)});
  launched("the loss head's statistics");
}

/// Parts of k for a product with few tiles: the fewest that keep all clusters busy to within 1 %.
int splits_for(const Work& work, int clusters) {
  constexpr int kMost = 128, kShortest = 32;
  const int tiles = work.rows * work.columns;
  const auto efficiency = [&](int splits) {
    const int units = tiles * splits, rounds = (units + clusters - 1) / clusters;
    return static_cast<double>(units) / (static_cast<double>(rounds) * clusters);
  };
  int best = 1;
  for (int splits = 2; splits <= kMost && work.steps / splits >= kShortest; ++splits)
    if (efficiency(splits) > efficiency(best) + 0.01) best = splits;
  return best;
}

template <class C>
using HiddenProduct = Product<C, Operand<Major::k>, Operand<Major::mn>, AddInOrder>;
template <class C, class T>
using TableProduct = Product<C, Operand<Major::mn>, Operand<Major::mn, true>, AddToTable<T>>;

}  // namespace

void score_product(Stream& stream, const LossScores& op) {
  if (op.scores) {
    score_product_as<true>(stream, op);
  } else {
    score_product_as<false>(stream, op);
  }
}

namespace {

template <class C>
HiddenProduct<C> hidden_product(const GradientProducts& p) {
  HiddenProduct<C> out{
      {map_a<C>(p.scores, Major::k), map_b<C>(p.table, Major::mn), make_tensor_map(p.d_hidden, kTileM, 32)},
      {},
      {p.parts, tiles(p.d_hidden.cols(), kTileN)}};
  out.work.rows = tiles(p.d_hidden.rows(), kTileM * C::kM);
  out.work.columns = tiles(p.d_hidden.cols(), kTileN * C::kN);
  out.work.steps = tiles(p.table.rows(), kTileK);
  out.work.group = out.work.rows;
  return out;
}

/// Clusters' rows [first, last) of the table.
template <class C, class T>
TableProduct<C, T> table_product(const GradientProducts& p, int first, int last) {
  TableProduct<C, T> out{{map_a<C>(p.scores, Major::mn), map_b<C>(p.scaled, Major::mn),
                          make_tensor_map(p.d_table, kTileM, AddToTable<T>::kColumns)},
                         {},
                         {}};
  out.work.rows = last - first;
  out.work.columns = tiles(p.d_table.cols(), kTileN * C::kN);
  out.work.steps = tiles(p.scaled.rows(), kTileK);
  out.work.first_m = first * C::kM;
  return out;
}

/// Rows of clusters that the table has.
int table_rows(const GradientProducts& p) {
  return tiles(p.d_table.rows(), kTileM * Two::kM);
}

/// Both products in one launch, and some of the second one's rows beside it, shared out such that all
/// multiprocessors are done at the same time.
void launch_together(Stream& stream, const GradientProducts& p) {
  constexpr double kTraffic = 3.0;  // what a tile's way from and to memory costs, in steps of k: measured
  using Hidden = HiddenProduct<Eight>;
  using Table = TableProduct<Eight, float>;
  const int rows = table_rows(p);
  auto hidden = hidden_product<Eight>(p);
  auto table = table_product<Eight, float>(p, 0, rows);
  // At least one cluster for each product; those that find no room at once come later.
  const int resident = std::max(2, resident_clusters<Hidden, Table>()),
            spare = spare_clusters<Eight>(resident);
  const double hidden_time = static_cast<double>(hidden.work.units()) * hidden.work.steps,
               table_time = static_cast<double>(table.work.units()) * (table.work.steps + kTraffic),
               clusters = resident + spare * static_cast<double>(Two::kSize) / Eight::kSize;
  const auto share = static_cast<int>(std::lround(clusters * hidden_time / (hidden_time + table_time)));
  hidden.clusters = std::clamp(share, 1, resident - 1);
  table.clusters = resident - hidden.clusters;
  hidden.work.splits = splits_for(hidden.work, hidden.clusters);
  table.work.rows = static_cast<int>(std::ceil(rows * table.clusters / (clusters - hidden.clusters)));
  launch(stream, hidden, table, resident);
  auto companion = table_product<Two, float>(p, table.work.rows, rows);
  launch_companion(stream, companion, spare);
}

/// One product after the other.
void launch_in_turn(Stream& stream, const GradientProducts& p) {
  auto hidden = hidden_product<Two>(p);
  hidden.work.splits = splits_for(hidden.work, resident_clusters<HiddenProduct<Two>, Nothing>());
  launch(stream, hidden);
  auto table = table_product<Two, Bf16>(p, 0, table_rows(p));
  launch(stream, table);
}

}  // namespace

void gradient_products(Stream& stream, const GradientProducts& p) {
  const std::int64_t counters = product_tiles(p.d_hidden.rows(), kProductRows) * Two::kM *
                                product_tiles(p.d_hidden.cols(), kProductColumns);
  cuda_ok(cudaMemsetAsync(p.parts, 0, static_cast<std::size_t>(counters) * sizeof(int), cuda_stream(stream)),
          "clearing a product's counters");
  if (p.d_table.dtype() == DType::f32) return launch_together(stream, p);
  // Half the traffic: measured faster in turn.
  if (p.d_table.dtype() == DType::bf16) return launch_in_turn(stream, p);
  refuse("LossGradient", p.d_table.dtype());
}

}  // namespace lapidary
