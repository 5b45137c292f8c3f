// Table look-up, moved rows, stored features, biases and grid positions.
#include "tests/kernels/op_cases.h"

namespace lapidary {

namespace {

/// Ids of a vocabulary of which rows [first, first + rows) are here: inside, outside, repeated, padding, -1.
Values mixed_ids(std::int64_t tokens, std::int64_t first, std::int64_t rows) {
  Values out;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t id = t * 7 % (rows + 4) + first - 2;
    out.push_back(static_cast<double>(t % 9 == 5 ? 0 : std::max<std::int64_t>(id, -1)));
  }
  return out;
}

struct Table {
  std::int64_t tokens, rows, width, first;
  double scale;
  std::string name() const {
    return std::to_string(tokens) + "of" + std::to_string(rows) + "x" + std::to_string(width) + "from" +
           std::to_string(first);
  }
};

/// Row `drop` (the padding) is left out where its gradient must be.
Values naive_lookup(const Table& s, const Arrays& in, double drop) {
  Values out;
  for (const double id : in.at("ids")) {
    const std::int64_t row = static_cast<std::int64_t>(id) - s.first;
    const bool here = id >= 0 && row >= 0 && row < s.rows && id != drop;
    for (std::int64_t j = 0; j < s.width; ++j)
      out.push_back(here ? s.scale * in.at("table")[static_cast<std::size_t>(row * s.width + j)] : 0.0);
  }
  return out;
}

OpCase lookup_case(const Table& s) {
  OpCase c;
  c.name = "EmbeddingLookup." + s.name();
  c.given["ids"] = mixed_ids(s.tokens, s.first, s.rows);
  c.given["table"] = random_values(s.rows * s.width, 1);
  c.exact = {"ids"};
  c.reference = [s](const Arrays& in) { return Arrays{{"out", naive_lookup(s, in, -2)}}; };
  c.run = [s](OpRun& r) {
    r(EmbeddingLookup{r.in_as("ids", DType::i32, {s.tokens}), r.in("table", {s.rows, s.width}), s.first,
                      s.scale, r.out("out", {s.tokens, s.width})});
  };
  if (s.tokens == 0) c.ignores_nan = {"table"};
  return c;
}

OpCase lookup_backward_case(const Table& s, bool wide) {
  OpCase c = lookup_case(s);
  c.name = "EmbeddingBackward." + s.name() + (wide ? "_wide" : "");
  c.given["d_out"] = random_values(s.tokens * s.width, 2);
  c.reference = [s](const Arrays& in) { return Arrays{{"out", naive_lookup(s, in, 0)}}; };
  c.run = [=](OpRun& r) {
    EmbeddingBackward op{};
    op.ids = r.in_as("ids", DType::i32, {s.tokens});
    op.d_out = wide ? r.in_wide("d_out", {s.tokens, s.width}) : r.in("d_out", {s.tokens, s.width});
    op.first_row = s.first;
    op.scale = s.scale;
    op.d_table = r.accumulator("d_table", {s.rows, s.width});
    r(op);
  };
  c.gradients = Gradients{{{"d_out", "out"}}, {{"d_table", "table"}}, {"d_table"}, {}};
  c.ignores_nan = {"table"};
  return c;
}

Values permuted(std::int64_t count, std::int64_t of) {
  Values out;
  for (std::int64_t m = 0; m < count; ++m) out.push_back(static_cast<double>((m * 5 + 3) % of));
  return out;
}

OpCase scatter_case(std::int64_t rows, std::int64_t tokens, std::int64_t width) {
  OpCase c;
  c.name =
      "ScatterRows." + std::to_string(rows) + "to" + std::to_string(tokens) + "x" + std::to_string(width);
  c.given = {{"rows", random_values(rows * width, 1)},
             {"out", random_values(tokens * width, 2)},
             {"index", permuted(rows, tokens)}};
  c.exact = {"index"};
  c.reference = [=](const Arrays& in) {
    Values out = in.at("out");
    for (std::int64_t m = 0; m < rows; ++m)
      for (std::int64_t j = 0; j < width; ++j)
        out[static_cast<std::size_t>(
            static_cast<std::int64_t>(in.at("index")[static_cast<std::size_t>(m)]) * width + j)] =
            in.at("rows")[static_cast<std::size_t>(m * width + j)];
    return Arrays{{"out'", out}};
  };
  c.run = [=](OpRun& r) {
    r(ScatterRows{r.in("rows", {rows, width}), r.in_as("index", DType::i32, {rows}),
                  r.in_out("out", {tokens, width})});
  };
  c.bounds["out"] = {0, 0};
  if (rows == tokens) c.ignores_nan = {"out"};
  return c;
}

OpCase gather_case(std::int64_t rows, std::int64_t tokens, std::int64_t width) {
  OpCase c;
  c.name = "GatherRows." + std::to_string(rows) + "of" + std::to_string(tokens) + "x" + std::to_string(width);
  c.given = {{"in", random_values(tokens * width, 2)}, {"index", permuted(rows, tokens)}};
  c.exact = {"index"};
  c.reference = [=](const Arrays& in) {
    Values out;
    for (const double at : in.at("index"))
      for (std::int64_t j = 0; j < width; ++j)
        out.push_back(in.at("in")[static_cast<std::size_t>(static_cast<std::int64_t>(at) * width + j)]);
    return Arrays{{"rows", out}};
  };
  c.run = [=](OpRun& r) {
    r(GatherRows{r.in("in", {tokens, width}), r.in_as("index", DType::i32, {rows}),
                 r.out("rows", {rows, width})});
  };
  c.bounds["rows"] = {0, 0};
  if (rows == 0) c.ignores_nan = {"in"};
  return c;
}

OpCase convert_case(DType stored, std::int64_t rows, std::int64_t width) {
  OpCase c;
  c.name = std::string("ConvertFeatures.") + name_of(stored) + "_" + std::to_string(rows) + "x" +
           std::to_string(width);
  double scale = 1;
  if (stored == DType::u8) scale = static_cast<double>(1.0f / 255.0f);
  if (stored == DType::i16) scale = 1.0 / 32768;
  Values& in = c.given["in"];
  for (std::int64_t i = 0; i < rows * width; ++i) {
    const std::int64_t bits = i * 40503 % 65536;
    in.push_back(stored == DType::u8    ? static_cast<double>(i % 256)
                 : stored == DType::i16 ? static_cast<double>(bits - 32768)
                                        : static_cast<double>(bits - 32768) / 1024);
  }
  c.exact = {"in"};
  c.reference = [scale](const Arrays& given) {
    Values out = given.at("in");
    for (double& x : out) x *= scale;
    return Arrays{{"out", out}};
  };
  c.run = [=](OpRun& r) {
    r(ConvertFeatures{r.in_as("in", stored, {rows, width}), r.out("out", {rows, width})});
  };
  c.bounds["out"] = {1, 1};
  return c;
}

OpCase add_bias_case(std::int64_t rows, std::int64_t n) {
  OpCase c;
  c.name = "AddBias." + std::to_string(rows) + "x" + std::to_string(n);
  c.given = {{"x", random_values(rows * n, 1)}, {"bias", random_values(n, 2)}};
  c.reference = [n](const Arrays& in) {
    Values out = in.at("x");
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += in.at("bias")[i % static_cast<std::size_t>(n)];
    return Arrays{{"x'", out}};
  };
  c.run = [=](OpRun& r) { r(AddBias{r.in_out("x", {rows, n}), r.in("bias", {n})}); };
  if (rows == 0) c.ignores_nan = {"bias"};
  return c;
}

OpCase bias_backward_case(std::int64_t rows, std::int64_t n) {
  OpCase c = add_bias_case(rows, n);
  c.name = "BiasBackward." + std::to_string(rows) + "x" + std::to_string(n);
  c.given["dy"] = random_values(rows * n, 3);
  c.run = [=](OpRun& r) { r(BiasBackward{r.in("dy", {rows, n}), r.accumulator("d_bias", {n})}); };
  c.gradients = Gradients{{{"dy", "x'"}}, {{"d_bias", "bias"}}, {"d_bias"}, {}};
  c.ignores_nan = {"x", "bias"};
  return c;
}

OpCase grid_case(std::int64_t patches, std::int64_t cells, std::int64_t width) {
  OpCase c;
  c.name =
      "GridEmbedding." + std::to_string(patches) + "on" + std::to_string(cells) + "x" + std::to_string(width);
  c.given = {
      {"x", random_values(patches * width, 1)}, {"table", random_values(cells * 2 * width, 2)}, {"xy", {}}};
  for (std::int64_t m = 0; m < patches; ++m) {
    c.given["xy"].push_back(static_cast<double>(m % cells));
    c.given["xy"].push_back(static_cast<double>(m * 3 / 2 % cells));
  }
  c.exact = {"xy"};
  c.reference = [=](const Arrays& in) {
    Values out = in.at("x");
    for (std::int64_t i = 0; i < patches * width; ++i) {
      const std::int64_t m = i / width, j = i % width;
      for (std::int64_t axis = 0; axis < 2; ++axis) {
        const auto at = static_cast<std::int64_t>(in.at("xy")[static_cast<std::size_t>(2 * m + axis)]);
        out[static_cast<std::size_t>(i)] +=
            in.at("table")[static_cast<std::size_t>((2 * at + axis) * width + j)];
      }
    }
    return Arrays{{"x'", out}};
  };
  c.run = [=](OpRun& r) {
    r(GridEmbedding{r.in_out("x", {patches, width}), r.in("table", {cells, 2, width}),
                    r.in_as("xy", DType::i32, {patches, 2})});
  };
  c.bounds["x"] = {3, 8};
  if (patches == 0) c.ignores_nan = {"table"};
  return c;
}

OpCase grid_backward_case(std::int64_t patches, std::int64_t cells, std::int64_t width) {
  OpCase c = grid_case(patches, cells, width);
  c.name = "GridEmbeddingBackward." + std::to_string(patches) + "on" + std::to_string(cells) + "x" +
           std::to_string(width);
  c.given["d"] = random_values(patches * width, 3);
  c.run = [=](OpRun& r) {
    r(GridEmbeddingBackward{r.in("d", {patches, width}), r.in_as("xy", DType::i32, {patches, 2}),
                            r.accumulator("d_table", {cells, 2, width})});
  };
  c.gradients = Gradients{{{"d", "x'"}}, {{"d_table", "table"}}, {"d_table"}, {}};
  c.bounds.clear();
  c.ignores_nan = {"x", "table"};
  return c;
}

}  // namespace

std::vector<OpCase> embedding_cases() {
  std::vector<OpCase> out;
  for (const Table& s : {Table{1, 1, 1, 0, 1.0}, Table{17, 5, 3, 0, 62.0}, Table{17, 5, 3, 4, 0.25},
                         Table{0, 5, 3, 0, 1.0}, Table{90, 40, 300, 7, 62.0}}) {
    out.push_back(lookup_case(s));
    for (const bool wide : {false, true}) out.push_back(lookup_backward_case(s, wide));
    if (s.tokens == 1) {  // its only id is -1: nothing is looked up
      for (std::size_t i = out.size() - 3; i < out.size(); ++i) out[i].ignores_nan = {"table", "d_out"};
    }
  }
  for (const auto& [rows, tokens, width] :
       {std::array<std::int64_t, 3>{1, 1, 1}, {0, 4, 3}, {7, 11, 5}, {50, 71, 300}}) {
    out.push_back(scatter_case(rows, tokens, width));
    out.push_back(gather_case(rows, tokens, width));
  }
  return out;
}

std::vector<OpCase> feature_cases() {
  std::vector<OpCase> out;
  for (const DType stored : {DType::u8, DType::i16, DType::f32}) {
    out.push_back(convert_case(stored, 3, 7));
    out.push_back(convert_case(stored, 40, 640));
    out.push_back(convert_case(stored, 0, 5));
  }
  for (const auto& [rows, n] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {3, 5}, {0, 4}, {70, 300}}) {
    out.push_back(add_bias_case(rows, n));
    out.push_back(bias_backward_case(rows, n));
  }
  for (const auto& [patches, cells, width] :
       {std::array<std::int64_t, 3>{1, 1, 1}, {0, 4, 3}, {13, 4, 5}, {80, 9, 300}}) {
    out.push_back(grid_case(patches, cells, width));
    out.push_back(grid_backward_case(patches, cells, width));
  }
  return out;
}

}  // namespace lapidary
