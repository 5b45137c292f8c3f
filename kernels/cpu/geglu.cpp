// GeGLU, forward and backward (specification 3.5).
#include <cmath>
#include <numbers>

#include "kernels/cpu/element.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

template <class F>
constexpr F kRoot2OverPi = static_cast<F>(std::numbers::sqrt2* std::numbers::inv_sqrtpi);

/// tanh is taken in double: a C library's float version is off by its last bit in a third of all cases.
template <class F>
F gelu_tangent(F z) {
  const F inner = kRoot2OverPi<F> * (z + F(0.044715) * (z * z * z));
  return static_cast<F>(std::tanh(static_cast<double>(inner)));
}

template <class T>
void forward(const GeGlu& op) {
  using F = Compute<T>;
  const std::int64_t rows = op.out.rows(), width = op.out.cols();
#pragma omp parallel for schedule(static) if (rows * width >= kParallelElements / 8)
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* gate = row<T>(op.gate_up, i);
    const T* up = gate + width;
    T* out = row<T>(op.out, i);
    for (std::int64_t j = 0; j < width; ++j) {
      const F z = load(gate[j]);
      const T activation = round_to<T>(F(0.5) * z * (F(1) + gelu_tangent(z)));
      out[j] = round_to<T>(load(activation) * load(up[j]));
    }
  }
}

template <class T>
void backward(const GeGluBackward& op) {
  using F = Compute<T>;
  const std::int64_t rows = op.d_out.rows(), width = op.d_out.cols();
#pragma omp parallel for schedule(static) if (rows * width >= kParallelElements / 8)
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* gate = row<T>(op.gate_up, i);
    const T* up = gate + width;
    const T* d_out = row<T>(op.d_out, i);
    T* d_gate = row<T>(op.d_gate_up, i);
    T* d_up = d_gate + width;
    T* out = op.out ? row<T>(op.out, i) : nullptr;
    for (std::int64_t j = 0; j < width; ++j) {
      const F z = load(gate[j]), u = load(up[j]), d = load(d_out[j]);
      const F t = gelu_tangent(z);
      const F activation = load(round_to<T>(F(0.5) * z * (F(1) + t)));
      const F slope =
          F(0.5) * (F(1) + t) + F(0.5) * z * (F(1) - t * t) * kRoot2OverPi<F> * (F(1) + F(0.134145) * z * z);
      d_gate[j] = round_to<T>(d * u * slope);
      d_up[j] = round_to<T>(d * activation);
      if (out) out[j] = round_to<T>(activation * u);
    }
  }
}

}  // namespace

void GeGlu::cpu(Stream&) const {
  check(*this);
  with_float_type(out.dtype(), [&]<class T>() { forward<T>(*this); });
}

void GeGluBackward::cpu(Stream&) const {
  check(*this);
  with_float_type(d_out.dtype(), [&]<class T>() { backward<T>(*this); });
}

}  // namespace lapidary
