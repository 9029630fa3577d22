// Updates of 16-bit streams in one loop, which widens, computes and rounds a group at a time. With conversions apart, RMSprop
// takes 1.3 to 1.4 times as long in the first-level cache, and more where memory has to wait for each of them.
#pragma once

#include "storage.hpp"
#include "update.hpp"

namespace fusedstep {
namespace {

template <>
struct Grouped<bfloat16> {
  alignas(4 * group) float element[group];

  explicit Grouped(const bfloat16* from) { widen_group(&from->bits, element); }
  float* in(const bfloat16*) { return element; }
  void store(bfloat16* to) const {
    store_by(to, [](float x, std::int64_t) { return nearest_word(x); });
  }
  void store(bfloat16* to, const std::uint32_t* noise, int shift) const {
    store_by(to, [=](float x, std::int64_t j) { return stochastic_word(x, noise[j] >> shift & 0xFFFFu); });
  }

 private:
  template <class Round>
  void store_by(bfloat16* to, Round round) const {
    alignas(4 * group) std::uint32_t word[group];
    FUSEDSTEP_EACH_OF_GROUP(j) word[j] = round(element[j], j);
    narrow_group(word, &to->bits);
  }
};

static_assert(Kernel::whole_groups % group == 0);

// The parameter takes the lower half of the noise, the state the upper one.
template <class Rule, bool stochastic, class P, class... S, std::size_t... k>
FUSEDSTEP_NOINLINE void narrow_update_loop(std::index_sequence<k...> states, const Loop<Rule, float, NoPrologue> c,
                                           std::int64_t n, const std::uint32_t* __restrict noise, P* __restrict p,
                                           const P* __restrict g, S* __restrict... s) noexcept {
  for (std::int64_t i = 0; i < n; i += group) {
    [&](auto&& group_p, auto&& group_g, auto&&... group_s) {
      FUSEDSTEP_EACH_OF_GROUP(j) {
        update_element(states, c, j, group_p.in(p + i), group_g.in(g + i), group_s.in(uses<Rule, k>() ? s + i : s)...);
      }
      if constexpr (stochastic) {
        group_p.store(p + i, noise + i, 0);
        (group_s.store(uses<Rule, k>() ? s + i : s, noise + i, 16), ...);
      } else {
        group_p.store(p + i);
        (group_s.store(uses<Rule, k>() ? s + i : s), ...);
      }
    }(Grouped<P>(p + i), Grouped<P>(g + i), Grouped<S>(uses<Rule, k>() ? s + i : s)...);
  }
}

// The states that a rule uses, with those of floating point as E.
template <class Rule, class E, class... S, std::size_t... k>
constexpr auto states_as(Types<S...>, std::index_sequence<k...>) {
  return Types<std::conditional_t<uses<Rule, k>() && std::is_same_v<S, float>, E, S>...>{};
}

template <class Rule, class... S, std::size_t... k>
constexpr int count_floats(Types<S...>, std::index_sequence<k...>) {
  return (0 + ... + (uses<Rule, k>() && std::is_same_v<S, float>));
}

template <class AnyForm, class Rule = typename InWords<AnyForm>::type>
struct Narrow {
  using Wide = typename Rule::template States<float>;
  static constexpr auto numbers = []<class... S>(Types<S...>) { return std::index_sequence_for<S...>{}; }(Wide{});

  // One draw of noise has halves for a parameter and one state.
  static constexpr bool has_loop = widens_groups && count_floats<Rule>(Wide{}, numbers) == 1;

  // P is the type of the parameter and the gradient, E that of the state.
  template <class P, class E>
  static void update(const Prepared& prepared, std::int64_t n, void* const* streams, const std::uint32_t* noise) noexcept {
    with_types<P>(states_as<Rule, E>(Wide{}, numbers), streams, [&](auto states, P* p, const P* g, auto*... s) {
      const auto& constants = as<Loop<Rule, float, NoPrologue>>(prepared);
      if (noise == nullptr) {
        narrow_update_loop<Rule, false>(states, constants, n, noise, p, g, s...);
      } else {
        narrow_update_loop<Rule, true>(states, constants, n, noise, p, g, s...);
      }
    });
  }
};

}  // namespace
}  // namespace fusedstep
