// Not rules but limits, to measure the rules against: what the memory costs, and what the arithmetic costs.
#pragma once

#include "../include/fusedstep/rules.hpp"
#include "math.hpp"

namespace fusedstep {
namespace {

// The loads and stores of a rule with so many states of the parameter's type, and one add a store.
template <int states>
struct TrafficRule {
  static constexpr bool uses[3] = {states > 0, states > 1, states > 2};
  static constexpr bool divides = false;

  template <class T>
  using States = types<T, T, T>;

  template <class T>
  struct Coef {
    Coef(const Traffic&, std::int64_t) {}
  };

  template <class T>
  static void step(T& p, T g, T& a, T& b, T& c, const Coef<T>&) {
    p = p + g;
    a = a + g;
    b = b + g;
    c = c + g;
  }
};

template <class F>
auto compose(const Traffic& o, F f) {
  switch (o.states) {
    case TrafficStates::none:
      return f(TrafficRule<0>{});
    case TrafficStates::two:
      return f(TrafficRule<2>{});
    case TrafficStates::three:
      return f(TrafficRule<3>{});
    case TrafficStates::one:
      break;
  }
  return f(TrafficRule<1>{});
}

// Those of Rprop: a state of the parameter's type and a sign.
struct SignTrafficRule {
  static constexpr bool uses[2] = {true, true};
  static constexpr bool divides = false;

  template <class T>
  using States = types<T, std::int8_t>;

  template <class T>
  struct Coef {
    Coef(const SignTraffic&, std::int64_t) {}
  };

  template <class T>
  static void step(T& p, T g, T& s, std::int8_t& sign, const Coef<T>&) {
    p = p + g;
    s = s + g;
    sign = static_cast<std::int8_t>(sign ^ 1);
  }
};

template <class F>
auto compose(const SignTraffic&, F f) {
  return f(SignTrafficRule{});
}

// So many square roots and divisions an element, in registers only. The values stay near 1.
template <int roots, int divisions, class T>
inline T divide_and_root(T x) {
  for (int k = 0; k < roots; ++k) x = sqrt(x);
  for (int k = 0; k < divisions; ++k) x = T(2) / (x + T(1));
  return x;
}

}  // namespace
}  // namespace fusedstep
