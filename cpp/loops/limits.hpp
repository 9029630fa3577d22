// Limits to measure the rules against: the cost of memory, and the cost of arithmetic. They look like rules.
#pragma once

#include "../include/fusedstep/rules.hpp"

namespace fusedstep {

enum class TrafficStates : std::uint8_t { none, one, two, three };

// The loads and stores of a rule with so many states of the parameter's type, and one addition per store.
struct Traffic {
  double lr = 0.0;
  TrafficStates states = TrafficStates::one;
  FUSEDSTEP_DECAY_OPTIONS
};

template <>
struct Schema<Traffic> {
  using Rule = Traffic;
  static constexpr const char* name = "traffic";
  static constexpr const char* counts[] = {"none", "one", "two", "three"};
  static constexpr schema::Field fields[] = {FUSEDSTEP_FIELD(lr, schema::nonnegative), FUSEDSTEP_FIELD(states, counts),
                                             FUSEDSTEP_DECAY_FIELDS};
  static constexpr schema::State states[] = {{.name = "first"}, {.name = "second"}, {.name = "third"}};

  static bool uses(const Traffic& o, int state) { return state < static_cast<int>(o.states); }
};

// The loads and stores of Rprop: a state of the parameter's type and a sign.
struct SignTraffic {
  double lr = 0.0;
  FUSEDSTEP_DECAY_OPTIONS
};

template <>
struct Schema<SignTraffic> {
  using Rule = SignTraffic;
  static constexpr const char* name = "sign_traffic";
  static constexpr schema::Field fields[] = {FUSEDSTEP_FIELD(lr, schema::nonnegative), FUSEDSTEP_DECAY_FIELDS};
  static constexpr schema::State states[] = {{.name = "first"}, {.name = "sign", .storage = schema::Storage::int8}};
};

using Limits = TypeList<Traffic, SignTraffic>;

// How often an element needs the divider. Its rate is a limit like that of memory.
enum class Division : std::uint8_t { one, root_and_one, root_and_two };
inline constexpr int division_count = 3;

}  // namespace fusedstep

#ifdef FUSEDSTEP_KERNELS  // only kernels.cpp sees the maths

namespace fusedstep {
namespace {

template <int states>
struct TrafficRule {
  static constexpr bool uses[3] = {states > 0, states > 1, states > 2};
  static constexpr bool divides = false;

  template <class T>
  using States = Types<T, T, T>;

  template <class T>
  struct Constants {
    Constants(const Traffic&, std::int64_t) {}
  };

  template <class T>
  static Values<T, T, T, T> step(T p, T g, T a, T b, T c, const Constants<T>&) {
    return {p + g, a + g, b + g, c + g};
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

struct SignTrafficRule {
  static constexpr bool divides = false;

  template <class T>
  using States = Types<T, std::int8_t>;

  template <class T>
  struct Constants {
    Constants(const SignTraffic&, std::int64_t) {}
  };

  template <class T>
  static Values<T, T, std::int8_t> step(T p, T g, T s, std::int8_t sign, const Constants<T>&) {
    return {p + g, s + g, static_cast<std::int8_t>(sign ^ 1)};
  }
};

template <class F>
auto compose(const SignTraffic&, F f) {
  return f(SignTrafficRule{});
}

// Does so many square roots and divisions in registers. The values stay near 1.
template <int roots, int divisions, class T>
inline T divide_and_root(T x) {
  for (int k = 0; k < roots; ++k) x = sqrt(x);
  for (int k = 0; k < divisions; ++k) x = T(2) / (x + T(1));
  return x;
}

}  // namespace
}  // namespace fusedstep

#endif
