// libFuzzer over the C ABI: any names, options, sizes, strides, types, null pointers and overlaps, as long as every
// element of every view lies in allocated memory. The address sanitizer watches what lies outside. It checks that
// - no call fails with FUSEDSTEP_INTERNAL or without a message;
// - a call that fails changes nothing;
// - a call that succeeds writes only elements of the arrays that it may write;
// - an update of views, in any layout, has the bits of the same update of dense copies.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <fuzzer/FuzzedDataProvider.h>

#include <fusedstep/fusedstep.h>
#include <fusedstep/rules.hpp>

namespace {

using Data = FuzzedDataProvider;

#define REQUIRE(condition)                                                                              \
  do {                                                                                                  \
    if (!(condition)) {                                                                                 \
      std::fprintf(stderr, "line %d: not so: %s (%s)\n", __LINE__, #condition, fusedstep_last_error()); \
      std::abort();                                                                                     \
    }                                                                                                   \
  } while (false)

// When the data is used up, it reads as 0, which is the ordinary choice.

// A valid call with more elements takes too long.
constexpr __int128 most_elements = 1 << 16;

constexpr __int128 most_reach = static_cast<__int128>(1) << 100;

std::int64_t size_of(std::int32_t dtype) { return dtype == FUSEDSTEP_INT8 ? 1 : dtype == FUSEDSTEP_FLOAT32 ? 4 : 8; }

std::int64_t any_number(Data& data) {
  constexpr std::int64_t special[] = {-1,
                                      3,
                                      5,
                                      127,
                                      1 << 20,
                                      std::int64_t{1} << 31,
                                      std::int64_t{1} << 32,
                                      std::int64_t{1} << 61,
                                      std::int64_t{1} << 62,
                                      std::numeric_limits<std::int64_t>::max(),
                                      std::numeric_limits<std::int64_t>::min(),
                                      std::numeric_limits<std::int64_t>::min() + 1};
  return data.ConsumeBool() ? data.PickValueInArray(special) : data.ConsumeIntegral<std::int64_t>();
}

double any_real(Data& data) {
  constexpr double special[] = {0.0,    -0.0,  1.0,  -1.0,     0.5,       1e-310, 1e300,
                                1e-300, 1e-45, 3e38, INFINITY, -INFINITY, NAN,    1e-8};
  switch (data.ConsumeIntegralInRange(0, 3)) {
    case 0:
      return data.PickValueInArray(special);
    case 1:
      return data.ConsumeFloatingPoint<double>();
    default:
      return data.ConsumeProbability<double>();
  }
}

// --------------------------------------------------------------------------------------------------------------- views

using Memory = std::vector<unsigned char>;

// A view of a piece of memory. Shape and strides are in allocations of exactly the size they need.
struct View {
  fusedstep_array array{};
  std::unique_ptr<std::int64_t[]> shape, strides;

  std::size_t dimensions() const { return array.dimensions < 0 ? 0 : static_cast<std::size_t>(array.dimensions); }
  bool sound() const {
    return array.dtype >= FUSEDSTEP_FLOAT32 && array.dtype <= FUSEDSTEP_INT8 && array.dimensions >= 0 &&
           array.dimensions <= 8 && (array.dimensions == 0 || array.shape != nullptr);
  }
  std::int64_t stride(std::size_t axis) const {
    if (array.strides != nullptr) return array.strides[axis];
    auto dense = static_cast<std::uint64_t>(size_of(array.dtype));
    for (std::size_t k = axis + 1; k < dimensions(); ++k) dense *= static_cast<std::uint64_t>(array.shape[k]);
    return static_cast<std::int64_t>(dense);
  }
  // Saturated.
  __int128 elements() const {
    constexpr __int128 limit = static_cast<__int128>(1) << 100;
    __int128 n = 1;
    for (std::size_t k = 0; k < dimensions(); ++k) {
      if (array.shape[k] <= 0) return 0;
      n = n > limit / array.shape[k] ? limit : n * array.shape[k];
    }
    return n;
  }

  template <class F>
  void each(F f) const {  // in C order
    const auto n = static_cast<std::int64_t>(elements());
    for (std::int64_t i = 0; i < n; ++i) {
      char* at = static_cast<char*>(array.data);
      std::int64_t rest = i;
      for (std::size_t k = dimensions(); k-- > 0; rest /= array.shape[k]) at += rest % array.shape[k] * stride(k);
      f(at, i);
    }
  }
};

View make_view(Data& data, Memory& memory, std::int32_t usual_type, const View* like) {
  View view;
  fusedstep_array& array = view.array;
  const int whim = data.ConsumeIntegralInRange(0, 255);
  array.dtype = whim == 1 ? data.ConsumeIntegral<std::int32_t>() : whim < 4 ? data.ConsumeIntegralInRange(0, 2) : usual_type;
  array.dimensions = like != nullptr && whim > 8 ? like->array.dimensions
                     : whim == 5                 ? data.ConsumeIntegral<std::int32_t>()
                                                 : data.ConsumeIntegralInRange(0, data.ConsumeBool() ? 8 : 3);
  const auto n = static_cast<std::size_t>(array.dimensions < 0 || array.dimensions > 8 ? 0 : array.dimensions);
  view.shape = std::make_unique<std::int64_t[]>(n);
  view.strides = std::make_unique<std::int64_t[]>(n);
  array.shape = n == 0 && data.ConsumeBool() ? nullptr : view.shape.get();
  array.strides = view.strides.get();
  const bool same_shape = like != nullptr && like->sound() && like->dimensions() == n && whim > 16;
  for (std::size_t k = 0; k < n; ++k) {
    view.shape[k] = same_shape                                 ? like->array.shape[k]
                    : data.ConsumeIntegralInRange(0, 63) == 63 ? any_number(data)
                                                               : data.ConsumeIntegralInRange<std::int64_t>(0, n > 3 ? 4 : 9);
  }
  const std::int64_t item = array.dtype < 0 || array.dtype > 2 ? 1 : size_of(array.dtype);
  std::size_t axes[8];
  for (std::size_t k = 0; k < n; ++k) axes[k] = k;
  const int layout = data.ConsumeIntegralInRange(0, 7);
  if (layout >= 2 && n > 1) {
    for (std::size_t k = n - 1; k > 0; --k) std::swap(axes[k], axes[data.ConsumeIntegralInRange<std::size_t>(0, k)]);
  }
  __int128 dense = item;
  for (std::size_t k = n; k-- > 0;) {
    const std::size_t axis = axes[k];
    const std::int64_t gap = layout >= 3 ? data.ConsumeIntegralInRange<std::int64_t>(1, 2) : 1;
    view.strides[axis] = static_cast<std::int64_t>(dense) * gap;
    if (layout >= 4 && data.ConsumeBool()) view.strides[axis] = -view.strides[axis];
    if (layout == 6) view.strides[axis] = item * data.ConsumeIntegralInRange<std::int64_t>(-4, 12);
    if (layout == 7) view.strides[axis] = data.ConsumeBool() ? any_number(data) : data.ConsumeIntegralInRange(-40, 40);
    dense = (dense * gap * view.shape[axis]) % (static_cast<__int128>(1) << 62);
    if (dense == 0) dense = item;
  }
  if (layout == 1 || (n == 0 && data.ConsumeBool())) array.strides = nullptr;
  if (whim == 6) array.shape = nullptr;
  if (!view.sound()) {
    array.data = memory.data();
    return view;
  }

  // Places it in memory that has room for all its strides. A view that does not fit is cut to one element.
  const auto available = static_cast<std::int64_t>(memory.size());
  for (const bool second_try : {false, true}) {
    if (view.elements() == 0) break;
    if (second_try) {
      for (std::size_t k = 0; k < n; ++k) view.shape[k] = 1;
    }
    __int128 lo = 0, hi = item;
    for (std::size_t k = 0; k < n; ++k) {
      const __int128 reach = static_cast<__int128>(view.shape[k] - 1) * view.stride(k);
      (reach < 0 ? lo : hi) += std::clamp<__int128>(reach, -most_reach, most_reach);
    }
    if (hi - lo > available) continue;
    std::int64_t first = data.ConsumeIntegralInRange<std::int64_t>(0, available - static_cast<std::int64_t>(hi - lo));
    if (whim % 16 != 7) {
      const auto misfit = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory.data() + first) % 8);
      first -= misfit <= first ? misfit : 0;
    }
    array.data = memory.data() + first - static_cast<std::int64_t>(lo);
    return view;
  }
  array.data = whim % 2 == 0 || memory.empty() ? nullptr : memory.data();
  if (view.elements() != 0) array.data = nullptr;
  return view;
}

void check_code(std::int32_t code) {
  REQUIRE(code == FUSEDSTEP_OK || code == FUSEDSTEP_INVALID_ARGUMENT || code == FUSEDSTEP_NONFINITE ||
          code == FUSEDSTEP_OUT_OF_MEMORY);
  REQUIRE(code == FUSEDSTEP_OK || *fusedstep_last_error() != '\0');
}

// --------------------------------------------------------------------------------------------------------------- rules

using fusedstep::schema::Kind;

// What a rule declares.
struct Schema {
  const char* name;
  std::span<const fusedstep::schema::Field> fields;
  std::span<const fusedstep::schema::State> states;
  std::vector<const char*> dialects;
};

const std::vector<Schema> schemas = [] {
  std::vector<Schema> all;
  fusedstep::for_each_rule([&]<class R>() {
    using Declared = fusedstep::Schema<R>;
    Schema& made = all.emplace_back(Schema{Declared::name, Declared::fields, Declared::states, {}});
    if constexpr (requires { Declared::dialects; }) {
      for (const auto& dialect : Declared::dialects) made.dialects.push_back(dialect.name);
    }
  });
  return all;
}();

template <class List>
const auto& pick(Data& data, const List& from) {
  return from[data.ConsumeIntegralInRange<std::size_t>(0, from.size() - 1)];
}

using Rule = std::unique_ptr<fusedstep_rule, decltype(&fusedstep_rule_destroy)>;

Rule create(const char* name, const char* dialect) {
  fusedstep_rule* rule = nullptr;
  const std::int32_t code = fusedstep_rule_create(name, dialect, &rule);
  check_code(code);
  REQUIRE((code == FUSEDSTEP_OK) == (rule != nullptr));
  return {rule, fusedstep_rule_destroy};
}

// One number, two numbers or a name.
struct Value {
  double numbers[2] = {};
  std::string name;

  bool operator==(const Value& other) const {
    const auto same = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
    return same(numbers[0], other.numbers[0]) && same(numbers[1], other.numbers[1]) && name == other.name;
  }
};

Value value_of(const fusedstep_rule* rule, const fusedstep::schema::Field& field) {
  Value value;
  const char* name = "";
  REQUIRE((field.kind == Kind::pair     ? fusedstep_rule_get_pair(rule, field.name, value.numbers, value.numbers + 1)
           : field.kind == Kind::choice ? fusedstep_rule_get_choice(rule, field.name, &name)
                                        : fusedstep_rule_get(rule, field.name, value.numbers)) == FUSEDSTEP_OK);
  value.name = name;
  return value;
}

// Sets an option, mostly by its own name and kind. A refused value changes nothing.
void set_option(Data& data, fusedstep_rule* rule, const fusedstep::schema::Field& field) {
  const int whim = data.ConsumeIntegralInRange(0, 63);
  const std::string name = whim == 1 ? data.ConsumeRandomLengthString(9) : field.name;
  const Kind kind = whim == 2 ? static_cast<Kind>(data.ConsumeIntegralInRange(0, 3)) : field.kind;
  const Value before = value_of(rule, field);
  Value value;
  std::int32_t code = FUSEDSTEP_OK;
  if (kind == Kind::choice) {
    value.name = whim == 3 || field.choices.empty() ? data.ConsumeRandomLengthString(9) : pick(data, field.choices);
    code = fusedstep_rule_set_choice(rule, name.c_str(), value.name.c_str());
  } else if (kind == Kind::pair) {
    for (double& x : value.numbers) x = data.ConsumeBool() ? data.ConsumeIntegralInRange(0, 3) : any_real(data);
    code = fusedstep_rule_set_pair(rule, name.c_str(), value.numbers[0], value.numbers[1]);
  } else {
    value.numbers[0] = data.ConsumeBool() ? data.ConsumeIntegralInRange(0, 1) : any_real(data);
    code = fusedstep_rule_set(rule, name.c_str(), value.numbers[0]);
  }
  check_code(code);
  REQUIRE(name != field.name || value_of(rule, field) == (code == FUSEDSTEP_OK ? value : before));
}

Rule make_rule(Data& data, const Schema& schema) {
  const bool from_dialect = data.ConsumeIntegralInRange(0, 7) == 7 && !schema.dialects.empty();
  Rule rule = create(schema.name, from_dialect ? pick(data, schema.dialects) : nullptr);
  REQUIRE(rule != nullptr);
  for (const auto& field : schema.fields) {
    if (data.ConsumeIntegralInRange(0, 3) == 3) set_option(data, rule.get(), field);
  }
  return rule;
}

std::vector<std::string> states_of(const fusedstep_rule* rule) {
  std::vector<std::string> names;
  while (const char* name = fusedstep_rule_state(rule, static_cast<std::int32_t>(names.size()))) names.push_back(name);
  return names;
}

using Struct = std::unique_ptr<unsigned char[]>;

// A copy of a struct of `whole` bytes, usually complete, in memory that ends where its `size` says.
Struct cut(Data& data, const unsigned char* full, std::size_t whole) {
  std::uint64_t size = whole;
  if (data.ConsumeIntegralInRange(0, 31) == 31) {
    size = data.ConsumeBool() ? data.ConsumeIntegralInRange<std::uint64_t>(0, whole + 1)
                              : data.ConsumeIntegral<std::uint64_t>();
  }
  const std::size_t bytes = std::max<std::size_t>(sizeof size, size < whole ? size : whole);
  Struct made(new unsigned char[bytes]);
  std::memcpy(made.get(), full, bytes);
  std::memcpy(made.get(), &size, sizeof size);
  return made;
}

// -------------------------------------------------------------------------------------------------------------- checks

// A call that failed changed nothing; one that succeeded changed only elements of `written`.
void check_memory(const Memory& memory, const Memory& before, std::int32_t code, const std::vector<const View*>& written) {
  if (code != FUSEDSTEP_OK) {
    REQUIRE(memory == before);
    return;
  }
  Memory expected = before;
  for (const View* view : written) {
    const auto size = static_cast<std::size_t>(size_of(view->array.dtype));
    view->each([&](const char* at, std::int64_t) {
      const auto offset = static_cast<std::size_t>(at - reinterpret_cast<const char*>(memory.data()));
      std::memcpy(expected.data() + offset, memory.data() + offset, size);
    });
  }
  REQUIRE(memory == expected);
}

// A dense copy in memory of its own.
struct Dense {
  explicit Dense(const View& view) : bytes(static_cast<std::size_t>(view.elements() * size_of(view.array.dtype)) + 1) {
    array = view.array;
    array.strides = nullptr;
    array.data = bytes.data();
    size = static_cast<std::size_t>(size_of(array.dtype));
    view.each(
        [&](const char* at, std::int64_t i) { std::memcpy(bytes.data() + static_cast<std::size_t>(i) * size, at, size); });
  }
  Dense(const Dense&) = delete;
  Dense(Dense&&) = default;

  // Whether a view has these bits. NaNs are equal.
  bool same(const View& view) const {
    bool all = true;
    view.each([&](const char* at, std::int64_t i) {
      const unsigned char* mine = bytes.data() + static_cast<std::size_t>(i) * size;
      if (std::memcmp(at, mine, size) == 0) return;
      float f[2];
      double d[2];
      if (size == 4) {
        std::memcpy(f, at, 4);
        std::memcpy(f + 1, mine, 4);
        all &= std::isnan(f[0]) && std::isnan(f[1]);
      } else if (size == 8) {
        std::memcpy(d, at, 8);
        std::memcpy(d + 1, mine, 8);
        all &= std::isnan(d[0]) && std::isnan(d[1]);
      } else {
        all = false;
      }
    });
    return all;
  }

  Memory bytes;
  fusedstep_array array;
  std::size_t size;
};

void update_once(Data& data, Memory& memory) {
  const Schema& schema = pick(data, schemas);
  const Rule rule = make_rule(data, schema);
  const std::int32_t type = data.ConsumeIntegralInRange(0, 1);
  const View parameter = make_view(data, memory, type, nullptr);
  const View gradient = make_view(data, memory, type, &parameter);
  std::vector<View> states;
  const int whim = data.ConsumeIntegralInRange(0, 255);
  const std::vector<std::string> usual = states_of(rule.get());
  const std::size_t count = whim < 64 ? data.ConsumeIntegralInRange<std::size_t>(0, 4) : usual.size();
  const View scalar;
  for (std::size_t k = 0; k < count; ++k) {
    auto storage = fusedstep::schema::Storage::as_parameter;
    for (const auto& state : schema.states) {
      if (k < usual.size() && state.name == usual[k]) storage = state.storage;
    }
    const bool bytes = storage == fusedstep::schema::Storage::int8;
    const bool one = storage == fusedstep::schema::Storage::scalar && whim > 8;
    states.push_back(make_view(data, memory, bytes ? std::int32_t{FUSEDSTEP_INT8} : type, one ? &scalar : &parameter));
  }
  const std::int64_t step = data.ConsumeIntegralInRange(0, 15) == 15 ? any_number(data) : data.ConsumeIntegralInRange(1, 9);
  const auto arrays = std::make_unique<fusedstep_array[]>(count);
  for (std::size_t k = 0; k < count; ++k) arrays[k] = states[k].array;
  const std::int32_t passed = static_cast<std::int32_t>(count) - (whim == 1 ? data.ConsumeIntegralInRange(1, 9) : 0);

  const Memory before = memory;
  states.resize(static_cast<std::size_t>(std::max(passed, 0)));
  std::vector<const View*> views{&parameter, &gradient};
  for (const View& state : states) views.push_back(&state);
  std::vector<Dense> dense;
  for (const View* view : views) {
    if (view->sound() && view->elements() <= most_elements && (view->array.data != nullptr || view->elements() == 0)) {
      dense.emplace_back(*view);
    }
  }
  const std::int32_t code = fusedstep_step(whim == 2 ? nullptr : rule.get(), step, whim == 3 ? nullptr : &parameter.array,
                                           whim == 4 ? nullptr : &gradient.array, whim == 5 ? nullptr : arrays.get(),
                                           passed);
  check_code(code);
  std::vector<const View*> written{&parameter};
  for (const View& state : states) written.push_back(&state);
  check_memory(memory, before, code, written);
  if (code != FUSEDSTEP_OK) return;

  REQUIRE(dense.size() == views.size());
  std::vector<fusedstep_array> copies;
  for (std::size_t k = 2; k < dense.size(); ++k) copies.push_back(dense[k].array);
  REQUIRE(fusedstep_step(rule.get(), step, &dense[0].array, &dense[1].array, copies.data(), passed) == FUSEDSTEP_OK);
  for (std::size_t k = 0; k < views.size(); ++k) REQUIRE(dense[k].same(*views[k]));
}

void norm(Data& data, Memory& memory) {
  std::vector<View> views;
  const auto count = data.ConsumeIntegralInRange<std::size_t>(0, 3);
  const auto arrays = std::make_unique<fusedstep_array[]>(count);
  for (std::size_t k = 0; k < count; ++k) {
    views.push_back(make_view(data, memory, data.ConsumeIntegralInRange(0, 1), nullptr));
    const __int128 n = views[k].sound() ? views[k].elements() : 0;
    if (n > most_elements && n < static_cast<__int128>(1) << 61) return;
    arrays[k] = views[k].array;
  }
  const int whim = data.ConsumeIntegralInRange(0, 31);
  const Memory before = memory;
  auto result = std::make_unique<double>(-1.0);
  const std::int32_t code = fusedstep_norm(whim == 0 ? nullptr : arrays.get(),
                                           whim == 1 ? -1 : static_cast<std::int64_t>(count),
                                           whim == 2 ? nullptr : result.get());
  check_code(code);
  REQUIRE(memory == before);
  REQUIRE(code != FUSEDSTEP_OK || !(*result < 0.0));
}

// ----------------------------------------------------------------------------------------------------------- optimizers

// All states of all parameters, as bytes.
std::vector<std::string> contents(fusedstep_optimizer* optimizer, std::size_t count, const std::vector<std::string>& names) {
  std::vector<std::string> all;
  for (std::size_t i = 0; i < count; ++i) {
    for (const std::string& name : names) {
      View state;
      if (fusedstep_optimizer_state(optimizer, static_cast<std::int64_t>(i), name.c_str(), &state.array) != FUSEDSTEP_OK) {
        continue;
      }
      std::string bytes;
      state.each(
          [&](const char* at, std::int64_t) { bytes.append(at, static_cast<std::size_t>(size_of(state.array.dtype))); });
      all.push_back(bytes);
    }
  }
  return all;
}

Struct make_step_options(Data& data) {
  fusedstep_step_options full;
  REQUIRE(fusedstep_step_options_init(&full, sizeof full) == FUSEDSTEP_OK);
  if (data.ConsumeBool()) full.grad_scale = any_real(data);
  if (data.ConsumeBool()) full.clip_norm = any_real(data);
  if (data.ConsumeBool()) full.clip_value = any_real(data);
  if (data.ConsumeBool()) full.loss = any_real(data);
  full.zero_grads = static_cast<std::uint8_t>(data.ConsumeIntegralInRange(0, data.ConsumeBool() ? 2 : 1));
  full.nonfinite = static_cast<std::uint8_t>(data.ConsumeIntegralInRange(0, data.ConsumeBool() ? 3 : 2));
  unsigned char bytes[sizeof full];
  std::memcpy(bytes, &full, sizeof full);
  return cut(data, bytes, sizeof full);
}

void optimize(Data& data, Memory& memory) {
  const Schema& schema = pick(data, schemas);
  const auto mostly_that = [&]() -> const Schema& {
    return data.ConsumeIntegralInRange(0, 31) == 31 ? pick(data, schemas) : schema;
  };
  const auto groups = data.ConsumeIntegralInRange<std::size_t>(1, 2);
  std::vector<Rule> rules;
  std::vector<std::string> states{"", "step"};
  const auto pointers = std::make_unique<const fusedstep_rule*[]>(groups);
  for (std::size_t k = 0; k < groups; ++k) {
    rules.push_back(make_rule(data, mostly_that()));
    pointers[k] = rules.back().get();
    for (const std::string& name : states_of(pointers[k])) states.push_back(name);
  }
  const auto count = data.ConsumeIntegralInRange<std::size_t>(0, 3);
  std::vector<View> views;
  const auto parameters = std::make_unique<fusedstep_parameter[]>(count);
  for (std::size_t i = 0; i < count; ++i) {
    views.push_back(make_view(data, memory, data.ConsumeIntegralInRange(0, 1), nullptr));
    const bool odd = data.ConsumeIntegralInRange(0, 63) == 63;
    parameters[i] = {odd ? nullptr : "w", views[i].array,
                     odd ? any_number(data)
                         : data.ConsumeIntegralInRange<std::int64_t>(0, static_cast<std::int64_t>(groups) - 1)};
  }
  const int whim = data.ConsumeIntegralInRange(0, 127);
  if (whim == 0) pointers[0] = nullptr;
  Memory before = memory;
  fusedstep_optimizer* optimizer = nullptr;
  std::int32_t code = fusedstep_optimizer_create(
      whim == 3 ? nullptr : pointers.get(), whim == 4 ? any_number(data) % 2 - 1 : static_cast<std::int64_t>(groups),
      whim == 5 ? nullptr : parameters.get(), whim == 6 ? -1 : static_cast<std::int64_t>(count),
      whim == 7 ? nullptr : &optimizer);
  check_code(code);
  REQUIRE(memory == before);
  REQUIRE((code == FUSEDSTEP_OK) == (optimizer != nullptr));
  rules.clear();  // the optimizer has copies
  for (int t = data.ConsumeIntegralInRange(0, 4); optimizer != nullptr && t > 0; --t) {
    if (data.ConsumeIntegralInRange(0, 3) == 3) {
      const Rule changed = make_rule(data, mostly_that());
      check_code(fusedstep_optimizer_set(
          optimizer, data.ConsumeIntegralInRange(0, 7) == 7 ? any_number(data) : data.ConsumeIntegralInRange(0, 1),
          data.ConsumeIntegralInRange(0, 31) == 31 ? nullptr : changed.get()));
    }
    std::vector<View> gradients;
    const auto arrays = std::make_unique<fusedstep_array[]>(count);
    std::vector<const View*> written;
    for (std::size_t i = 0; i < count; ++i) {
      gradients.push_back(make_view(data, memory, views[i].array.dtype, &views[i]));
      if (data.ConsumeIntegralInRange(0, 15) == 15) gradients[i].array.data = nullptr;
      arrays[i] = gradients[i].array;
      written.push_back(&views[i]);
    }
    const Struct with = make_step_options(data);
    const int odd = data.ConsumeIntegralInRange(0, 127);
    std::uint64_t size;
    std::memcpy(&size, with.get(), sizeof size);
    constexpr std::size_t flag = offsetof(fusedstep_step_options, zero_grads);
    const bool zeroes = odd != 0 && size > flag && size <= sizeof(fusedstep_step_options) && with[flag] != 0;
    for (const View& gradient : gradients) {
      if (zeroes && gradient.array.data != nullptr) written.push_back(&gradient);
    }
    fusedstep_step_report report{};
    report.size = sizeof report;
    const Struct told = cut(data, reinterpret_cast<const unsigned char*>(&report), sizeof report);
    const std::vector<std::string> held = contents(optimizer, count, states);
    before = memory;
    code = fusedstep_optimizer_step(optimizer, odd == 1 ? nullptr : arrays.get(),
                                    odd == 2 ? -1 : static_cast<std::int64_t>(count),
                                    odd == 0 ? nullptr : reinterpret_cast<const fusedstep_step_options*>(with.get()),
                                    odd < 64 ? nullptr : reinterpret_cast<fusedstep_step_report*>(told.get()));
    check_code(code);
    check_memory(memory, before, code, written);
    REQUIRE(code == FUSEDSTEP_OK || held == contents(optimizer, count, states));
  }
  View state;
  if (optimizer != nullptr) {
    check_code(fusedstep_optimizer_state(optimizer, any_number(data), pick(data, states).c_str(), &state.array));
    check_code(fusedstep_optimizer_state(optimizer, 0, nullptr, &state.array));
    check_code(fusedstep_optimizer_state(optimizer, 0, pick(data, states).c_str(), nullptr));
  }
  fusedstep_optimizer_destroy(optimizer);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  Data data(bytes, size);
  Memory memory(data.ConsumeIntegralInRange<std::size_t>(0, 2) == 0 ? data.ConsumeIntegralInRange<std::size_t>(0, 64)
                                                                    : 4096);
  memory.shrink_to_fit();
  // Elements of several kinds, as float32 or float64.
  const std::vector<double> reals{0.5, -1.5, 0.0, 3e-39, INFINITY, -2.0, NAN, 1e30, -1e-3};
  const auto kinds = data.ConsumeIntegralInRange<std::size_t>(1, reals.size());
  const bool single = data.ConsumeBool();
  for (std::size_t at = 0, k = 0; at + 8 <= memory.size(); at += 8, ++k) {
    const double x = reals[k % kinds];
    const float y[2] = {static_cast<float>(x), static_cast<float>(reals[(k / 3) % kinds])};
    std::memcpy(memory.data() + at, single ? static_cast<const void*>(y) : static_cast<const void*>(&x), 8);
  }
  while (data.remaining_bytes() > 0) {
    switch (data.ConsumeIntegralInRange(0, 7)) {
      case 0:
        check_code(fusedstep_set_num_threads(data.ConsumeIntegralInRange(0, 4)));
        break;
      case 1:
        norm(data, memory);
        break;
      case 2:
      case 3:
      case 4:
        optimize(data, memory);
        break;
      default:
        update_once(data, memory);
    }
  }
  return 0;
}
