// AdamW over a range of parameters, in pieces: every storage form is read into plain numbers, updated, and
// written back, so that the forms need not be multiplied with each other in templates.
#include "kernels/adamw_update.h"
#include "kernels/cpu/element.h"
#include "kernels/moment_codes.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr std::int64_t kPiece = 512;

template <class F>
struct Piece {
  F p[kPiece], m[kPiece], v[kPiece], g[kPiece];
  RoundingBits random[kPiece];
};

template <class F>
void read(const Tensor& t, std::int64_t begin, std::int64_t n, F* to) {
  with_float_type(t.dtype(), [&]<class T>() {
    const T* from = t.as<T>() + begin;
    for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<F>(load(from[i]));
  });
}

template <class F>
void write(const F* from, const Tensor& t, std::int64_t begin, std::int64_t n) {
  with_float_type(t.dtype(), [&]<class T>() {
    T* to = t.as<T>() + begin;
    for (std::int64_t i = 0; i < n; ++i) to[i] = round_to<T>(from[i]);
  });
}

/// As write(); bf16 is rounded stochastically with the element's bits for this field.
template <class F>
void write_stochastic(const F* from, const Tensor& t, std::int64_t begin, std::int64_t n,
                      const RoundingBits* random, std::uint16_t RoundingBits::*field) {
  if (t.dtype() != DType::bf16) return write(from, t, begin, n);
  bf16* to = t.as<bf16>() + begin;
  for (std::int64_t i = 0; i < n; ++i)
    to[i].bits = round_stochastic(static_cast<float>(from[i]), random[i].*field);
}

/// A moment in one byte, or as read() and write_stochastic() have it.
template <class F, class Decode>
void read_moment(const Tensor& t, std::int64_t begin, std::int64_t n, F* to, const Decode& decode) {
  if (t.dtype() != DType::u8) return read(t, begin, n, to);
  const std::uint8_t* from = t.as<std::uint8_t>() + begin;
  for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<F>(decode(from[i]));
}

template <class F, class Encode>
void write_moment(const F* from, const Tensor& t, std::int64_t begin, std::int64_t n,
                  const RoundingBits* random, std::uint16_t RoundingBits::*field, const Encode& encode) {
  if (t.dtype() != DType::u8) return write_stochastic(from, t, begin, n, random, field);
  std::uint8_t* to = t.as<std::uint8_t>() + begin;
  for (std::int64_t i = 0; i < n; ++i) to[i] = encode(static_cast<float>(from[i]), random[i].*field);
}

void draw(const AdamW& op, std::int64_t begin, std::int64_t n, RoundingBits* random) {
  const auto first = static_cast<std::uint64_t>(op.first_index + begin);
  const auto step = static_cast<std::uint64_t>(op.step);
  PhiloxBlock block{};
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t index = first + static_cast<std::uint64_t>(i);
    if (i == 0 || index % 4 == 0) block = rounding_block(op.seed, step, index / 4);
    random[i] = rounding_bits(block, index);
  }
}

template <class F>
void read_param(const AdamW& op, std::int64_t begin, std::int64_t n, F* p) {
  if (op.master) return read(op.master, begin, n, p);
  if (!op.remainder) return read(op.param, begin, n, p);
  const bf16* upper = op.param.as<bf16>() + begin;
  const std::int16_t* rest = op.remainder.as<std::int16_t>() + begin;
  for (std::int64_t i = 0; i < n; ++i) p[i] = static_cast<F>(join_float({upper[i].bits, rest[i]}));
}

template <class F>
void write_param(const AdamW& op, std::int64_t begin, std::int64_t n, const Piece<F>& piece) {
  if (op.master) {
    write(piece.p, op.master, begin, n);
    write(piece.p, op.param, begin, n);
  } else if (op.remainder) {
    bf16* upper = op.param.as<bf16>() + begin;
    std::int16_t* rest = op.remainder.as<std::int16_t>() + begin;
    for (std::int64_t i = 0; i < n; ++i) {
      const SplitFloat split = split_float(static_cast<float>(piece.p[i]));
      upper[i].bits = split.upper;
      rest[i] = split.rest;
    }
  } else {
    write_stochastic(piece.p, op.param, begin, n, piece.random, &RoundingBits::param);
  }
}

template <class F>
void update(const AdamW& op) {
  const std::int64_t count = op.param.numel(), pieces = (count + kPiece - 1) / kPiece;
  const AdamWFactors<F> factors = adamw_factors<F>(op);
  const F grad_factor = *op.grad_factor.as<F>();
  if (grad_factor == F{0}) return;  // the gradient is not finite
  const auto rounds = [](const Tensor& moment) {
    return moment.dtype() == DType::bf16 || moment.dtype() == DType::u8;
  };
  const bool random =
      rounds(op.m) || rounds(op.v) || (op.param.dtype() == DType::bf16 && !op.master && !op.remainder);
#pragma omp parallel for schedule(static) if (count >= kParallelElements / 4)
  for (std::int64_t k = 0; k < pieces; ++k) {
    const std::int64_t begin = k * kPiece, n = std::min(kPiece, count - begin);
    Piece<F> piece;
    read_param(op, begin, n, piece.p);
    read_moment(op.m, begin, n, piece.m, decode_first_moment);
    read_moment(op.v, begin, n, piece.v, decode_second_moment);
    read(op.grad, begin, n, piece.g);
    for (std::int64_t i = 0; i < n; ++i)
      adamw_update(factors, piece.g[i] * grad_factor, piece.p[i], piece.m[i], piece.v[i]);
    if (random) draw(op, begin, n, piece.random);
    write_param(op, begin, n, piece);
    write_moment(piece.m, op.m, begin, n, piece.random, &RoundingBits::m, encode_first_moment);
    write_moment(piece.v, op.v, begin, n, piece.random, &RoundingBits::v, encode_second_moment);
  }
}

}  // namespace

void AdamW::cpu(Stream&) const {
  check(*this);
  if (param.dtype() == DType::f64) {
    update<double>(*this);
  } else {
    update<float>(*this);
  }
}

}  // namespace lapidary
