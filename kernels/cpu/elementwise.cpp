// Fill, Copy and Add: any element types, rows of any stride. Contiguous tensors are treated as one
// long row cut into pieces, so that vectors, matrices and single rows all run in parallel.
#include <cstring>

#include "kernels/cpu/element.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

/// Calls body(row, column, count) over pieces that cover `rows` x `cols`, in parallel.
template <class Body>
void for_pieces(std::int64_t rows, std::int64_t cols, bool contiguous, Body body) {
  if (contiguous) {
    cols *= rows;
    rows = cols > 0 ? 1 : 0;
  }
  constexpr std::int64_t kPiece = 8192;
  const std::int64_t per_row = (cols + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (rows * cols >= kParallelElements)
  for (std::int64_t k = 0; k < rows * per_row; ++k) {
    const std::int64_t begin = k % per_row * kPiece;
    body(k / per_row, begin, std::min(kPiece, cols - begin));
  }
}

template <class Body>
void with_any_type(DType type, Body&& body) {
  switch (type) {
    case DType::i64:
      return body.template operator()<std::int64_t>();
    case DType::i32:
      return body.template operator()<std::int32_t>();
    case DType::i16:
      return body.template operator()<std::int16_t>();
    case DType::u8:
      return body.template operator()<std::uint8_t>();
    default:
      return with_float_type(type, body);
  }
}

void copy_bytes(const Tensor& in, const Tensor& out) {
  const std::size_t size = size_of(in.dtype());
  const auto* from = static_cast<const std::byte*>(in.data());
  auto* to = static_cast<std::byte*>(out.data());
  for_pieces(in.rows(), in.cols(), in.contiguous() && out.contiguous(),
             [&](std::int64_t i, std::int64_t j, std::int64_t n) {
               std::memcpy(to + static_cast<std::size_t>(i * out.row_stride() + j) * size,
                           from + static_cast<std::size_t>(i * in.row_stride() + j) * size,
                           static_cast<std::size_t>(n) * size);
             });
}

/// out = result(out, in), rounded to out's type.
template <class Result>
void combine(const Tensor& in, const Tensor& out, Result result) {
  with_float_type(in.dtype(), [&]<class S>() {
    with_float_type(out.dtype(), [&]<class T>() {
      for_pieces(in.rows(), in.cols(), in.contiguous() && out.contiguous(),
                 [&](std::int64_t i, std::int64_t j, std::int64_t n) {
                   const S* from = row<S>(in, i) + j;
                   T* to = row<T>(out, i) + j;
                   for (std::int64_t k = 0; k < n; ++k)
                     to[k] = round_to<T>(result(load(to[k]), load(from[k])));
                 });
    });
  });
}

}  // namespace

void Fill::cpu(Stream&) const {
  check(*this);
  with_any_type(x.dtype(), [&]<class T>() {
    T number{};
    if constexpr (std::is_integral_v<T>) {
      number = static_cast<T>(value);
    } else {
      number = round_to<T>(value);
    }
    for_pieces(x.rows(), x.cols(), x.contiguous(), [&](std::int64_t i, std::int64_t j, std::int64_t n) {
      std::fill_n(row<T>(x, i) + j, n, number);
    });
  });
}

void Copy::cpu(Stream&) const {
  check(*this);
  if (in.dtype() == out.dtype()) return copy_bytes(in, out);
  combine(in, out, [](auto, auto from) { return from; });
}

void Add::cpu(Stream&) const {
  check(*this);
  combine(in, out, [](auto to, auto from) { return to + from; });
}

}  // namespace lapidary
