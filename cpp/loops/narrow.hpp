// Updates of streams that are stored in 16 bits. Load, compute and store take a group of elements at a time, by way of local
// arrays: the compiler turns each of the short loops into vectors and keeps the arrays in registers. A single loop over
// types of different widths would be all packing and unpacking.
#pragma once

#include "noise.hpp"
#include "storage.hpp"
#include "update.hpp"

namespace fusedstep {
namespace {

// The storage types of parameter, gradient and states. A master parameter also has low halves.
template <class P, class G, class S, Rounding rounding_of_all = Rounding::nearest, bool has_low_half = false>
struct Form {
  using Parameter = P;
  using Gradient = G;
  using State = S;
  static constexpr Rounding rounding = rounding_of_all;
  static constexpr bool is_master = has_low_half;
  static constexpr bool rounds_parameter = !std::is_same_v<P, float> && !is_master;
  static constexpr bool rounds_state = !std::is_same_v<S, float>;
};

// The stored type of a state that the rule sees as V.
template <class Form, class V>
using Stored = std::conditional_t<std::is_same_v<V, float>, typename Form::State, V>;

#if defined(__AVX512BW__)
inline constexpr std::int64_t bytes_in_vector = 64;
#elif defined(__AVX2__)
inline constexpr std::int64_t bytes_in_vector = 32;
#else
inline constexpr std::int64_t bytes_in_vector = 16;
#endif

// As many elements as fill a vector of the narrowest type.
template <class... V>
inline constexpr std::int64_t group = (std::is_same_v<V, std::int8_t> || ...) ? bytes_in_vector : 16;

template <class E, std::int64_t n>
struct Lanes {
  alignas(64) E lane[n];
};

template <class V, std::int64_t n, class E>
[[gnu::always_inline]] inline Lanes<V, n> load_group(const E* from) {
  Lanes<V, n> lanes;
  for (std::int64_t j = 0; j < n; ++j) lanes.lane[j] = widened(from[j]);
  return lanes;
}

// Which half of which draw of noise rounds a state: counted among the states of floating point that the rule uses.
template <class Rule, std::size_t k, class... V>
constexpr int float_states_before() {
  constexpr bool is_float[] = {std::is_same_v<V, float>...};
  return [&]<std::size_t... before>(std::index_sequence<before...>) {
    return (0 + ... + static_cast<int>(uses<Rule, before>() && is_float[before]));
  }(std::make_index_sequence<k>{});
}

template <class Form, int half, std::int64_t n, class E, class V>
[[gnu::always_inline]] inline void store_group(E* to, const Lanes<V, n>& value, const Lanes<std::uint32_t, n>& noise) {
  for (std::int64_t j = 0; j < n; ++j) {
    if constexpr (std::is_same_v<E, V>) {
      to[j] = value.lane[j];
    } else if constexpr (Form::rounding == Rounding::nearest) {
      to[j] = to_nearest(Tag<E>{}, value.lane[j]);
    } else {
      to[j] = stochastic(Tag<E>{}, value.lane[j], half == 0 ? noise.lane[j] & 0xFFFFu : noise.lane[j] >> 16);
    }
  }
}

// One group: the only place where a rule meets memory of other types.
template <class Form, class Rule, class T, template <class> class Before, class... V, std::size_t... k>
[[gnu::always_inline]] inline void update_group(std::index_sequence<k...>, Types<V...>, const Loop<Rule, T, Before>& c,
                                                const Noise& noise, const Noise& second_noise, std::int64_t i,
                                                typename Form::Parameter* __restrict p, std::uint16_t* __restrict low,
                                                const typename Form::Gradient* __restrict g,
                                                Stored<Form, V>* __restrict... s) noexcept {
  constexpr std::int64_t n = group<V...>;
  constexpr int states = float_states_before<Rule, sizeof...(V), V...>();
  constexpr bool draws = Form::rounding == Rounding::stochastic;
  Lanes<std::uint32_t, n> drawn[2];
  if constexpr (draws && (Form::rounds_parameter || (Form::rounds_state && states > 0))) {
    for (std::int64_t j = 0; j < n; ++j) drawn[0].lane[j] = noise(static_cast<std::uint32_t>(i + j));
  }
  if constexpr (draws && Form::rounds_state && states > 1) {
    for (std::int64_t j = 0; j < n; ++j) drawn[1].lane[j] = second_noise(static_cast<std::uint32_t>(i + j));
  }
  Lanes<T, n> parameter;
  for (std::int64_t j = 0; j < n; ++j) {
    if constexpr (Form::is_master) {
      parameter.lane[j] = joined(p[i + j], low[i + j]);
    } else {
      parameter.lane[j] = widened(p[i + j]);
    }
  }
  const auto gradient = load_group<T, n>(g + i);
  [&](Lanes<V, n>... state) {
    for (std::int64_t j = 0; j < n; ++j) {
      T x = parameter.lane[j];
      T dx = gradient.lane[j];
      prologue(x, dx, c.before);
      const auto updated = Rule::template step<T>(x, dx, (uses<Rule, k>() ? state.lane[j] : V{})..., c.rule);
      parameter.lane[j] = get<0>(updated);
      ((uses<Rule, k>() ? void(state.lane[j] = get<1 + k>(updated)) : void()), ...);
    }
    if constexpr (Form::is_master) {
      for (std::int64_t j = 0; j < n; ++j) p[i + j] = high_half(parameter.lane[j]);
      for (std::int64_t j = 0; j < n; ++j) low[i + j] = low_half(parameter.lane[j]);
    } else {
      store_group<Form, 0>(p + i, parameter, drawn[0]);
    }
    ((uses<Rule, k>() ? store_group<Form, (1 + float_states_before<Rule, k, V...>()) % 2>(
                            s + i, state, drawn[(1 + float_states_before<Rule, k, V...>()) / 2])
                      : void()),
     ...);
  }((uses<Rule, k>() ? load_group<V, n>(s + i) : Lanes<V, n>())...);
}

// Whole groups. `n` is below 2^32, like the elements that a Noise is good for.
template <class Rule, class T, class Form, template <class> class Before, class... V, std::size_t... k>
[[gnu::noinline]] void narrow_update_loop(std::index_sequence<k...> states, Types<V...> types, Form,
                                          const Loop<Rule, T, Before> c, const Noise noise, const Noise second_noise, std::int64_t n,
                                          typename Form::Parameter* __restrict p, std::uint16_t* __restrict low,
                                          const typename Form::Gradient* __restrict g,
                                          Stored<Form, V>* __restrict... s) noexcept {
  for (std::int64_t i = 0; i < n; i += group<V...>) {
    update_group<Form>(states, types, c, noise, second_noise, i, p, low, g, s...);
  }
}

// The same with its types erased.
template <class Rule, class Form, template <class> class Before>
struct ErasedNarrow {
  using States = typename Rule::template States<float>;

  static void update(const Prepared& prepared, std::int64_t n, void* const* streams, std::uint64_t key) noexcept {
    update(States{}, as<Loop<Rule, float, Before>>(prepared), n, streams, key);
  }

  template <class... V>
  static constexpr NarrowUpdate erased(Types<V...>) {
    return {update, group<V...>};
  }

 private:
  template <class... V>
  static void update(Types<V...> types, const Loop<Rule, float, Before>& c, std::int64_t n, void* const* streams,
                     std::uint64_t key) noexcept {
    const std::uint64_t index = index_of(streams);
    [&]<std::size_t... k>(std::index_sequence<k...> states) {
      narrow_update_loop(states, types, Form{}, c, Noise(key, index), Noise(second_key(key), index), n,
                         static_cast<typename Form::Parameter*>(streams[0]), static_cast<std::uint16_t*>(streams[low_stream]),
                         static_cast<const typename Form::Gradient*>(streams[gradient_stream]),
                         static_cast<Stored<Form, V>*>(streams[first_state + k])...);
    }(std::index_sequence_for<V...>{});
  }
};

// Those that have a loop of their own. What is stored otherwise goes through conversions.
using Forms = TypeList<
    Form<float, float, bfloat16, Rounding::nearest>, Form<float, float, bfloat16, Rounding::stochastic>,
    Form<float, bfloat16, float>,
    Form<float, bfloat16, bfloat16, Rounding::nearest>, Form<float, bfloat16, bfloat16, Rounding::stochastic>,
    Form<bfloat16, bfloat16, bfloat16, Rounding::nearest>, Form<bfloat16, bfloat16, bfloat16, Rounding::stochastic>,
    Form<bfloat16, bfloat16, bfloat16, Rounding::nearest, true>,
    Form<bfloat16, bfloat16, bfloat16, Rounding::stochastic, true>>;

// Whether streams are stored in a form, for a rule with states of these types.
template <class Form, class... V>
bool has_form(Types<V...>, const Storage& storage) {
  bool same = storage.type[0] == stored_as<typename Form::Parameter> &&
              storage.type[gradient_stream] == stored_as<typename Form::Gradient> && storage.is_master() == Form::is_master &&
              (storage.rounding == Form::rounding || !(Form::rounds_parameter || Form::rounds_state));
  std::size_t k = 0;
  ((same = same && (!storage.uses(static_cast<int>(first_state + k)) ||
                    storage.type[first_state + k] == stored_as<Stored<Form, V>>), ++k), ...);
  return same;
}

template <class Rule, template <class> class Before, class... F>
NarrowUpdate narrow_update(TypeList<F...>, const Storage& storage) {
  using States = typename Rule::template States<float>;
  NarrowUpdate found{};
  ((has_form<F>(States{}, storage) ? void(found = ErasedNarrow<Rule, F, Before>::erased(States{})) : void()), ...);
  return found;
}

template <class E, class T>
void widen(std::int64_t n, const void* from, void* to) noexcept {
  const auto* const stored = static_cast<const E*>(from);
  auto* const wide = static_cast<T*>(to);
  for (std::int64_t i = 0; i < n; ++i) wide[i] = static_cast<T>(widened(stored[i]));
}

template <class E>
void round_to_nearest(std::int64_t n, const float* from, void* to) noexcept {
  auto* const stored = static_cast<E*>(to);
  for (std::int64_t i = 0; i < n; ++i) stored[i] = to_nearest(Tag<E>{}, from[i]);
}

template <class E>
void round_stochastically(std::int64_t n, const float* from, void* to, const std::uint32_t* noise, bool upper) noexcept {
  auto* const stored = static_cast<E*>(to);
  const int shift = upper ? 16 : 0;
  for (std::int64_t i = 0; i < n; ++i) stored[i] = stochastic(Tag<E>{}, from[i], noise[i] >> shift & 0xFFFFu);
}

inline void join(std::int64_t n, const bfloat16* high, const std::uint16_t* low, float* to) noexcept {
  for (std::int64_t i = 0; i < n; ++i) to[i] = joined(high[i], low[i]);
}

inline void split(std::int64_t n, const float* from, bfloat16* high, std::uint16_t* low) noexcept {
  for (std::int64_t i = 0; i < n; ++i) {
    high[i] = high_half(from[i]);
    low[i] = low_half(from[i]);
  }
}

inline void draw(std::int64_t n, std::uint64_t key, std::uint64_t index, std::uint32_t* to) noexcept {
  for (std::int64_t i = 0; i < n; ++i) to[i] = Noise(key, index + static_cast<std::uint64_t>(i))(0);
}

constexpr Conversions conversions() {
  Conversions made{};
  constexpr auto at = [](Type type) { return static_cast<std::size_t>(type); };
  made.widen[at(Type::float32)][at(Type::bfloat16)] = widen<bfloat16, float>;
  made.widen[at(Type::float32)][at(Type::float16)] = widen<float16, float>;
  made.widen[at(Type::float64)][at(Type::bfloat16)] = widen<bfloat16, double>;
  made.widen[at(Type::float64)][at(Type::float16)] = widen<float16, double>;
  made.widen[at(Type::float64)][at(Type::float32)] = widen<float, double>;
  made.to_nearest[at(Type::bfloat16)] = round_to_nearest<bfloat16>;
  made.to_nearest[at(Type::float16)] = round_to_nearest<float16>;
  made.stochastic[at(Type::bfloat16)] = round_stochastically<bfloat16>;
  made.stochastic[at(Type::float16)] = round_stochastically<float16>;
  made.join = join;
  made.split = split;
  made.noise = draw;
  return made;
}

}  // namespace
}  // namespace fusedstep
