// The loops over dense streams: load, compute, store. They are written once for every rule, type and instruction set; the
// compiler vectorises them.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

#include "../platform.hpp"
#include "kernel.hpp"

namespace fusedstep {
namespace {

// A stream has a storage type, and a rule sees the compute type. Here the two are the same.
template <class T>
inline T load(const T* stream, std::int64_t i) {
  return stream[i];
}

template <class T>
inline void store(T* stream, std::int64_t i, T value) {
  stream[i] = value;
}

inline void store(std::int8_t* stream, std::int64_t i, std::int32_t value) { stream[i] = static_cast<std::int8_t>(value); }

// Whether a rule uses its state k. The default is all states.
template <class Rule, std::size_t k>
constexpr bool uses() {
  if constexpr (requires { Rule::uses; }) {
    return Rule::uses[k];
  } else {
    return true;
  }
}

template <class T>
struct NoPrologue {
  template <class Prologue>
  NoPrologue(const Prologue&, double) {}
};

template <class T>
inline void prologue(T&, T&, const NoPrologue<T>&) {}

// All constants of a loop.
template <class Rule, class T, template <class> class Before>
struct Loop {
  typename Rule::template Constants<T> rule;
  Before<T> before;

  template <class Options>
  Loop(const Options& options, const Prologue& prologue, std::int64_t step)
      : rule(options, step), before(prologue, options.lr) {}
};

// Updates one element: the only place where a rule meets memory.
template <class Rule, class T, template <class> class Before, class... S, std::size_t... k>
FUSEDSTEP_INLINE void update_element(std::index_sequence<k...>, const Loop<Rule, T, Before>& c, std::int64_t i,
                                     T* __restrict p, const T* __restrict g, S* __restrict... s) noexcept {
  T parameter = load(p, i);
  T gradient = load(g, i);
  prologue(parameter, gradient, c.before);
  const auto updated = Rule::template step<T>(parameter, gradient, (uses<Rule, k>() ? load(s, i) : S{})..., c.rule);
  store(p, i, get<0>(updated));
  ((uses<Rule, k>() ? store(s, i, get<1 + k>(updated)) : void()), ...);
}

// AVX-512 also has vectors of half its width. They are useful in two cases. The divider is 1.08 times as fast on them
// (Sapphire Rapids; equal on Zen 4), which decides for a rule that divides. And with a stream of bytes, the full-width loop
// takes 64 elements at a time, so that a short run would be all tail.
#ifdef FUSEDSTEP_HALF_WIDTH
inline constexpr bool two_widths = true;
#else
#define FUSEDSTEP_HALF_WIDTH
inline constexpr bool two_widths = false;
#endif

// The full-width loop takes this many elements at a time if a rule has a stream of bytes. The half-width loop takes the rest
// and short runs.
inline constexpr std::int64_t full_width_step = 64;
inline constexpr std::int64_t short_run = 2 * full_width_step;

// A rule with a stream of bytes may have another form that sees words instead, for half width and for groups.
template <class Rule>
struct InWords {
  using type = Rule;
};

template <class Rule>
  requires requires { typename Rule::InWords; }
struct InWords<Rule> {
  using type = typename Rule::InWords;
};

// Whether a rule's loop takes the elements in groups, whose bytes it widens to words first. On AVX2 Rprop then takes 0.7 of
// the time.
template <class Rule>
constexpr bool in_groups() {
  return widens_groups && requires { requires sizeof(typename Rule::Sign) == sizeof(std::int32_t); };
}

// A group of a stream, in the compute type: where it lies, if it is stored in that type.
template <class S>
struct Grouped {
  explicit Grouped(const S*) {}
  template <class E>
  E* in(E* stream) const {
    return stream;
  }
  template <class... Noise>
  void store(S*, Noise...) const {}
};

template <>
struct Grouped<std::int8_t> {
  alignas(4 * group) std::int32_t element[group];

  explicit Grouped(const std::int8_t* from) { widen_group(from, element); }
  std::int32_t* in(std::int8_t*) { return element; }
  template <class... Noise>
  void store(std::int8_t* to, Noise...) const {
    narrow_group(element, to);
  }
};

// Free functions that are not inlined, with restrict on their parameters. As a lambda over local restrict pointers, the same
// loop silently becomes scalar (4.6 times slower). The two differ only in an attribute, which can't be a template argument.
template <class Rule, class T, template <class> class Before, class... S, std::size_t... k>
FUSEDSTEP_NOINLINE void update_loop(std::index_sequence<k...> states, const Loop<Rule, T, Before> c, std::int64_t n,
                                    T* __restrict p, const T* __restrict g, S* __restrict... s) noexcept {
  if constexpr (in_groups<Rule>()) {
    for (std::int64_t i = 0; i < n; i += group) {
      [&](auto&&... group_s) {
        FUSEDSTEP_EACH_OF_GROUP(j) update_element(states, c, j, p + i, g + i, group_s.in(s + i)...);
        (group_s.store(s + i), ...);
      }(Grouped<S>(s + i)...);
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) update_element(states, c, i, p, g, s...);
  }
}

template <class Rule, class T, template <class> class Before, class... S, std::size_t... k>
FUSEDSTEP_HALF_WIDTH FUSEDSTEP_NOINLINE void half_width_update_loop(std::index_sequence<k...> states,
                                                                    const Loop<Rule, T, Before> c, std::int64_t n,
                                                                    T* __restrict p, const T* __restrict g,
                                                                    S* __restrict... s) noexcept {
  for (std::int64_t i = 0; i < n; ++i) update_element(states, c, i, p, g, s...);
}

// A group of strided elements, copied.
template <class E, class S>
struct Gathered {
  alignas(32) E element[group];

  Gathered(const S* from, std::int64_t stride) {
    for (std::int64_t i = 0; i < group; ++i) element[i] = from[i * stride];
  }

  void store(S* to, std::int64_t stride) const {
    for (std::int64_t i = 0; i < group; ++i) to[i * stride] = static_cast<S>(element[i]);
  }
};

// The loop over strided elements, with a stride for each stream. The compiler gathers vectors from elements and scatters
// them again, which costs little in a rule that divides. A loop in groups copies each group instead.
template <class Rule, class T, template <class> class Before, class... S, std::size_t... k>
FUSEDSTEP_HALF_WIDTH FUSEDSTEP_NOINLINE void update_loop_apart(std::index_sequence<k...> states,
                                                               const Loop<Rule, T, Before> c, std::int64_t n,
                                                               const std::int64_t* strides, T* __restrict p,
                                                               const T* __restrict g, S* __restrict... s) noexcept {
  const std::int64_t of_p = strides[0] / std::int64_t{sizeof(T)};
  const std::int64_t of_g = strides[gradient_stream] / std::int64_t{sizeof(T)};
  [[maybe_unused]] const std::int64_t of_s[] = {strides[first_state + k] / std::int64_t{sizeof(S)}..., 0};
  std::int64_t i = 0;
  if constexpr (in_groups<Rule>()) {
    for (; i + group <= n; i += group) {
      [&](auto&& group_p, auto&& group_g, auto&&... group_s) {
        FUSEDSTEP_EACH_OF_GROUP(j) { update_element(states, c, j, group_p.element, group_g.element, group_s.element...); }
        group_p.store(p + i * of_p, of_p);
        (group_s.store(s + i * of_s[k], of_s[k]), ...);
      }(Gathered<T, T>(p + i * of_p, of_p), Gathered<T, T>(g + i * of_g, of_g),
        Gathered<std::conditional_t<std::is_same_v<S, std::int8_t>, std::int32_t, S>, S>(s + i * of_s[k], of_s[k])...);
    }
  }
  for (; i < n; ++i) update_element(states, c, 0, p + i * of_p, g + i * of_g, (s + i * of_s[k])...);
}

// Tail of rules with an int8 state: the last elements, as many as the shortest vector of bytes has, are recomputed as one
// vector that overlaps those of the main loop, from copies taken before the main loop changed some of them. One by one they
// would be branches that no processor can predict (31 elements of Rprop: 120 ns, and 32 of them 12). The copies cost as much
// as a few elements. A loop in groups takes no single elements: if there are fewer than a group, the copies end in zeros.
template <class Rule>
inline constexpr std::int64_t shortest_vector = in_groups<Rule>() ? group : 16;
template <class Rule>
inline constexpr std::int64_t few = in_groups<Rule>() ? 0 : 4;

template <class E, std::int64_t size>
class Last {
 public:
  Last(const E* from, std::int64_t count) : count_(count) { copy(element, from); }
  void store(E* to) const { copy(to, element); }

  alignas(64) E element[size] = {};

 private:
  void copy(E* to, const E* from) const {
    if (count_ == size) {
      std::memcpy(to, from, sizeof element);
    } else {
      std::memcpy(to, from, static_cast<std::size_t>(count_) * sizeof(E));
    }
  }

  std::int64_t count_;
};

template <class Constants>
const Constants& as(const Prepared& prepared) {
  static_assert(sizeof(Constants) <= sizeof(Prepared));
  return *reinterpret_cast<const Constants*>(prepared.bytes);
}

// Calls f(index sequence of the states, parameter, gradient, states ...).
template <class P, class G = P, class... S, class F>
auto with_types(Types<S...>, void* const* streams, F f) {
  return [&]<std::size_t... k>(std::index_sequence<k...> states) {
    return f(states, static_cast<P*>(streams[0]), static_cast<const G*>(streams[gradient_stream]),
             static_cast<S*>(streams[first_state + k])...);
  }(std::index_sequence_for<S...>{});
}

// The same functions with their types erased, as the table holds them.

template <class Rule, class T, template <class> class Before>
struct Erased {
  using Constants = Loop<Rule, T, Before>;

  template <class Options>
  static void prepare(const void* options, const Prologue& prologue, std::int64_t step, Prepared& out) noexcept {
    new (out.bytes) Constants(*static_cast<const Options*>(options), prologue, step);
  }

  static void update(const Prepared& prepared, std::int64_t n, void* const* streams) noexcept {
    with_types(streams,
               [&](auto states, T* p, const T* g, auto*... s) { tail(states, as<Constants>(prepared), n, p, g, s...); });
  }

  static void update_apart(const Prepared& prepared, std::int64_t n, void* const* streams,
                           const std::int64_t* strides) noexcept {
    using Half = Loop<typename InWords<Rule>::type, T, Before>;
    with_types(streams, [&](auto states, T* p, const T* g, auto*... s) {
      update_loop_apart(states, as<Half>(prepared), n, strides, p, g, s...);
    });
  }

  template <class F>
  static auto with_types(void* const* streams, F f) {
    return fusedstep::with_types<T>(typename Rule::template States<T>{}, streams, f);
  }

 private:
  template <class States, class... S>
  static void tail(States states, const Constants& c, std::int64_t n, T* p, const T* g, S*... s) noexcept {
    if constexpr ((std::is_same_v<S, std::int8_t> || ...)) {
      constexpr std::int64_t size = shortest_vector<Rule>;
      const std::int64_t left_over = n % size;
      if (left_over > few<Rule> && (n > size || in_groups<Rule>())) {
        const std::int64_t count = n < size ? n : size;
        const std::int64_t last = n - count;
        [&](Last<T, size>&& last_p, Last<T, size>&& last_g, Last<S, size>&&... last_s) {
          run(states, c, n - left_over, p, g, s...);
          half_width(states, c, size, last_p.element, last_g.element, last_s.element...);
          last_p.store(p + last);
          (last_s.store(s + last), ...);
        }(Last<T, size>(p + last, count), Last<T, size>(g + last, count), Last<S, size>(s + last, count)...);
        return;
      }
    }
    run(states, c, n, p, g, s...);
  }

  // Runs the full-width loop for whole steps and the half-width loop for the rest.
  template <class States, class... S>
  static void run(States states, const Constants& c, std::int64_t n, T* p, const T* g, S*... s) noexcept {
    if constexpr (two_widths) {
      std::int64_t full = 0;
      if constexpr (!Rule::divides) {
        full = n < short_run ? 0 : n / full_width_step * full_width_step;
        if (full > 0) update_loop(states, c, full, p, g, s...);
      }
      if (full < n) half_width(states, c, n - full, p + full, g + full, (s == nullptr ? s : s + full)...);
    } else {
      update_loop(states, c, n, p, g, s...);
    }
  }

  template <class States, class... S>
  static void half_width(States states, const Constants& c, std::int64_t n, T* p, const T* g, S*... s) noexcept {
    if constexpr (two_widths) {
      using Half = Loop<typename InWords<Rule>::type, T, Before>;
      static_assert(sizeof(Half) == sizeof(Constants));
      half_width_update_loop(states, reinterpret_cast<const Half&>(c), n, p, g, s...);
    } else {
      update_loop(states, c, n, p, g, s...);
    }
  }
};

}  // namespace
}  // namespace fusedstep
