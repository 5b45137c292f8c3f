// Table look-ups and their backwards. A backward sums the rows that share an id in the order of the tokens:
// the tokens are first ranked by (id, position), then one block per id walks over its segment.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/segments.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kThreads = 128;

template <class T, int W>
__global__ void embedding_lookup(const std::int32_t* ids, const T* table, std::int64_t first_row,
                                 std::int64_t rows, float scale, T* out, int width) {
  const std::int64_t token = blockIdx.x, row = ids[token] - first_row;
  const bool here = ids[token] >= 0 && row >= 0 && row < rows;
  for (int at = static_cast<int>(threadIdx.x) * W; at < width; at += kThreads * W) {
    float y[W] = {};
    if (here) {
      const auto x = Pack<T, W>::load(table + row * width + at);
#pragma unroll
      for (int i = 0; i < W; ++i) y[i] = x.get(i) * scale;
    }
    Pack<T, W>::from(y).store(out + token * width + at);
  }
}

/// Row of the gradient table that entry e adds to, or -1. `per_token` entries share a row of the gradient.
struct TokenKeys {
  const std::int32_t* ids;
  std::int64_t first_row, rows;
  std::int32_t padding_id;
  int per_token;
  __device__ std::int32_t key(std::int64_t e) const {
    const std::int32_t id = ids[e];
    const std::int64_t row = id - first_row;
    return id < 0 || id == padding_id || row < 0 || row >= rows ? -1 : static_cast<std::int32_t>(row);
  }
};

/// Columns select rows 2 column of the table seen as [2 P, D], rows its rows 2 row + 1.
struct GridKeys {
  const std::int32_t* xy;
  static constexpr int per_token = 2;
  __device__ std::int32_t key(std::int64_t e) const { return 2 * xy[e] + static_cast<std::int32_t>(e % 2); }
};

/// order[place of e among all entries by (key, e), keys of -1 last] = e. Counting is quadratic, but cheap
/// against a step even for 10^5 tokens, and needs no scratch beside the result. A block ranks 32 entries;
/// each of its warps counts in a part of every tile of keys.
constexpr int kRankThreads = 256, kTileKeys = 1024;
template <class Keys>
__global__ void __launch_bounds__(kRankThreads)
    rank_entries(Keys keys, std::int64_t entries, std::int32_t* order) {
  constexpr int kWarps = kRankThreads / 32, kPart = kTileKeys / kWarps;
  __shared__ unsigned tile[kTileKeys];
  __shared__ int counts[kWarps][32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto key = [&](std::int64_t e) { return e < entries ? static_cast<unsigned>(keys.key(e)) : ~0u; };
  const std::int64_t own = static_cast<std::int64_t>(blockIdx.x) * 32, e = own + lane;
  const unsigned mine = key(e), *part = tile + warp * kPart;
  int count = 0;
  for (std::int64_t base = 0; base < entries; base += kTileKeys) {
    for (int i = static_cast<int>(threadIdx.x); i < kTileKeys; i += kRankThreads) tile[i] = key(base + i);
    __syncthreads();
    const std::int64_t first = base + warp * kPart;
    if (first + kPart <= own) {
      for (int i = 0; i < kPart; ++i) count += part[i] <= mine;
    } else if (first > own) {
      for (int i = 0; i < kPart; ++i) count += part[i] < mine;
    } else {
      for (int i = 0; i < kPart; ++i) count += part[i] < mine || (part[i] == mine && first + i < e);
    }
    __syncthreads();
  }
  counts[warp][lane] = count;
  __syncthreads();
  if (warp > 0 || e >= entries) return;
  int place = 0;
  for (int w = 0; w < kWarps; ++w) place += counts[w][lane];
  order[place] = static_cast<std::int32_t>(e);
}

/// The segment of equal keys that begins at the sorted entry `first`: its row, columns from `at` on, where
/// there are any. Whole warps.
template <class Keys, class T, class A, int W>
__device__ inline void add_segment(const Keys& keys, std::int64_t first, std::int64_t entries,
                                   const std::int32_t* order, const T* d, const float* weights, float scale,
                                   A* d_table, int width, int at) {
  constexpr int kAhead = 8;  // independent loads in flight
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int32_t row = keys.key(order[first]);
  A* to = d_table + static_cast<std::int64_t>(row) * width;
  float before[W], sum[W] = {};
  if (at < width) load_floats(to, at, before);
  int count = 32;
  for (std::int64_t i = first; count == 32; i += 32) {
    // Each lane looks one entry up; those of the segment come first.
    const std::int32_t entry = i + lane < entries ? order[i + lane] : -1;
    const bool is_mine = entry >= 0 && keys.key(entry) == row;
    const float weight = is_mine && weights ? weights[entry] : 1.0f;
    count = __popc(__ballot_sync(0xffffffffu, is_mine));
    for (int j = 0; j < count; j += kAhead) {
      Pack<T, W> x[kAhead] = {};
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const std::int64_t token = __shfl_sync(0xffffffffu, entry, (j + k) % 32) / keys.per_token;
        if (j + k < count && at < width) x[k] = Pack<T, W>::load(d + token * width + at);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const float factor = __shfl_sync(0xffffffffu, weight, (j + k) % 32);
        if (j + k >= count) break;
#pragma unroll
        for (int w = 0; w < W; ++w) sum[w] += factor * x[k].get(w);
      }
    }
  }
  if (at >= width) return;
#pragma unroll
  for (int w = 0; w < W; ++w) before[w] += scale * sum[w];
  store_floats(to, at, before);
}

/// Sorted entries in turn, a slice of columns a block; the first entry of a segment does its work.
template <class Keys, class T, class A, int W>
__global__ void __launch_bounds__(kThreads)
    add_segments(Keys keys, std::int64_t entries, const std::int32_t* order, const T* d, const float* weights,
                 float scale, A* d_table, int width) {
  const int at = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * W;
  for (std::int64_t first = blockIdx.x; first < entries; first += gridDim.x) {
    const std::int32_t row = keys.key(order[first]);
    if (row < 0) return;  // these come last
    if (first > 0 && keys.key(order[first - 1]) == row) continue;
    add_segment<Keys, T, A, W>(keys, first, entries, order, d, weights, scale, d_table, width, at);
  }
}

template <class Keys>
void add_by_key(Stream& stream, const char* op, const Keys& keys, std::int64_t entries, const Tensor& d,
                const float* weights, double scale, const Tensor& d_table, std::int32_t* order) {
  if (entries == 0) return;
  const cudaStream_t native = cuda_stream(stream);
  rank_entries<<<blocks_for(entries, 32), kRankThreads, 0, native>>>(keys, entries, order);
  launched(op);
  const std::int64_t width = d.cols();
  with_row_type(op, d.dtype(), aligned(16, {&d, &d_table}), [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    constexpr int W = RowShape<T, vector>::W;
    with_float_type(op, d_table.dtype(), [&](auto gradient) {
      using A = typename decltype(gradient)::type;
      const dim3 grid(static_cast<unsigned>(entries / keys.per_token),
                      blocks_for(ceil_div(width, W), kThreads));
      add_segments<Keys, T, A, W><<<grid, kThreads, 0, native>>>(keys, entries, order, ptr<T>(d), weights,
                                                                 static_cast<float>(scale), ptr<A>(d_table),
                                                                 static_cast<int>(width));
    });
  });
  launched(op);
}

template <class T, int W, bool kScatter>
__global__ void move_rows(const T* from, const std::int32_t* index, T* to, int width) {
  const std::int64_t m = blockIdx.x, other = index[m];
  const T* in = from + (kScatter ? m : other) * width;
  T* out = to + (kScatter ? other : m) * width;
  for (int at = static_cast<int>(threadIdx.x) * W; at < width; at += kThreads * W)
    Pack<T, W>::load(in + at).store(out + at);
}

template <bool kScatter>
void move(Stream& stream, const char* op, const Tensor& from, const Tensor& index, const Tensor& to) {
  const std::int64_t count = index.numel();
  if (count == 0) return;
  with_row_type(op, from.dtype(), aligned(16, {&from, &to}), [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    constexpr int W = RowShape<T, vector>::W;
    move_rows<T, W, kScatter><<<static_cast<unsigned>(count), kThreads, 0, cuda_stream(stream)>>>(
        ptr<T>(from), ptr<std::int32_t>(index), ptr<T>(to), static_cast<int>(from.cols()));
  });
  launched(op);
}

template <class T, int W>
__global__ void grid_embedding(T* x, const T* table, const std::int32_t* xy, int width) {
  const std::int64_t m = blockIdx.x;
  const T* column = table + static_cast<std::int64_t>(xy[2 * m]) * 2 * width;
  const T* row = table + (static_cast<std::int64_t>(xy[2 * m + 1]) * 2 + 1) * width;
  for (int at = static_cast<int>(threadIdx.x) * W; at < width; at += kThreads * W) {
    const auto a = Pack<T, W>::load(column + at), b = Pack<T, W>::load(row + at);
    T* to = x + m * width + at;
    const auto before = Pack<T, W>::load(to);
    float y[W];
#pragma unroll
    for (int i = 0; i < W; ++i) y[i] = before.get(i) + rounded<T>(a.get(i) + b.get(i));
    Pack<T, W>::from(y).store(to);
  }
}

std::int32_t* as_order(const Tensor& scratch) {
  return reinterpret_cast<std::int32_t*>(scratch.data());
}

}  // namespace

void add_rows_by_id(Stream& stream, const char* op, const IdRows& rows, const Tensor& d, double scale,
                    const Tensor& d_table, std::int32_t* order) {
  const TokenKeys keys{ptr<std::int32_t>(rows.ids), rows.first_row, d_table.rows(), rows.padding_id,
                       rows.per_row};
  add_by_key(stream, op, keys, rows.ids.numel(), d, rows.weights, scale, d_table, order);
}

void EmbeddingLookup::cuda(Stream& stream) const {
  check(*this);
  if (ids.numel() == 0) return;
  with_row_type("EmbeddingLookup", table.dtype(), aligned(16, {&table, &out}), [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    constexpr int W = RowShape<T, vector>::W;
    embedding_lookup<T, W><<<static_cast<unsigned>(ids.numel()), kThreads, 0, cuda_stream(stream)>>>(
        ptr<std::int32_t>(ids), ptr<T>(table), first_row, table.rows(), static_cast<float>(scale),
        ptr<T>(out), static_cast<int>(table.cols()));
  });
  launched("EmbeddingLookup");
}

void EmbeddingBackward::cuda(Stream& stream) const {
  check(*this);
  add_rows_by_id(stream, "EmbeddingBackward", {ids, first_row, padding_id}, d_out, scale, d_table,
                 as_order(scratch));
}

void ScatterRows::cuda(Stream& stream) const {
  check(*this);
  move<true>(stream, "ScatterRows", rows, index, out);
}

void GatherRows::cuda(Stream& stream) const {
  check(*this);
  move<false>(stream, "GatherRows", in, index, rows);
}

void GridEmbedding::cuda(Stream& stream) const {
  check(*this);
  if (x.rows() == 0) return;
  const bool vector = aligned(16, {&x}) && reinterpret_cast<std::uintptr_t>(table.data()) % 16 == 0;
  with_row_type("GridEmbedding", x.dtype(), vector, [&](auto type, auto is_vector) {
    using T = typename decltype(type)::type;
    constexpr int W = RowShape<T, is_vector>::W;
    grid_embedding<T, W><<<static_cast<unsigned>(x.rows()), kThreads, 0, cuda_stream(stream)>>>(
        ptr<T>(x), ptr<T>(table), ptr<std::int32_t>(xy), static_cast<int>(x.cols()));
  });
  launched("GridEmbedding");
}

void GridEmbeddingBackward::cuda(Stream& stream) const {
  check(*this);
  const GridKeys keys{ptr<std::int32_t>(xy)};
  add_by_key(stream, "GridEmbeddingBackward", keys, 2 * d.rows(), d, nullptr, 1.0, d_table,
             as_order(scratch));
}

}  // namespace lapidary
