#include "trainer/checkpoint_convert.h"

#include <algorithm>
#include <cstring>

#include "kernels/adamw_update.h"
#include "kernels/check.h"
#include "kernels/moment_codes.h"

namespace lapidary {

namespace {

using Form = TensorRecipe::Form;

bool is_float(DType type) {
  return type == DType::f32 || type == DType::bf16;
}

constexpr const char* kFirstMoment = "exp_avg";
constexpr const char* kSecondMoment = "exp_avg_sq";

/// A type that this part can be stored in and made of.
bool is_moment(const std::string& part, DType type) {
  return is_float(type) || (type == DType::u8 && (part == kFirstMoment || part == kSecondMoment));
}

/// The value's elements; `from` and `remainder` as in TensorRecipe.
std::vector<float> read_values(CheckpointReader& reader, const TensorRecipe& recipe, std::int64_t begin,
                               std::int64_t count) {
  const auto n = static_cast<std::size_t>(count);
  std::vector<float> values(n);
  if (recipe.from->dtype == DType::f32) {
    reader.read(*recipe.from, begin, count, values.data());
    return values;
  }
  if (recipe.from->dtype == DType::u8) {
    std::vector<std::uint8_t> codes(n);
    reader.read(*recipe.from, begin, count, codes.data());
    std::ranges::transform(codes, values.begin(),
                           recipe.second_moment ? decode_second_moment : decode_first_moment);
    return values;
  }
  std::vector<bf16> upper(n);
  reader.read(*recipe.from, begin, count, upper.data());
  if (recipe.remainder == nullptr) {
    std::transform(upper.begin(), upper.end(), values.begin(), [](bf16 v) { return static_cast<float>(v); });
    return values;
  }
  std::vector<std::int16_t> rest(n);
  reader.read(*recipe.remainder, begin, count, rest.data());
  for (std::size_t i = 0; i < n; ++i) values[i] = join_float({upper[i].bits, rest[i]});
  return values;
}

template <class T, class F>
void put(const std::vector<float>& values, void* to, const F& f) {
  auto* out = static_cast<char*>(to);
  for (const float value : values) {
    const T result = f(value);
    std::memcpy(out, &result, sizeof(T));
    out += sizeof(T);
  }
}

}  // namespace

void TensorRecipe::make(CheckpointReader& reader, std::int64_t begin, std::int64_t count, void* to) const {
  if (form == Form::stored) return reader.read(*from, begin, count, to);
  const std::vector<float> values = read_values(reader, *this, begin, count);
  if (form == Form::upper)
    put<std::uint16_t>(values, to, [](float v) { return split_float(v).upper; });
  else if (form == Form::remainder)
    put<std::int16_t>(values, to, [](float v) { return split_float(v).rest; });
  else if (dtype == DType::u8)
    put<std::uint8_t>(values, to, [this](float v) {
      constexpr std::uint32_t kNearest = 0x8000;
      return second_moment ? encode_second_moment(v, kNearest) : encode_first_moment(v, kNearest);
    });
  else if (dtype == DType::bf16)
    put<bf16>(values, to, [](float v) { return bf16(v); });
  else
    std::memcpy(to, values.data(), values.size() * sizeof(float));
}

std::optional<TensorRecipe> value_recipe(const CheckpointReader& reader, const std::string& name) {
  const auto* weight = reader.find(name, "weight");
  const auto* master = reader.find(name, "master");
  const auto* remainder = reader.find(name, "remainder");
  TensorRecipe recipe{Form::value, DType::f32, weight};
  if (master != nullptr && master->dtype == DType::f32)
    recipe.from = master;
  else if (weight != nullptr && weight->dtype == DType::bf16 && remainder != nullptr &&
           remainder->dtype == DType::i16)
    recipe.remainder = remainder;
  if (recipe.from == nullptr || !is_float(recipe.from->dtype)) return std::nullopt;
  return recipe;
}

std::optional<TensorRecipe> recipe_for(const CheckpointReader& reader, const CheckpointTensor& wanted,
                                       const std::vector<std::string>& parts) {
  const auto* stored = reader.find(wanted.name, wanted.part);
  const auto as_stored = [&]() -> std::optional<TensorRecipe> {
    return TensorRecipe{Form::stored, wanted.dtype, stored};
  };
  const bool same_type = stored != nullptr && stored->dtype == wanted.dtype;
  const bool is_weight = wanted.part == "weight";
  if (!is_weight && wanted.part != "master" && wanted.part != "remainder") {  // a moment
    if (same_type) return as_stored();
    if (stored == nullptr || !is_moment(wanted.part, stored->dtype) || !is_moment(wanted.part, wanted.dtype))
      return std::nullopt;
    return TensorRecipe{Form::moment, wanted.dtype, stored, nullptr, wanted.part == kSecondMoment};
  }
  const auto asked = [&](const char* part) {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  };
  const auto has = [&](const char* part) { return reader.find(wanted.name, part) != nullptr; };
  const bool weight_alone = !asked("master") && !asked("remainder");
  const bool same_layout = asked("master") == has("master") && asked("remainder") == has("remainder");
  if (same_type && (same_layout || (is_weight && weight_alone))) return as_stored();
  std::optional<TensorRecipe> recipe = value_recipe(reader, wanted.name);
  if (!recipe) return std::nullopt;
  recipe->dtype = wanted.dtype;
  if (wanted.part == "remainder")
    recipe->form = Form::remainder;
  else if (is_weight && asked("remainder"))
    recipe->form = Form::upper;
  const DType expected = recipe->form == Form::remainder ? DType::i16
                         : recipe->form == Form::upper   ? DType::bf16
                                                         : wanted.dtype;
  if (wanted.dtype != expected || (recipe->form == Form::value && !is_float(wanted.dtype)))
    return std::nullopt;
  return recipe;
}

}  // namespace lapidary
