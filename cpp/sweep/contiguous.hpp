// The loops over dense streams: written once for every rule, type and instruction set, vectorised by the compiler.
#pragma once

#include <cstddef>
#include <utility>

#include "../rules/math.hpp"
#include "../rules/prologue.hpp"
#include "kernel.hpp"

namespace fusedstep {
namespace {

template <class Coef>
const Coef& as(const Coefficients& coef) {
  static_assert(sizeof(Coef) <= sizeof(Coefficients));
  return *reinterpret_cast<const Coef*>(coef.bytes);
}

template <class S>
struct Unused {
  S value{};
  operator S&() { return value; }
};

template <bool used, class S>
inline decltype(auto) element(S* stream, std::int64_t i) {
  if constexpr (used) {
    return (stream[i]);
  } else {
    return Unused<S>{};
  }
}

// AVX-512 also has vectors of half its width. On those the divider is 1.08 times as fast (Sapphire Rapids; equal on Zen
// 4), which is what counts for a rule that divides; and a short run is not all tail where a stream of bytes makes the
// wide loop take 64 elements at a time.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define FUSEDSTEP_NARROW [[gnu::target("prefer-vector-width=256")]]
inline constexpr bool two_widths = true;
#else
#define FUSEDSTEP_NARROW
inline constexpr bool two_widths = false;
#endif

// What the wide loop takes at a time of a rule with a stream of bytes; the narrow loop takes the rest, and short runs.
inline constexpr std::int64_t wide_step = 64;
inline constexpr std::int64_t short_run = 2 * wide_step;

// A rule may have another form at half width.
template <class Rule>
struct HalfWidth {
  using type = Rule;
};

template <class Rule>
  requires requires { typename Rule::AtHalfWidth; }
struct HalfWidth<Rule> {
  using type = typename Rule::AtHalfWidth;
};

// Free functions, not inlined, with restrict on their parameters: as a lambda over local restrict pointers the same loop
// silently becomes scalar (4.6 times slower).
template <class Rule, class T, class... S, std::size_t... k>
[[gnu::noinline]] void update_loop(std::index_sequence<k...>, const typename Rule::template Coef<T> c, std::int64_t n,
                                   T* __restrict p, const T* __restrict g, S* __restrict... s) noexcept {
  for (std::int64_t i = 0; i < n; ++i) {
    Rule::template step<T>(p[i], g[i], element<Rule::uses[k]>(s, i)..., c);
  }
}

template <class Rule, class T, class... S, std::size_t... k>
FUSEDSTEP_NARROW [[gnu::noinline]] void narrow_update_loop(std::index_sequence<k...>,
                                                           const typename Rule::template Coef<T> c, std::int64_t n,
                                                           T* __restrict p, const T* __restrict g,
                                                           S* __restrict... s) noexcept {
  for (std::int64_t i = 0; i < n; ++i) {
    Rule::template step<T>(p[i], g[i], element<Rule::uses[k]>(s, i)..., c);
  }
}

inline constexpr std::int64_t lanes = 16;

// Lanes of fixed number, added in pairs: the same numbers in the same order on every instruction set.
inline double sum_of_lanes(double* lane) {
  for (std::int64_t half = lanes / 2; half > 0; half /= 2) {
    for (std::int64_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

template <class Rule, class T, class... S, std::size_t... k>
[[gnu::noinline]] Total total_loop(std::index_sequence<k...>, const typename Rule::template Coef<T> c, std::int64_t n,
                                   const T* __restrict p, const T* __restrict g, const S* __restrict... s) noexcept {
  double sum[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      sum[lane] += Rule::template term<T>(p[i + lane], g[i + lane], s[i + lane]..., c).summand;
    }
  }
  for (std::int64_t lane = 0; i + lane < n; ++lane) {
    sum[lane] += Rule::template term<T>(p[i + lane], g[i + lane], s[i + lane]..., c).summand;
  }
  Total total{.sum = sum_of_lanes(sum)};
  if constexpr (sizeof...(S) > 0) {
    for (i = 0; i < n; ++i) {
      const double key = Rule::template term<T>(p[i], g[i], s[i]..., c).key;
      if (key < total.key) {
        total.key = key;
        total.position = i;
      }
    }
  }
  return total;
}

template <Decay decay, class T>
[[gnu::noinline]] void prologue_loop(const PrologueCoef<T> c, std::int64_t n, T* __restrict p, const T* __restrict g,
                                     T* __restrict out) noexcept {
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (decay == Decay::none) {
      T unused{};
      out[i] = prologue<decay>(g[i], unused, c);
    } else {
      out[i] = prologue<decay>(g[i], p[i], c);
    }
  }
}

// The shortest vector of bytes. A rule with a stream of bytes takes the last elements together with some before them, from
// copies of what these were: one by one they would be branches that no processor can predict (31 elements of Rprop:
// 120 ns, and 32 of them 12). The copies cost as much as a few elements.
inline constexpr std::int64_t vector_of_bytes = 16;
inline constexpr std::int64_t few = 4;

template <class E>
struct Last {
  alignas(64) E element[vector_of_bytes];

  explicit Last(const E* from) { __builtin_memcpy(element, from, sizeof element); }
  void store(E* to) const { __builtin_memcpy(to, element, sizeof element); }
};

// From here on: the same functions with their types erased, as the table holds them.

template <class Rule, class T>
struct Erased {
  using Coef = typename Rule::template Coef<T>;

  template <class Options>
  static void prepare(const void* options, std::int64_t time, Coefficients& out) noexcept {
    new (out.bytes) Coef(*static_cast<const Options*>(options), time);
  }

  static void update(const Coefficients& coef, std::int64_t n, void* const* streams) noexcept {
    call(typename Rule::template States<T>{}, coef, n, streams);
  }

  template <class... S>
  static void call(types<S...>, const Coefficients& coef, std::int64_t n, void* const* streams) noexcept {
    call(types<S...>{}, std::index_sequence_for<S...>{}, coef, n, streams);
  }

  template <class... S, std::size_t... k>
  static void call(types<S...>, std::index_sequence<k...> sequence, const Coefficients& coef, std::int64_t n,
                   void* const* streams) noexcept {
    update(sequence, as<Coef>(coef), n, static_cast<T*>(streams[0]), static_cast<const T*>(streams[1]),
           static_cast<S*>(streams[2 + k])...);
  }

  template <class Sequence, class... S>
  static void update(Sequence sequence, const Coef& c, std::int64_t n, T* p, const T* g, S*... s) noexcept {
    if constexpr ((std::is_same_v<S, std::int8_t> || ...)) {
      const std::int64_t left_over = n % vector_of_bytes;
      const std::int64_t last = n - vector_of_bytes;
      if (left_over > few && last > 0) {
        [&](Last<T>&& last_p, Last<T>&& last_g, Last<S>&&... last_s) {
          run(sequence, c, n - left_over, p, g, s...);
          narrow_loop(sequence, c, vector_of_bytes, last_p.element, last_g.element, last_s.element...);
          last_p.store(p + last);
          (last_s.store(s + last), ...);
        }(Last<T>(p + last), Last<T>(g + last), Last<S>(s + last)...);
        return;
      }
    }
    run(sequence, c, n, p, g, s...);
  }

  // The wide loop as far as it takes whole steps, and the narrow one.
  template <class Sequence, class... S>
  static void run(Sequence sequence, const Coef& c, std::int64_t n, T* p, const T* g, S*... s) noexcept {
    if constexpr (two_widths) {
      std::int64_t wide = 0;
      if constexpr (!Rule::divides) {
        wide = n < short_run ? 0 : n / wide_step * wide_step;
        if (wide > 0) wide_loop(sequence, c, wide, p, g, s...);
      }
      if (wide < n) narrow_loop(sequence, c, n - wide, p + wide, g + wide, (s == nullptr ? s : s + wide)...);
    } else {
      wide_loop(sequence, c, n, p, g, s...);
    }
  }

  static constexpr auto wide_loop = [](auto... arguments) { update_loop<Rule, T>(arguments...); };
  static constexpr auto narrow_loop = [](auto... arguments) {
    if constexpr (two_widths) {
      narrow_update_loop<typename HalfWidth<Rule>::type, T>(arguments...);
    } else {
      update_loop<Rule, T>(arguments...);
    }
  };
};

template <class Rule, class T>
concept AsksAboutArray = requires(typename Rule::template Coef<T> c, T s) { Rule::template settle<T>(0.0, s, c); };

template <class Rule>
concept AsksAboutList = requires { Rule::chooses_one; };

template <class Rule, class T>
struct ErasedQuestion {
  using Coef = typename Rule::template Coef<T>;

  static Total total(const Coefficients& coef, std::int64_t n, void* const* streams) noexcept {
    return call(typename Rule::template States<T>{}, coef, n, streams);
  }

  template <class... S>
  static Total call(types<S...>, const Coefficients& coef, std::int64_t n, void* const* streams) noexcept {
    return call(types<S...>{}, std::index_sequence_for<S...>{}, coef, n, streams);
  }

  template <class... S, std::size_t... k>
  static Total call(types<S...>, std::index_sequence<k...> sequence, const Coefficients& coef, std::int64_t n,
                    void* const* streams) noexcept {
    return total_loop<Rule, T>(sequence, as<Coef>(coef), n, static_cast<const T*>(streams[0]),
                               static_cast<const T*>(streams[1]), static_cast<const S*>(streams[2 + k])...);
  }

  static void settle(const Total& total, void* scalar, Coefficients& coef) noexcept {
    Coef c = as<Coef>(coef);
    Rule::template settle<T>(total.sum, *static_cast<T*>(scalar), c);
    new (coef.bytes) Coef(c);
  }

  static void update_chosen(const Total& total, const Coefficients& coef, void* const* streams) noexcept {
    Rule::template step_chosen<T>(total.sum, *static_cast<T*>(streams[0]), *static_cast<const T*>(streams[1]),
                                  *static_cast<T*>(streams[2]), *static_cast<std::int8_t*>(streams[3]), as<Coef>(coef));
  }
};

template <class Rule, class T, class Options>
Kernel kernel() {
  Kernel kernel{Erased<Rule, T>::template prepare<Options>, Erased<Rule, T>::update, nullptr, nullptr, nullptr};
  if constexpr (AsksAboutArray<Rule, T>) {
    kernel.total = ErasedQuestion<Rule, T>::total;
    kernel.settle = ErasedQuestion<Rule, T>::settle;
  } else if constexpr (AsksAboutList<Rule>) {
    kernel.total = ErasedQuestion<Rule, T>::total;
    kernel.update_chosen = ErasedQuestion<Rule, T>::update_chosen;
  }
  return kernel;
}

template <Decay decay, class T>
struct ErasedPrologue {
  static void prepare(const Prologue& prologue, Coefficients& out) noexcept {
    new (out.bytes) PrologueCoef<T>(prologue);
  }

  static void gradient(const Coefficients& coef, std::int64_t n, void* p, const void* g, void* out) noexcept {
    prologue_loop<decay, T>(as<PrologueCoef<T>>(coef), n, static_cast<T*>(p), static_cast<const T*>(g),
                            static_cast<T*>(out));
  }
};

}  // namespace
}  // namespace fusedstep
