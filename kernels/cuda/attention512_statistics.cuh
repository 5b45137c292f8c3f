// What the backward for head dimension 512 needs to know of each row: its log-sum-exp in log2, and the dot
// product of output and its gradient. Reading both is all the work, so a warp of every CTA does it beside the
// products, for the rows in their order; those that the first products need are prepared before.
#pragma once
#include "kernels/cuda/attention512_tasks.cuh"
#include "kernels/cuda/hopper.cuh"

namespace lapidary::attention512 {

using namespace hopper;

constexpr int kStatisticsRows = 16, kStatisticsSlots = 4;
constexpr int kStatisticsUnit = 64;  ///< rows that a warp takes at a time

/// 16 rows of 64 columns of output and of its gradient, in turn.
struct StatisticsBuffers {
  alignas(1024) std::byte rows[kStatisticsSlots][2][kStatisticsRows * 64 * 2];
  alignas(8) std::uint64_t full[kStatisticsSlots], empty[kStatisticsSlots];

  __device__ void init() {
    for (int i = 0; i < kStatisticsSlots; ++i) {
      barrier_init(shared_address(&full[i]), 1);
      barrier_init(shared_address(&empty[i]), 32);
    }
  }
};

/// Keeps a row's statistics. A row without keys has a log-sum-exp of -inf; with +inf all its p are 0.
__device__ inline void put_statistics(const Problem& z, int row, float dot) {
  const float lse = z.lse[z.lse_at(row)];
  z.statistics[row] = make_float2(lse == -INFINITY ? INFINITY : lse * kLog2e, dot);
}

/// The warp. Rows come by tensor copies, a few of them ahead.
class RowStatistics {
 public:
  __device__ RowStatistics(const CUtensorMap& out, const CUtensorMap& d_out, const Problem& z,
                           StatisticsBuffers& buffers)
      : out_(out), d_out_(d_out), z_(z), buffers_(buffers), lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run() {
    const int units = (z_.rows() - z_.prepared_rows() + kStatisticsUnit - 1) / kStatisticsUnit;
    if (units <= 0) return;
    send();
    next_unit();
    int unit = loading_;
    for (int i = 0; i < kStatisticsSlots; ++i) load(units);
    while (unit < units) {
      const int row = z_.prepared_rows() + unit * kStatisticsUnit;
      for (int i = 0; i < kStatisticsUnit; i += kStatisticsRows) sum_rows(row + i, units);
      __syncwarp();
      if (lane_ == 0) {
        fence_gpu();
        add_relaxed(z_.counters.rows_done + z_.token(row) / z_.chunk_tokens,
                    min(kStatisticsUnit, z_.rows() - row));
      }
      unit = loading_;
    }
  }

 private:
  static constexpr int kColumns = kDim / 64, kSteps = kStatisticsUnit / kStatisticsRows * kColumns;

  __device__ void send() { sent_ = lane_ == 0 ? atomicAdd(z_.counters.row_ticket, 1) : 0; }
  __device__ void next_unit() {
    loading_ = __shfl_sync(0xffffffffu, sent_, 0);
    send();
  }

  /// Sends for the next step's rows.
  __device__ void load(int units) {
    if (loading_ >= units) return;
    if (lane_ == 0) {
      const std::uint32_t full = shared_address(&buffers_.full[filled_.slot]);
      wait(shared_address(&buffers_.empty[filled_.slot]), filled_.phase ^ 1);
      const int row = z_.prepared_rows() + loading_ * kStatisticsUnit + step_ / kColumns * kStatisticsRows;
      const Box box(step_ % kColumns * 64, row);
      arrive_expect(full, sizeof(buffers_.rows[0]));
      tma_load(shared_address(buffers_.rows[filled_.slot][0]), out_, box, full);
      tma_load(shared_address(buffers_.rows[filled_.slot][1]), d_out_, box, full);
    }
    filled_.next();
    if (++step_ == kSteps) {
      step_ = 0;
      next_unit();
    }
  }

  /// Two lanes a row, each with half of every 64 columns.
  __device__ void sum_rows(int row, int units) {
    float sum = 0.0f;
    for (int column = 0; column < kColumns; ++column) {
      wait(shared_address(&buffers_.full[read_.slot]), read_.phase);
      const std::uint32_t out = shared_address(buffers_.rows[read_.slot][0]),
                          d_out = shared_address(buffers_.rows[read_.slot][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t at = swizzle128(lane_ / 2 * 128 + (lane_ % 2 * 4 + i) * 16);
        const uint4 x = load_shared(out + at), y = load_shared(d_out + at);
        sum += dot(x.x, y.x) + dot(x.y, y.y) + dot(x.z, y.z) + dot(x.w, y.w);
      }
      arrive(shared_address(&buffers_.empty[read_.slot]));
      read_.next();
      load(units);
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    row += lane_ / 2;
    if (lane_ % 2 == 0 && row < z_.rows()) put_statistics(z_, row, sum);
  }

  /// Of two pairs of bf16.
  __device__ static float dot(std::uint32_t x, std::uint32_t y) {
    return __uint_as_float(x << 16) * __uint_as_float(y << 16) +
           __uint_as_float(x & 0xffff0000u) * __uint_as_float(y & 0xffff0000u);
  }

  const CUtensorMap &out_, &d_out_;
  const Problem& z_;
  StatisticsBuffers& buffers_;
  const int lane_;
  int loading_ = 0, step_ = 0, sent_ = 0;
  Cursor<kStatisticsSlots> filled_, read_;
};

}  // namespace lapidary::attention512
