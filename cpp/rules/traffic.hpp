// Not rules but limits, to measure the rules against: what the memory costs, and what the arithmetic costs.
#pragma once

#include "../include/fusedstep/rules.hpp"
#include "math.hpp"

namespace fusedstep {
namespace {

// The loads and stores of a rule with one state, or of Rprop, and one add a store.
template <bool with_sign>
struct TrafficRule {
  static constexpr bool uses[2] = {true, with_sign};

  template <class T>
  using States = types<T, std::int8_t>;

  template <class T>
  struct Coef {
    Coef(const Traffic&, std::int64_t) {}
  };

  template <class T>
  static void step(T& p, T g, T& s, std::int8_t& sign, const Coef<T>&) {
    p = p + g;
    s = s + g;
    if constexpr (with_sign) sign = static_cast<std::int8_t>(sign ^ 1);
  }
};

template <class F>
auto compose(const Traffic& o, F f) {
  return choose(o.with_sign, [&](auto with_sign) { return f(TrafficRule<with_sign>{}); });
}

// One square root and one division an element, in registers only.
template <class T>
inline T divide_and_root(T x) {
  return T(2) / (sqrt(x) + T(1));
}

}  // namespace
}  // namespace fusedstep
